"""Make the dictionary that packed files share: what .tflite files hold beside their weights.

    python tools/make_pack_dictionary.py [-o FILE]

Converts a few small models of common layers, none of them one that `tools/bench/pack_size.py`
measures, and joins what is left of the files without their weights. The result is part of the
format of packed files: a new one needs a new version of the format.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from edgeprune.export.convert import convert
from edgeprune.export.packing.arrays import find_arrays
from edgeprune.export.packing.container import between_arrays
from edgeprune.export.tflite import read
from edgeprune.models import import_keras

PLACE = Path(__file__).parents[1] / "edgeprune" / "export" / "packing" / "dictionary.bin"


def sequence(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((24, 6))
    x = layers.Conv1D(12, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling1D(2)(x)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 6)(y, y)])
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(16, activation="gelu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x), name="sequence")


def decoder(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(12, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, y])
    x = layers.UpSampling2D()(x)
    x = layers.Conv2DTranspose(6, 2, strides=2, activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x), name="decoder")


def inverted(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((20, 20, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    for width in (8, 12):
        y = layers.Conv2D(24, 1, padding="same", use_bias=False)(x)
        y = layers.ReLU(6)(layers.BatchNormalization()(y))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = layers.ReLU(6)(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if x.shape[-1] == width else y
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x), name="inverted")


def convolutions(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((20, 20, 1))
    x = inputs
    for width in (8, 16):
        x = layers.Conv2D(width, 3, activation="relu")(x)
        x = layers.Conv2D(width, 3, padding="same")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Dense(24, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x), name="convolutions")


def dense(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((12,))
    x = layers.Dense(20, activation="relu")(inputs)
    x = layers.Dense(20, activation="tanh")(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="dense")


SIZE = 16_384  # twice as much made packed models smaller by 1 %

# zstd finds the last cheapest: what is commonest comes last.
SAMPLES = (
    (sequence, "dynamic"),
    (decoder, "float16"),
    (decoder, "int8"),
    (dense, "none"),
    (sequence, "none"),
    (convolutions, "none"),
    (inverted, "none"),
    (dense, "int8"),
    (convolutions, "int8"),
    (inverted, "int8"),
)


def dictionary() -> bytes:
    keras = import_keras()
    rng = np.random.default_rng(0)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for build, mode in SAMPLES:
            keras.backend.clear_session()
            keras.utils.set_random_seed(0)
            model = build(keras)
            samples = rng.normal(size=(16, *model.input_shape[1:])).astype(np.float32)
            output = Path(folder, "model.tflite")
            convert(model, output, quantize=mode, calibration=samples, sparse="off", verify=False)
            content = output.read_bytes()
            parts.append(between_arrays(content, find_arrays(read(content))))
    return b"".join(parts)[-SIZE:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=PLACE)
    arguments = parser.parse_args()
    content = dictionary()
    arguments.output.write_bytes(content)
    print(f"{arguments.output}: {len(content)} bytes")


if __name__ == "__main__":
    main()
