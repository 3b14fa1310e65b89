"""The four MLPerf Tiny reference models, built untrained with either Keras flavour.

Each builder takes the module, `keras` or `tf_keras`, whose layers to use; Keras 3 by default.
Shapes, strides and padding are those of github.com/mlcommons/tiny,
benchmark/training/*/keras_model.py; regularizers, initializers and dropout are left out.
"""

from typing import Any

from edgeprune.models import import_keras


def build_resnet8(keras: Any = None, classes: int = 10) -> Any:
    """ResNet-8 for 32x32x3 images (CIFAR-10 has 10 classes)."""
    keras = keras or import_keras()
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = _normalized(keras, layers.Conv2D(16, 3, padding="same"), inputs)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = _normalized(keras, layers.Conv2D(filters, 3, strides=stride, padding="same"), x)
        y = _normalization(keras)(layers.Conv2D(filters, 3, padding="same")(y))
        if stride > 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="resnet8")


def build_ds_cnn(keras: Any = None, classes: int = 12) -> Any:
    """Depthwise-separable CNN for 49x10 MFCC features of one second of speech (keywords)."""
    keras = keras or import_keras()
    layers = keras.layers
    inputs = keras.Input((49, 10, 1))
    x = _normalized(keras, layers.Conv2D(64, (10, 4), strides=2, padding="same"), inputs)
    for _ in range(4):
        x = _normalized(keras, layers.DepthwiseConv2D(3, padding="same"), x)
        x = _normalized(keras, layers.Conv2D(64, 1, padding="same"), x)
    x = layers.Flatten()(layers.AveragePooling2D((25, 5))(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="ds_cnn")


def build_mobilenet_v1(keras: Any = None) -> Any:
    """MobileNetV1 of width 0.25 for 96x96x3 images (person or no person)."""
    keras = keras or import_keras()
    layers = keras.layers
    inputs = keras.Input((96, 96, 3))
    x = _normalized(keras, layers.Conv2D(8, 3, strides=2, padding="same"), inputs)
    blocks = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2)]
    blocks += [(128, 1)] * 5 + [(256, 2), (256, 1)]
    for filters, stride in blocks:
        depthwise = layers.DepthwiseConv2D(3, strides=stride, padding="same")
        x = _normalized(keras, depthwise, x)
        x = _normalized(keras, layers.Conv2D(filters, 1, padding="same"), x)
    x = layers.Flatten()(layers.AveragePooling2D(3)(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x), name="mobilenet_v1")


def build_autoencoder(keras: Any = None) -> Any:
    """Autoencoder 640-128x4-8-128x4-640 for anomalous machine sounds."""
    keras = keras or import_keras()
    layers = keras.layers
    inputs = keras.Input((640,))
    x = inputs
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = _normalized(keras, layers.Dense(units), x)
    return keras.Model(inputs, layers.Dense(640)(x), name="autoencoder")


def _normalized(keras: Any, layer: Any, x: Any) -> Any:
    return keras.layers.ReLU()(_normalization(keras)(layer(x)))


def _normalization(keras: Any) -> Any:
    # Keras's momentum of 0.99 needs a thousand steps to forget how the statistics began.
    return keras.layers.BatchNormalization(momentum=0.9)
