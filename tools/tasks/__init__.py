"""Data sets and models for benchmarks and reproductions: made offline, the same for a seed.

    from tasks import glyphs, build_lenet5, train

    accuracy = train(build_lenet5(), glyphs(size=28), epochs=5)

Nothing is downloaded, and nothing is kept on disk. Scripts in the folders beside this one put
`tools` on the path first: ``sys.path.insert(0, str(Path(__file__).resolve().parents[1]))``.
"""

from tasks.fitting import accuracy, train
from tasks.mnist_1d import mnist1d
from tasks.models import (
    build_cnn1d,
    build_keyword_transformer,
    build_lenet5,
    build_lenet300,
    build_mlp,
)
from tasks.reference_models import (
    build_autoencoder,
    build_ds_cnn,
    build_mobilenet_v1,
    build_resnet8,
)
from tasks.rendering import glyphs
from tasks.speech import keywords
from tasks.task import Task
from tasks.uci_digits import digits

__all__ = [
    "Task",
    "accuracy",
    "build_autoencoder",
    "build_cnn1d",
    "build_ds_cnn",
    "build_keyword_transformer",
    "build_lenet5",
    "build_lenet300",
    "build_mlp",
    "build_mobilenet_v1",
    "build_resnet8",
    "digits",
    "glyphs",
    "keywords",
    "mnist1d",
    "train",
]
