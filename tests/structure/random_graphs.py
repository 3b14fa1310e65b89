"""Random Functional graphs, each read off a list of whole numbers, so that hypothesis shrinks it.

A step takes one of the tensors made so far and adds to it what networks are made of: convolutions
of every kind, residual and dense connections, squeeze-and-excite, attention, recurrent layers,
shared layers, nested models, arithmetic; several inputs and outputs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgeprune.models import import_keras

keras = import_keras()
layers = keras.layers
ops = keras.ops

_CHANNELS = (4, 6, 8, 12)
_ACTIVATIONS = ("relu", "sigmoid", "tanh", "silu", "softplus")


class _Numbers:
    """Reads numbers off the list; zeros after its end."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers: Iterator[int] = iter(numbers)

    def below(self, bound: int) -> int:
        return next(self._numbers, 0) % bound

    def of(self, choices: Any) -> Any:
        return choices[self.below(len(choices))]

    def channels(self) -> int:
        return self.of(_CHANNELS)


def random_model(numbers: list[int], steps: int) -> Any:
    """Build the model that `numbers` spell.

    Args:
      numbers: what is chosen at each turn, modulo the number of choices.
      steps: how many steps to take.
    """
    pick = _Numbers(numbers)
    inputs = [_input(pick, index) for index in range(1 + pick.below(2))]
    tensors = list(inputs)
    for _ in range(steps):
        # Late tensors are taken more often, so that graphs get deep and early ones are read twice.
        x = tensors[-1 - pick.below(min(3, len(tensors)))]
        tensors.append(pick.of(_STEPS[len(x.shape)])(pick, x, tensors))
    outputs = _outputs(pick, tensors, inputs)
    return keras.Model(inputs, outputs)


def _input(pick: _Numbers, index: int) -> Any:
    shape = pick.of(((8, 8, 3), (6, 4), (5,)))
    return keras.Input(shape, name=f"input_{index}")


def _outputs(pick: _Numbers, tensors: list[Any], inputs: list[Any]) -> list[Any]:
    """End every input's path in an output; sometimes let an inner tensor be one too."""
    ends = [_head(pick, tensor) for tensor in (*inputs, tensors[-1])]
    if pick.below(4) == 1:
        ends.append(tensors[-1 - pick.below(len(tensors))])
    return ends


def _head(pick: _Numbers, x: Any) -> Any:
    if len(x.shape) == 4:
        x = pick.of((layers.GlobalAveragePooling2D, layers.Flatten, layers.GlobalMaxPooling2D))()(x)
    elif len(x.shape) == 3:
        x = pick.of((layers.GlobalAveragePooling1D, layers.Flatten))()(x)
    return layers.Dense(3)(x)


def _activation(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.Activation(pick.of(_ACTIVATIONS))(x)


def _prelu(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    shared = list(range(1, len(x.shape) - 1)) if pick.below(2) else None
    return layers.PReLU(shared_axes=shared)(x)


def _batch_norm(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.BatchNormalization(scale=pick.below(4) != 1, center=pick.below(4) != 1)(x)


def _layer_norm(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return pick.of((layers.LayerNormalization, layers.RMSNormalization))()(x)


def _group_norm(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    channels = x.shape[-1]
    return layers.GroupNormalization(pick.of([g for g in (1, 2, 3, -1) if channels % g == 0]))(x)


def _dropout(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.Dropout(0.1)(x)


def _dense(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    activation = pick.of((None, *_ACTIVATIONS))
    return layers.Dense(pick.channels(), activation=activation, use_bias=pick.below(4) != 1)(x)


def _residual(inner: Callable[[_Numbers, Any], Any]) -> Callable[..., Any]:
    def step(pick: _Numbers, x: Any, _: list[Any]) -> Any:
        branch = inner(pick, inner(pick, x))
        if branch.shape[-1] != x.shape[-1]:
            branch = (
                layers.Conv2D(x.shape[-1], 1)(branch)
                if len(x.shape) == 4
                else layers.Dense(x.shape[-1])(branch)
            )
        merged = pick.below(4)
        if merged == 0:
            return layers.Add()([x, branch])
        if merged == 1:
            return x + branch
        if merged == 2:
            return layers.Maximum()([x, branch])
        return ops.subtract(x, branch * 0.5)

    return step


def _concat(inner: Callable[[_Numbers, Any], Any]) -> Callable[..., Any]:
    def step(pick: _Numbers, x: Any, _: list[Any]) -> Any:
        branches = [x] if pick.below(2) else []
        branches += [inner(pick, x) for _ in range(2)]
        return layers.Concatenate()(branches)

    return step


def _conv(pick: _Numbers, x: Any) -> Any:
    return layers.Conv2D(
        pick.channels(),
        pick.of((1, 3)),
        padding="same",
        activation=pick.of((None, *_ACTIVATIONS)),
        use_bias=pick.below(4) != 1,
    )(x)


def _linear(pick: _Numbers, x: Any) -> Any:
    return _dense(pick, x, [])


def _strided(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    if x.shape[1] < 3:
        return _conv(pick, x)
    return layers.Conv2D(pick.channels(), 3, strides=2, padding="same")(x)


def _one_conv(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return _conv(pick, x)


def _grouped(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    groups = pick.of([g for g in (2, 3, 4, 6) if x.shape[-1] % g == 0] or [1])
    return layers.Conv2D(groups * pick.of((1, 2, 4)), 3, padding="same", groups=groups)(x)


def _depthwise(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1 + pick.below(2))(x)


def _separable(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.SeparableConv2D(pick.channels(), 3, padding="same")(x)


def _transposed(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    if x.shape[1] > 8:
        return _conv(pick, x)
    return layers.Conv2DTranspose(pick.channels(), 3, strides=2, padding="same")(x)


def _pooled(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    if x.shape[1] < 2:
        return layers.ZeroPadding2D(1)(x)
    return pick.of((layers.MaxPooling2D, layers.AveragePooling2D))(2)(x)


def _padded(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return pick.of((layers.ZeroPadding2D, layers.UpSampling2D))(1)(x)


def _squeeze_excite(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    channels = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=pick.below(2) == 1)(x)
    if len(gate.shape) == 2:
        gate = layers.Reshape((1, 1, channels))(gate)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation="sigmoid")(gate)])


def _to_sequence(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)


def _to_vector(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    if len(x.shape) == 4:
        return pick.of((layers.GlobalAveragePooling2D, layers.Flatten))()(x)
    return pick.of((layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D, layers.Flatten))()(x)


def _to_image(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    x = layers.Dense(4 * pick.channels(), activation="relu")(x)
    return layers.Reshape((2, 2, x.shape[-1] // 4))(x)


def _attention(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    attend = layers.MultiHeadAttention(pick.of((1, 2, 4)), pick.of((2, 4)))
    made = attend(x, x)
    return layers.Add()([x, made]) if pick.below(2) else made


def _cross_attention(pick: _Numbers, x: Any, tensors: list[Any]) -> Any:
    others = [tensor for tensor in tensors if len(tensor.shape) == 3]
    return layers.MultiHeadAttention(2, 3, value_dim=pick.of((None, 2)))(x, pick.of(others))


def _recurrent(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    kind = pick.of((layers.LSTM, layers.GRU, layers.SimpleRNN))
    layer = kind(pick.channels(), return_sequences=True)
    if pick.below(2):
        layer = layers.Bidirectional(layer, merge_mode=pick.of(("concat", "sum", "mul", "ave")))
    return layer(x)


def _conv_1d(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.Conv1D(pick.channels(), 3, padding="same")(x)


def _einsum(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.EinsumDense("abc,cd->abd", (x.shape[1], pick.channels()), bias_axes="d")(x)


def _distributed(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    return layers.TimeDistributed(layers.Dense(pick.channels()))(x)


def _constant(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    values = np.linspace(0.5, 1.5, x.shape[-1], dtype=np.float32)
    return pick.of((lambda: x * values, lambda: x + values, lambda: 1.0 - x, lambda: x / 2.0))()


def _shared(pick: _Numbers, x: Any, tensors: list[Any]) -> Any:
    """Call one Dense layer on two tensors of one size, and join them."""
    others = [t for t in tensors if t is not x and t.shape[1:] == x.shape[1:]]
    other = pick.of(others) if others else layers.Activation("tanh")(x)
    layer = layers.Dense(pick.channels(), activation="relu")
    joined = pick.of((layers.Add, layers.Concatenate, layers.Multiply))
    return joined()([layer(x), layer(other)])


def _nested(pick: _Numbers, x: Any, _: list[Any]) -> Any:
    """Put a small model of its own around the next step; sometimes call it twice."""
    source = keras.Input(x.shape[1:])
    make = _conv if len(x.shape) == 4 else _linear
    hidden = make(pick, source)
    if pick.below(2):
        hidden = layers.BatchNormalization()(hidden)
    if pick.below(3) == 0:
        projected = (
            layers.Conv2D(x.shape[-1], 1) if len(x.shape) == 4 else layers.Dense(x.shape[-1])
        )(hidden)
        inner = keras.Model(source, layers.Add()([source, projected]))
        return inner(inner(x)) if pick.below(2) else inner(x)
    if pick.below(3) == 0:
        inner = keras.Sequential(
            [keras.Input(x.shape[1:]), layers.Dense(pick.channels()), layers.Activation("relu")]
        )
        return inner(x)
    return keras.Model(source, hidden)(x)


_ANY = (_activation, _batch_norm, _layer_norm, _prelu, _dropout, _constant, _shared, _nested)
_STEPS: dict[int, tuple[Callable[..., Any], ...]] = {
    4: (
        *(_one_conv, _residual(_conv), _concat(_conv), _squeeze_excite, _grouped, _depthwise),
        *(_separable, _transposed, _strided, _pooled, _padded, _group_norm, _dense),
        *(_to_sequence, _to_vector, *_ANY),
    ),
    3: (
        *(_dense, _residual(_linear), _concat(_linear), _attention, _cross_attention, _recurrent),
        *(_conv_1d, _einsum, _distributed, _group_norm, _to_vector, *_ANY),
    ),
    2: (_dense, _residual(_linear), _concat(_linear), _to_image, *_ANY),
}
