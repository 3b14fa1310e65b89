"""The whole flow on real data that needs no download: the UCI handwritten digits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.data import Dataset
from edgeprune.errors import UnsupportedError
from edgeprune.files import make_folder
from edgeprune.models import import_keras, save_model
from edgeprune.outcome import CompressionReport
from edgeprune.pipeline import compress
from edgeprune.recipe import PRESETS, QuantizationSpec, SparsitySpec, TrainingSpec
from edgeprune.training import Progress, fit

_BASELINE_EPOCHS = 30
_TEST_SHARE = 0.3
_TRAINING = TrainingSpec(batch_size=32)
RECIPE = replace(
    PRESETS["pqat-int8"],
    training=_TRAINING,
    sparsity=SparsitySpec(final_sparsity=0.8, epochs=20),
    quantization=QuantizationSpec(epochs=8, learning_rate=3e-4),
)


def run_demo(
    output: str | Path, *, restart: bool = False, progress: Progress | None = None
) -> CompressionReport:
    """Train a small residual network on digits, then prune, quantize, convert and measure it.

    Args:
      output: folder for every file; an earlier demo there goes on or is shown again.
      restart: run an earlier demo there again.
      progress: as `compress` calls it.

    Raises:
      UnsupportedError: scikit-learn, which ships the data, is not installed.
    """
    folder = make_folder(output)
    data = digits()
    trained = folder / "digits.keras"
    if restart or not trained.exists():
        tell = progress or (lambda stage, fraction, note: None)
        tell("training", 0.0, "")
        save_model(_train(data, progress), trained)
        tell("training", 1.0, "")
    return compress(trained, data, RECIPE, folder, restart=restart, progress=progress)


def _train(data: Dataset, progress: Progress | None) -> Any:
    model = residual_network()
    keras = import_keras()
    steps = -(-len(data.y) // _TRAINING.batch_size) * _BASELINE_EPOCHS
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        loss="sparse_categorical_crossentropy",
    )
    fit(model, data, _BASELINE_EPOCHS, _TRAINING, [], "training", progress)
    # The cosine has run out; the stages that follow train at a constant rate.
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=model.loss)
    return model


def digits() -> Dataset:
    """Return scikit-learn's 1797 digits, (n, 8, 8, 1) float32 in [0, 1], 30 % for testing.

    Source: Alpaydin & Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UnsupportedError(
            "the demo's digits come with scikit-learn, which is not installed; "
            "pip install 'edgeprune[demo]'"
        ) from error
    bunch = load_digits()
    images = (bunch.images / 16).astype("float32")[..., None]
    x, x_test, y, y_test = train_test_split(
        images, bunch.target, test_size=_TEST_SHARE, random_state=0, stratify=bunch.target
    )
    return Dataset(x, y, x_test, y_test, f"{len(y_test)} test digits")


def residual_network() -> Any:
    """Build an 8x8x1 -> 10 residual network of two blocks, with seeded initial weights."""
    keras = import_keras()
    keras.utils.set_random_seed(_TRAINING.seed)
    layers = keras.layers

    def convolve(x: Any, filters: int, stride: int = 1) -> Any:
        x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((8, 8, 1))
    x = layers.ReLU()(convolve(inputs, 24))
    for filters, stride in ((24, 1), (48, 2)):
        shortcut = x
        if stride > 1:
            shortcut = layers.Conv2D(filters, 1, strides=stride)(x)
        x = layers.ReLU()(convolve(x, filters, stride))
        x = layers.ReLU()(layers.Add()([convolve(x, filters), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="digits")
