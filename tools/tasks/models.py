"""The small models that the tasks are learned with: untrained, uncompiled, stock layers only.

Every one ends in a softmax over the classes. The MLPerf Tiny models are in `reference_models`.
"""

from collections.abc import Sequence
from typing import Any

from edgeprune.models import import_keras


def build_lenet300(classes: int = 10, dropout: float = 0.0, l1: float = 0.0) -> Any:
    """LeNet-300-100 for 28x28x1 images: 266,610 parameters (Han 2016, arXiv:1510.00149).

    Args:
      classes: of the images.
      dropout: fraction of the units of hidden dense layers that a training step leaves out.
      l1: factor of the hidden layers' absolute weights in the loss.
    """
    return build_mlp((28, 28, 1), (300, 100), classes, "lenet300", dropout, l1)


def build_lenet5(classes: int = 10, dropout: float = 0.0, l1: float = 0.0) -> Any:
    """LeNet-5 for 28x28x1 images in Caffe's shapes: 431,080 parameters (Han 2016).

    As in Caffe's `lenet.prototxt`, only the first dense layer has an activation.

    Args:
      classes, dropout, l1: as of `build_lenet300`.
    """
    keras = import_keras()
    layers = keras.layers
    inputs = keras.Input((28, 28, 1))
    regular = {"kernel_regularizer": keras.regularizers.L1(l1)} if l1 else {}
    x = layers.MaxPooling2D()(layers.Conv2D(20, 5, name="conv1", **regular)(inputs))
    x = layers.MaxPooling2D()(layers.Conv2D(50, 5, name="conv2", **regular)(x))
    x = layers.Dense(500, activation="relu", name="ip1", **regular)(layers.Flatten()(x))
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, _head(keras, classes)(x), name="lenet5")


def build_cnn1d(classes: int = 10, filters: int = 25) -> Any:
    """CNN for MNIST-1D, (40, 1): the paper's three convolutions (arXiv:2011.14439)."""
    keras = import_keras()
    inputs = keras.Input((40, 1))
    x = inputs
    for kernel in (5, 3, 3):
        convolution = keras.layers.Conv1D(filters, kernel, strides=2, padding="same")
        x = keras.layers.ReLU()(convolution(x))
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, _head(keras, classes)(x), name="cnn1d")


def build_mlp(
    shape: Sequence[int],
    hidden: Sequence[int] = (100, 100),
    classes: int = 10,
    name: str = "mlp",
    dropout: float = 0.0,
    l1: float = 0.0,
) -> Any:
    """Dense layers on samples of any shape, flattened; dropout and l1 as of `build_lenet300`."""
    keras = import_keras()
    inputs = keras.Input(tuple(shape))
    x = keras.layers.Flatten()(inputs)
    regular = {"kernel_regularizer": keras.regularizers.L1(l1)} if l1 else {}
    for place, units in enumerate(hidden, start=1):
        x = keras.layers.Dense(units, activation="relu", name=f"ip{place}", **regular)(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, _head(keras, classes)(x), name=name)


def build_keyword_transformer(
    classes: int = 12,
    shape: tuple[int, int] = (49, 10),
    width: int = 64,
    heads: int = 4,
    blocks: int = 4,
    hidden: int = 128,
) -> Any:
    """Keyword transformer: each frame of features is a patch in time (Berg 2021, arXiv:2104.00769).

    Normalization comes before attention and before the dense layers, where the paper has it
    after, and the mean over time takes the place of a class token: so whole blocks can leave.

    Args:
      classes: words.
      shape: frames, coefficients; inputs are (n, frames, coefficients, 1).
      width: of the residual stream.
      heads: in each attention; each is width // heads wide.
      blocks: attention and dense layers, each with its residual connection.
      hidden: units between the two dense layers of a block.
    """
    keras = import_keras()
    layers = keras.layers
    inputs = keras.Input((*shape, 1))
    x = layers.Reshape(shape)(inputs)
    # A bias for every frame and channel is what adding learned position embeddings comes to.
    x = layers.EinsumDense(
        "btc,cd->btd",
        output_shape=(shape[0], width),
        bias_axes="td",
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name="embedding",
    )(x)
    for block in range(blocks):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block{block}_norm1")(x)
        attention = layers.MultiHeadAttention(heads, width // heads, name=f"block{block}_attention")
        x = layers.Add(name=f"block{block}_add1")([x, attention(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block{block}_norm2")(x)
        y = layers.Dense(hidden, activation="gelu", name=f"block{block}_dense1")(y)
        y = layers.Dense(width, name=f"block{block}_dense2")(y)
        x = layers.Add(name=f"block{block}_add2")([x, y])
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, _head(keras, classes)(x), name="keyword_transformer")


def _head(keras: Any, classes: int) -> Any:
    return keras.layers.Dense(classes, activation="softmax", name="classes")
