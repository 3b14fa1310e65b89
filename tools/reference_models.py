"""Write a MobileNetV1 and the four MLPerf Tiny models as int8 .tflite files, to be measured.

    python tools/reference_models.py FOLDER

The weights are random, so the files tell of size, memory and speed, not of accuracy. The
statistics of the batch normalizations are those of random inputs, or else the activations would
die out on their way through the deeper models.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from tasks.reference_models import (
    build_autoencoder,
    build_ds_cnn,
    build_mobilenet_v1,
    build_resnet8,
)

from edgeprune.export.convert import convert
from edgeprune.models import import_keras

CALIBRATION = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    keras = import_keras()
    keras.utils.set_random_seed(0)
    mobilenet = keras.applications.MobileNet((128, 128, 3), alpha=0.5, weights=None, classes=10)
    models = {
        "mobilenet-v1-128": mobilenet,
        "tiny-images-resnet8": build_resnet8(),
        "tiny-keywords-ds-cnn": build_ds_cnn(),
        "tiny-person-mobilenet": build_mobilenet_v1(),
        "tiny-sounds-autoencoder": build_autoencoder(),
    }
    random = np.random.default_rng(0)
    batch_norm = keras.layers.BatchNormalization
    for name, model in models.items():
        samples = random.normal(size=(CALIBRATION, *model.input_shape[1:])).astype(np.float32)
        for layer in model.layers:
            if isinstance(layer, batch_norm):
                layer.momentum = 0.0
        model(samples, training=True)
        # Untrained outputs are near each other, so that verifying them would prove nothing.
        artifact = convert(
            model,
            folder / f"{name}.tflite",
            quantize="int8",
            calibration=samples,
            io="int8",
            verify=False,
        )
        print(artifact.path)


if __name__ == "__main__":
    main()
