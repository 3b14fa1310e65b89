"""Rewrite the padding of MobileNet-like models so that XNNPACK runs their zeros as sparse work.

Its sparse path takes a 3x3 stride-2 convolution of 3 channels at the start and 3x3 or 5x5
depthwise ones inside, padded explicitly and alike on every side. Keras pads such layers one side
more than the other where their stride is 2, by 'same' or by a ZeroPadding2D before them.

Source: google/XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility`.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeprune.rebuild import calls, copied, copy_weights, is_container, keras, rebuild
from edgeprune.structure.graph import check_model

# What keeps the layout or leaves no trace in the file. Others are named, never touched.
_NAMES = """
Activation ActivityRegularization Add BatchNormalization Dense Dropout ELU Flatten GaussianDropout
GaussianNoise GlobalAveragePooling2D InputLayer LeakyReLU Multiply ReLU Rescaling Reshape Softmax
SpatialDropout2D UpSampling2D ZeroPadding2D
"""
_INSIDE = frozenset(_NAMES.split())


class FineTuningNeededWarning(UserWarning):
    """A model was changed so that it computes something slightly different."""


@dataclass(frozen=True)
class PaddingPlan:
    """What would be rewritten.

    Attributes:
      rewritten: names of the layers that would pad alike on every side.
      left: (layer, why) of those that stand in the way and cannot be rewritten.
    """

    rewritten: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


@dataclass(eq=False)
class _Found:
    padded: dict[int, int]  # id of a convolution -> padding to put before it
    paddings: dict[int, int]  # id of a ZeroPadding2D -> padding that it shall have
    names: list[str]
    left: list[tuple[str, str]]


def plan_sparse_eligible(model: Any) -> PaddingPlan:
    """Say what `make_sparse_eligible` would rewrite, and what it cannot. Nothing is changed.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included.

    Raises:
      UnsupportedError: a subclassed or tf_keras model.
      InputError: it has no weights yet.
    """
    check_model(model)
    found = _find(model)
    return PaddingPlan(tuple(found.names), tuple(found.left))


def make_sparse_eligible(model: Any) -> Any:
    """Return a copy whose convolutions pad as XNNPACK's sparse inference asks for.

    Stride-2 convolutions that pad by 'same', or by a ZeroPadding2D of one side less before them,
    get an explicit padding of half their kernel on every side. Shapes and weights stay. **Outputs
    change, slightly: fine-tune the model afterwards**, since each rewritten layer looks at
    positions one pixel away from those that it was trained on. A warning says so, and names the
    layers; it also names what stands in the way and cannot be rewritten, such as another kind of
    layer. `edgeprune advise` tells of the result whether it qualifies.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included; unchanged.

    Returns:
      A new model, not compiled.

    Raises:
      UnsupportedError: a subclassed or tf_keras model, or a layer cannot be made again from its
        config.
      InputError: the model has no weights yet.

    Source: google/XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility`.
    """
    check_model(model)
    found = _find(model)
    pairs: list[tuple[Any, Any]] = []
    taken = {layer.name for container in _containers(model) for layer in container.layers}

    def replace(layer: Any) -> Any:
        if id(layer) in found.paddings:
            return _with(layer, padding=found.paddings[id(layer)])
        new = _with(layer, padding="valid") if id(layer) in found.padded else copied(layer)
        pairs.append((layer, new))
        return new

    def before(container: Any, layer: Any, call: int, given: Any) -> Any:
        if id(layer) not in found.padded:
            return None
        name = base = f"{layer.name}_pad"
        number = 0
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        return keras.layers.ZeroPadding2D(
            found.padded[id(layer)], data_format=layer.data_format, name=name
        )

    new = rebuild(model, replace, before=before)
    copy_weights(pairs)
    _warn(model, found)
    return new


def _warn(model: Any, found: _Found) -> None:
    parts = []
    if found.names:
        parts.append(
            f"padding was rewritten in {', '.join(found.names)}: outputs change slightly, so "
            "fine-tune the model"
        )
    if found.left:
        named = "; ".join(f"{name} {why}" for name, why in found.left)
        parts.append(f"in the way of sparse inference, and left as it was: {named}")
    if parts:
        # Attributed to whoever called make_sparse_eligible.
        warnings.warn(
            f"model '{model.name}': {'. '.join(parts)}", FineTuningNeededWarning, stacklevel=3
        )


def _find(model: Any) -> _Found:
    found = _Found({}, {}, [], [])
    seen: set[int] = set()
    readers: dict[int, int] = {}
    for _, tensors in _steps(model):
        for tensor in tensors:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    ends = False
    for layer, tensors in _steps(model):
        if id(layer) in seen or not tensors:
            continue
        seen.add(id(layer))
        ends = ends or isinstance(layer, keras.layers.GlobalAveragePooling2D)
        given = tensors[0]
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            why = _depthwise(layer)
        elif type(layer) is keras.layers.Conv2D:
            if _size(layer) == (1, 1):
                why = "" if _stride(layer) == (1, 1) else "is 1x1 with a stride; it must be 1"
                if why:
                    found.left.append((layer.name, why))
                continue
            why = _start(layer, given)
        elif len(getattr(given, "shape", ())) == 4 and type(layer).__name__ not in _INSIDE:
            found.left.append((layer.name, f"({type(layer).__name__}) has no sparse form"))
            continue
        else:
            continue
        why = why or _rewrite(layer, given, readers, found)
        if why:
            found.left.append((layer.name, why))
    if not ends:
        why = "has no GlobalAveragePooling2D for the sparse part to end in"
        found.left.append((model.name, why))
    return found


def _start(layer: Any, given: Any) -> str:
    size = "x".join(map(str, _size(layer)))
    if _size(layer) != (3, 3) or given.shape[-1] != 3:
        return f"is {size}; only 1x1, and 3x3 of 3 channels at the start, have a sparse form"
    if _stride(layer) != (2, 2):
        return f"has stride {_stride(layer)[0]}; the first convolution must have stride 2"
    return _common(layer)


def _depthwise(layer: Any) -> str:
    if _size(layer) not in ((3, 3), (5, 5)) or _stride(layer) not in ((1, 1), (2, 2)):
        return "must be 3x3 or 5x5 with stride 1 or 2"
    if layer.depth_multiplier != 1:
        return f"has depth multiplier {layer.depth_multiplier}; it must be 1"
    return _common(layer)


def _common(layer: Any) -> str:
    if tuple(layer.dilation_rate) != (1, 1) or getattr(layer, "groups", 1) != 1:
        return "is dilated or grouped"
    return "" if layer.data_format == "channels_last" else "has its channels first"


def _rewrite(layer: Any, given: Any, readers: dict[int, int], found: _Found) -> str:
    """Note how a layer is to pad; return why it cannot, or nothing."""
    wanted = _size(layer)[0] // 2
    if layer.padding == "same":
        if _stride(layer) == (2, 2):  # at stride 1 'same' is what is wanted
            found.padded[id(layer)] = wanted
            found.names.append(layer.name)
        return ""
    padding = given._keras_history.operation
    if not isinstance(padding, keras.layers.ZeroPadding2D):
        return f"does not pad; padding {wanted} on every side would change its output's shape"
    amounts = tuple(tuple(pair) for pair in padding.padding)
    if amounts == ((wanted, wanted),) * 2:
        return ""
    if len(padding._inbound_nodes) > 1 or readers[id(given)] > 1:
        return f"shares its padding '{padding.name}' with others"
    for size, (first, last) in zip(given.shape[1:3], amounts, strict=True):
        if size is None:
            return "takes images of any size, whose output's shape might change"
        inside, kernel, stride = size - first - last, _size(layer)[0], _stride(layer)[0]
        if (size - kernel) // stride != (inside + 2 * wanted - kernel) // stride:
            return f"pads ({first},{last}); {wanted} on every side would change its output's shape"
    found.paddings[id(padding)] = wanted
    found.names.append(layer.name)
    return ""


def _steps(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield (layer, its input tensors) through nested models, a call at a time."""
    for container in _containers(model):
        inner = container._functional if isinstance(container, keras.Sequential) else container
        for node, _ in calls(inner):
            if not is_container(node.operation):
                yield node.operation, list(node.input_tensors)


def _containers(model: Any) -> list[Any]:
    found = [model]
    for container in found:
        found += [layer for layer in container.layers if is_container(layer)]
    return list({id(container): container for container in found}.values())


def _size(layer: Any) -> tuple[int, ...]:
    return tuple(layer.kernel_size)


def _stride(layer: Any) -> tuple[int, ...]:
    return tuple(layer.strides)


def _with(layer: Any, **changes: Any) -> Any:
    return type(layer).from_config({**layer.get_config(), **changes})
