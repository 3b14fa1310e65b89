"""Small models with residual blocks, of every form that the literature gives them."""

from typing import Any

from edgeprune.models import import_keras

keras = import_keras()
layers = keras.layers


def _conv(x: Any, filters: int, stride: int = 1, size: int = 3) -> Any:
    x = layers.Conv2D(filters, size, stride, "same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def resnet_v1() -> Any:
    """Two stages of 3 blocks, ReLU after each addition; each stage begins with a projection."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(_conv(x, 4))
    for stage, filters in enumerate((6, 8)):
        for block in range(3):
            stride = 2 if block == 0 else 1
            f = layers.ReLU()(_conv(x, filters, stride))
            f = _conv(f, filters)
            skip = _conv(x, filters, stride, 1) if block == 0 else x
            x = layers.Add(name=f"stage{stage}_block{block}")([skip, f])
            x = layers.ReLU()(x)
    return _classifier(inputs, layers.GlobalAveragePooling2D()(x))


def resnet_v2() -> Any:
    """Four pre-activation blocks, of which the second halves the image."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same")(x)
    for block in range(4):
        stride = 2 if block == 1 else 1
        h = layers.ReLU()(layers.BatchNormalization()(x))
        f = layers.Conv2D(6, 3, stride, "same")(h)
        f = layers.ReLU()(layers.BatchNormalization()(f))
        f = layers.Conv2D(6, 3, padding="same")(f)
        skip = layers.Conv2D(6, 1, 2)(h) if stride == 2 else x
        x = layers.Add(name=f"block{block}")([f, skip])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return _classifier(inputs, layers.GlobalAveragePooling2D()(x))


def mobilenet_v2() -> Any:
    """Inverted residuals with squeeze-and-excite and stochastic depth: 3 of 5 keep the shape."""
    x = inputs = keras.Input((8, 8, 3))
    x = _conv(x, 4)
    for block, (filters, stride) in enumerate(((4, 1), (6, 2), (6, 1), (6, 1), (8, 1))):
        channels = x.shape[-1]
        f = layers.ReLU(6.0)(_conv(x, 2 * channels, size=1))
        f = layers.DepthwiseConv2D(3, stride, "same")(f)
        f = layers.ReLU(6.0)(layers.BatchNormalization()(f))
        gate = layers.GlobalAveragePooling2D(keepdims=True)(f)
        gate = layers.Conv2D(2 * channels, 1, activation="sigmoid")(gate)
        f = _conv(layers.Multiply()([f, gate]), filters, size=1)
        if stride == 1 and channels == filters:
            f = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(f)
            f = layers.Add(name=f"block{block}")([x, f])
        x = f
    return _classifier(inputs, layers.GlobalAveragePooling2D()(x))


def encoder_layer(x: Any, name: str, post_norm: bool = False, **attention: Any) -> Any:
    """One encoder layer, with the addition as a layer or by ``+``."""

    def norm(x: Any, which: str) -> Any:
        return layers.LayerNormalization(name=f"{name}_{which}")(x)

    h = x if post_norm else norm(x, "norm1")
    h = layers.MultiHeadAttention(2, 4, name=f"{name}_attention")(h, h, **attention)
    x = layers.Add(name=f"{name}_add1")([x, layers.Dropout(0.1, name=f"{name}_dropout")(h)])
    x = h = norm(x, "norm1") if post_norm else x
    h = h if post_norm else norm(x, "norm2")
    h = layers.Dense(12, activation="gelu", name=f"{name}_up")(h)
    x = layers.Add(name=f"{name}_add2")([layers.Dense(8, name=f"{name}_down")(h), x])
    return norm(x, "norm2") if post_norm else x


def transformer(names: tuple[str, ...] = ("e0", "e1", "e2", "e3"), post_norm: bool = False) -> Any:
    """An encoder of one layer for each name; a pre-norm one ends with a normalization."""
    x = inputs = keras.Input((5, 8))
    x = layers.Dense(8, name="embed")(x)
    for name in names:
        x = encoder_layer(x, name, post_norm)
    if not post_norm:
        x = layers.LayerNormalization(name="final_norm")(x)
    return _classifier(inputs, layers.GlobalAveragePooling1D(name="pool")(x))


def residual_model(name: str, size: int = 8) -> Any:
    """A nested model that is one residual block."""
    inputs = keras.Input((size,))
    f = layers.Dense(size, activation="relu", name="dense")(inputs)
    return keras.Model(inputs, layers.Add(name="add")([inputs, f]), name=name)


def nested() -> Any:
    """Blocks that are nested models, hold nested models, or lie in one beside other layers."""
    x = inputs = keras.Input((8,))
    x = layers.Dense(8, name="first")(x)
    x = residual_model("whole")(x)
    branch = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(8)], name="branch")
    x = layers.Add(name="outer")([x, branch(x)])
    inner = keras.Input((8,))
    y = layers.Dense(8, activation="tanh")(inner)
    y = layers.Add(name="add")([y, layers.Dense(8)(y)])
    x = keras.Model(inner, layers.Dense(8)(y), name="part")(x)
    return _classifier(inputs, x)


def sequential_of_nested() -> Any:
    """A Sequential model of nested residual models, one of them Sequential itself."""
    pair = keras.Sequential([residual_model("c"), residual_model("d")], name="pair")
    return keras.Sequential(
        [
            keras.Input((8,)),
            residual_model("a"),
            layers.Dense(8, name="between"),
            residual_model("b"),
            pair,
            layers.Dense(3, name="logits"),
        ]
    )


def _classifier(inputs: Any, x: Any) -> Any:
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))
