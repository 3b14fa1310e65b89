"""Samples of a model's inputs, in any of the forms people have them, sorted and checked."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.inputs import InputSpec, shape_text

Array = npt.NDArray[Any]

MAX_ITERATED_SAMPLES = 512
_UNNAMED = "arr_0"  # what NumPy calls an array that is saved without a name

_log = logging.getLogger(__name__)


def evenly_spaced(total: int, wanted: int) -> npt.NDArray[np.intp]:
    """Return `wanted` indices spread evenly over range(total), or all if there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.intp))


def batches(columns: Sequence[Array], size: int) -> Iterator[list[Array]]:
    """Yield batches of exactly `size` samples; the last is filled up from the first samples."""
    total = len(columns[0])
    for start in range(0, total, size):
        indices = np.arange(start, start + size) % total
        yield [column[indices] for column in columns]


def collect(source: Any, inputs: Sequence[InputSpec], name: str) -> list[Array]:
    """Sort samples of any accepted form into one array an input.

    Args:
      source: an array; a tuple or list (in the order of `inputs`) or a mapping by input name of
        arrays (a single input's may be called `x`; one of another name is taken, and told); or an
        iterable of batches of these, alone or as (x, y) or (x, y, sample_weight).
      inputs: what the model takes.
      name: of the source, for messages.

    Returns:
      One array (n, ...) an input; of an iterable, which may be endless, at most the first 512.

    Raises:
      InputError: the source has another form, holds nothing, or fails while it is read.
    """
    if isinstance(source, Mapping) or _is_array(source):
        taken = _taken(source, inputs) if isinstance(source, Mapping) else None
        if taken not in (None, _UNNAMED):
            _log.warning("%s: '%s' is taken for input '%s'", name, taken, inputs[0].name)
        return _one_batch(source, inputs, name)
    if isinstance(source, tuple | list):
        several = len(inputs) > 1 and len(source) == len(inputs)
        if (several or len(source) == 1) and all(_is_array(part) for part in source):
            return _one_batch(source, inputs, name)
    if not isinstance(source, Iterable):
        raise InputError(
            f"{name}: got {describe(source)}; supported: arrays, a tf.data.Dataset, an iterable "
            "of batches, a function that gives one of these, or a .npz, .npy or module:function"
        )
    read = _read(source, inputs, name)
    if not read:
        raise InputError(f"{name}: no samples; a hundred typical ones are a good number")
    columns: list[Array] = []
    for spec, parts in zip(inputs, zip(*read, strict=True), strict=True):
        if _is_sample(parts[0], spec):
            raise InputError(
                f"{name}: gives single samples of input '{spec.name}', of shape "
                f"{shape_text(parts[0].shape)}; give batches: dataset.batch(32) of a "
                "tf.data.Dataset, or sample[None]"
            )
        if len({part.shape[1:] for part in parts}) > 1 or not parts[0].ndim:
            raise InputError(f"{name}: the batches of input '{spec.name}' differ in shape")
        columns.append(np.concatenate(parts)[:MAX_ITERATED_SAMPLES])
    return columns


def _is_sample(values: Array, spec: InputSpec) -> bool:
    sample = spec.shape[1:]
    return values.ndim == len(sample) and all(
        want in (None, got) for want, got in zip(sample, values.shape, strict=True)
    )


def _read(source: Iterable[Any], inputs: Sequence[InputSpec], name: str) -> list[list[Array]]:
    read: list[list[Array]] = []
    count = 0
    try:
        for batch in source:
            read.append(_one_batch(batch, inputs, name))
            count += len(read[-1][0]) if read[-1][0].ndim else 1
            if count >= MAX_ITERATED_SAMPLES:
                break
    except EdgepruneError:
        raise
    except Exception as error:  # a generator of the user's may raise anything
        raise InputError(
            f"{name} failed after {count} samples: {type(error).__name__}: {error}"
        ) from error
    return read


def _one_batch(batch: Any, inputs: Sequence[InputSpec], name: str) -> list[Array]:
    if isinstance(batch, tuple | list) and not _fits(batch, inputs):
        # (x, y) or (x, y, sample_weight), as `fit` takes them: the targets are not needed.
        if len(batch) in (2, 3) and _fits(batch[0], inputs):
            batch = batch[0]
        else:
            raise InputError(
                f"{name}: got {len(batch)} arrays for {len(inputs)} "
                f"input{'s' * (len(inputs) > 1)} ({_names(inputs)}); give one array an input"
            )
    if isinstance(batch, Mapping):
        return [_named(batch, spec, inputs, name) for spec in inputs]
    if isinstance(batch, tuple | list):
        return [np.asarray(part) for part in batch]
    if len(inputs) > 1:
        raise InputError(
            f"{name}: got {describe(batch)} for {len(inputs)} inputs; "
            f"give one array for each of {_names(inputs)}"
        )
    return [np.asarray(batch)]


def _fits(batch: Any, inputs: Sequence[InputSpec]) -> bool:
    if isinstance(batch, tuple | list):
        return len(batch) == len(inputs) and all(_is_array(part) for part in batch)
    return isinstance(batch, Mapping) or (len(inputs) == 1 and _is_array(batch))


def _named(
    arrays: Mapping[Any, Any], spec: InputSpec, inputs: Sequence[InputSpec], name: str
) -> Array:
    if spec.name in arrays:
        return np.asarray(arrays[spec.name])
    if len(inputs) == 1:
        if "x" in arrays:
            return np.asarray(arrays["x"])
        if _taken(arrays, inputs) is not None:
            return np.asarray(next(iter(arrays.values())))
    found = ", ".join(f"'{key}'" for key in arrays) or "nothing"
    wanted = f"'{spec.name}'" + (" or 'x'" if len(inputs) == 1 else "")
    raise InputError(f"{name}: no array {wanted}; found: {found}")


def _taken(arrays: Mapping[Any, Any], inputs: Sequence[InputSpec]) -> Any | None:
    """Return the key of another name that a single input's array may have, if it is all there is.

    Targets are no samples.
    """
    if len(inputs) > 1 or len(arrays) != 1 or {"x", "y", inputs[0].name} & set(arrays):
        return None
    return next(iter(arrays))


def fit_inputs(
    columns: Sequence[Array], inputs: Sequence[InputSpec], name: str, *, integers_to_floats: bool
) -> list[Array]:
    """Check samples against a model's inputs, and cast them where no value changes its meaning.

    Args:
      columns: one array (n, ...) an input.
      inputs: what the model takes; a None in a shape takes any size.
      name: of the source, for messages.
      integers_to_floats: whether integer samples of a float input are cast.

    Returns:
      The arrays in the inputs' dtypes: float64 becomes float32, int64 int32 within its range.

    Raises:
      InputError: shapes, dtypes or numbers of samples do not fit, or there are NaN or infinities.
    """
    fitted = [
        _fit(column, spec, f"{name}: input '{spec.name}'", integers_to_floats)
        for column, spec in zip(columns, inputs, strict=True)
    ]
    if len({len(column) for column in fitted}) > 1:
        counts = zip(fitted, inputs, strict=True)
        listed = ", ".join(f"{len(column)} of '{spec.name}'" for column, spec in counts)
        raise InputError(f"{name}: every input needs as many samples as the others; got {listed}")
    return fitted


def _fit(values: Array, spec: InputSpec, where: str, integers_to_floats: bool) -> Array:
    sample = tuple(spec.shape[1:])
    if values.ndim != len(spec.shape) or any(
        want not in (None, got) for want, got in zip(sample, values.shape[1:], strict=True)
    ):
        raise InputError(
            f"{where} takes samples of shape {shape_text(sample)}, got an array of shape "
            f"{shape_text(values.shape)}; its first dimension must count the samples"
        )
    check_values(values, where)
    target = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    kinds = {"f": "fiub" if integers_to_floats else "f", "i": "iu", "u": "iu", "b": "b"}
    if values.dtype.kind not in kinds.get(target.kind, ""):
        hint = (
            "scale and cast them as for training, for example x.astype('float32') / 255"
            if target.kind == "f"
            else f"cast them to {target} as for training"
        )
        raise InputError(f"{where} takes {spec.dtype}, got {values.dtype}; {hint}")
    low, high = values.min(), values.max()
    limits = (
        np.iinfo(target)
        if target.kind in "iu"
        else np.finfo(target)
        if target.kind == "f"
        else None
    )
    if limits is not None and (low < limits.min or high > limits.max):
        raise InputError(f"{where} takes {target}, got values from {low:g} to {high:g}; scale them")
    return values.astype(target, copy=False)


def check_values(values: Array, where: str) -> None:
    """Check that an array holds samples of finite numbers.

    Raises:
      InputError: it has no dimension, no entry, no numbers, or NaN or infinite ones.
    """
    if values.ndim == 0:
        raise InputError(f"{where} is a single number; an array of samples is needed")
    if values.size == 0:
        raise InputError(f"{where} is empty (shape {shape_text(values.shape)}); samples are needed")
    if values.dtype.kind not in "fiub":
        raise InputError(f"{where} is of dtype {values.dtype}; supported: numbers")
    if values.dtype.kind == "f" and (bad := values.size - int(np.isfinite(values).sum())):
        raise InputError(
            f"{where} holds {bad} NaN or infinite values of {values.size}; remove or repair them"
        )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, np.generic)


def describe(value: Any) -> str:
    """Say in a few words what a value is, for messages."""
    if _is_array(value):
        return f"an array of shape {shape_text(np.asarray(value).shape)}"
    return f"{type(value).__name__}"


def _names(inputs: Sequence[InputSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in inputs)
