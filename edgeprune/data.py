"""Training and calibration data: from memory, .npz, .npy or `module:function`, checked."""

import importlib
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError

Array = npt.NDArray[Any]

MAX_CALIBRATION_SAMPLES = 512
_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
      name: unique within the model.
      shape: with the batch dimension first; None where a dimension is free.
      dtype: NumPy's name, or ``bfloat16`` or ``string``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data to train and to validate on.

    Attributes:
      x: (n, ...) inputs.
      y: (n, ...) targets.
      x_val: (m, ...) inputs that are never trained on.
      y_val: (m, ...) their targets.
      validation: where the validation data came from, in words.
    """

    x: Array
    y: Array
    x_val: Array
    y_val: Array
    validation: str


def load_training_data(spec: str | Path) -> Dataset:
    """Load training data from a spec.

    Args:
      spec: an .npz file with `x` and `y`, or ``module:function``, which returns a mapping with
        these keys, (x, y), (x, y, x_val, y_val), or ((x, y), (x_val, y_val)). Validation data are
        `x_val` and `y_val`, or `x_test` and `y_test`; without them every 10th sample, the first
        included, is held out of the training data.

    Raises:
      InputError: the spec cannot be loaded, or its arrays do not belong together.
    """
    arrays = _training_arrays(_load(str(spec)), str(spec))
    for key, value in arrays.items():
        _check_values(value, f"{spec}: '{key}'")
    _check_lengths(arrays, "x", "y", str(spec))
    for suffix in ("val", "test"):
        keys = (f"x_{suffix}", f"y_{suffix}")
        given = [key for key in keys if key in arrays]
        if len(given) == 1:
            missing = next(key for key in keys if key not in arrays)
            raise InputError(f"{spec} has '{given[0]}' but no '{missing}'; give both or neither")
        if given:
            _check_lengths(arrays, *keys, str(spec))
            return Dataset(
                arrays["x"],
                arrays["y"],
                arrays[keys[0]],
                arrays[keys[1]],
                f"{len(arrays[keys[0]])} samples of '{keys[0]}'",
            )
    x, y = arrays["x"], arrays["y"]
    if len(x) < 2:
        raise InputError(f"{spec} has one sample; at least 2 are needed, to hold one out")
    held_out = np.arange(len(x)) % _HELD_OUT_EVERY == 0
    return Dataset(
        x[~held_out],
        y[~held_out],
        x[held_out],
        y[held_out],
        f"every {_HELD_OUT_EVERY}th sample ({int(held_out.sum())}), held out of training",
    )


def load_calibration(source: Any, inputs: Sequence[InputSpec]) -> list[Array]:
    """Load samples of a model's inputs, and check that they fit.

    Args:
      source: an array; a tuple or list (in the order of `inputs`) or a mapping by input name of
        arrays; a `tf.data.Dataset` or another iterable of batches of these, whose targets are
        left aside; an .npy file; an .npz file with one array an input, named like it (a single
        input's may be `x`); or ``module:function``, which returns any of these.
      inputs: of the model; all dimensions but the batch must be fixed.

    Returns:
      One array (n, ...) an input, of its dtype. n is at most 512: evenly spaced samples of
      arrays, the first of an iterable.

    Raises:
      InputError: the source cannot be loaded, is empty, holds NaN or infinity, or does not fit
        the inputs' shapes or dtypes. Only casts that keep values are made: float64 to float32,
        int64 to int32 within its range; never integers to floats, since an image of 0..255 fed
        to a model trained on 0..1 would calibrate wrong ranges.
    """
    name = "calibration data"
    if isinstance(source, str | Path):
        name, source = str(source), _load(str(source))
    columns = _columns(source, inputs, name)
    checked = [
        _fit(column, spec, f"{name}: input '{spec.name}'")
        for column, spec in zip(columns, inputs, strict=True)
    ]
    counts = {spec.name: len(column) for column, spec in zip(checked, inputs, strict=True)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of '{key}'" for key, count in counts.items())
        raise InputError(f"{name}: every input needs as many samples as the others; got {listed}")
    return [_thin(column, MAX_CALIBRATION_SAMPLES) for column in checked]


def evenly_spaced(total: int, wanted: int) -> npt.NDArray[np.intp]:
    """Return `wanted` indices spread evenly over range(total), or all if there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.intp))


def _thin(column: Array, limit: int) -> Array:
    return column if len(column) <= limit else column[evenly_spaced(len(column), limit)]


def _load(spec: str) -> Any:
    """Load what a spec string names: arrays, a mapping of arrays, or what a function returns."""
    path = Path(spec)
    if path.suffix in (".npz", ".npy"):
        return _load_file(path)
    module, separator, function = spec.partition(":")
    if separator and module and function.isidentifier():
        return _call(module, function, spec)
    raise InputError(f"cannot load data from '{spec}'; supported: .npz, .npy, module:function")


def _load_file(path: Path) -> Any:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"data file {path} {what}; name an .npz or .npy file")
    key = ""
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
        if not start.startswith((b"\x93NUMPY", b"PK", b"\x80")):  # \x80: a bare pickle
            what = "not a" if start else "an empty"
            raise InputError(f"data file {path} is {what} NumPy file; save it with np.savez")
        # Never unpickles: a pickle can run any code.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {}
            for key in loaded.files:
                arrays[key] = loaded[key]
            return arrays
    except InputError:
        raise
    except ValueError as error:
        if "pickle" in str(error):
            where = f"'{key}' of {path}" if key else str(path)
            raise InputError(
                f"{where} holds Python objects (pickles), which are never loaded, since they can "
                "run any code; save plain numeric arrays of one shape"
            ) from error
        raise InputError(f"data file {path} cannot be read: {error}; save it again") from error
    except (OSError, EOFError, MemoryError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"data file {path} is not a whole {path.suffix} file; save it again with NumPy"
        ) from error


def _call(module: str, function: str, spec: str) -> Any:
    # Like `python -m`: a module of the user's project is found from where the command is run.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        target = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the user's module may raise anything
        raise InputError(
            f"cannot import '{module}' for the data '{spec}': {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(target):
        raise InputError(f"module '{module}' has no function '{function}'; data spec was '{spec}'")
    try:
        return target()
    except Exception as error:  # the user's function may raise anything
        raise InputError(
            f"the data function '{spec}' failed: {type(error).__name__}: {error}"
        ) from error


def _training_arrays(loaded: Any, spec: str) -> dict[str, Array]:
    if isinstance(loaded, Dataset):
        return {key: getattr(loaded, key) for key in ("x", "y", "x_val", "y_val")}
    if isinstance(loaded, tuple | list):
        parts = list(loaded)
        if len(parts) == 2 and all(isinstance(part, tuple | list) for part in parts):
            parts = [array for part in parts for array in part]
        if len(parts) in (2, 4):
            loaded = dict(zip(("x", "y", "x_val", "y_val"), parts, strict=False))
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{spec} gives {_describe(loaded)}; supported: arrays x and y "
            "(and x_val, y_val), as a mapping or in this order"
        )
    for key in ("x", "y"):
        if key not in loaded:
            found = ", ".join(map(str, loaded)) or "nothing"
            raise InputError(f"{spec} has no '{key}'; found: {found}; x and y are needed")
    known = ("x", "y", "x_val", "y_val", "x_test", "y_test")
    return {key: np.asarray(loaded[key]) for key in known if key in loaded}


def _check_lengths(arrays: dict[str, Array], x: str, y: str, spec: str) -> None:
    if len(arrays[x]) != len(arrays[y]):
        raise InputError(
            f"{spec}: '{x}' has {len(arrays[x])} samples and '{y}' has {len(arrays[y])}; "
            "every sample needs its target"
        )


def _columns(source: Any, inputs: Sequence[InputSpec], name: str) -> list[Array]:
    """Sort any of the accepted forms into one array an input."""
    if isinstance(source, Mapping) or _is_array(source):
        return _one_batch(source, inputs, name)
    if isinstance(source, tuple | list):
        several = len(inputs) > 1 and len(source) == len(inputs)
        if (several or len(source) == 1) and all(_is_array(part) for part in source):
            return _one_batch(source, inputs, name)
    if not isinstance(source, Iterable):
        raise InputError(
            f"{name}: got {_describe(source)}; supported: arrays, a tf.data.Dataset, "
            "an iterable of batches, or a .npz, .npy or module:function"
        )
    batches: list[list[Array]] = []
    count = 0
    for batch in source:
        batches.append(_one_batch(batch, inputs, name))
        count += len(batches[-1][0]) if batches[-1][0].ndim else 1
        if count >= MAX_CALIBRATION_SAMPLES:
            break
    if not batches:
        raise InputError(f"{name}: no samples; a hundred typical ones are a good number")
    columns: list[Array] = []
    for spec, parts in zip(inputs, zip(*batches, strict=True), strict=True):
        if len({part.shape[1:] for part in parts}) > 1 or not parts[0].ndim:
            raise InputError(f"{name}: the batches of input '{spec.name}' differ in shape")
        columns.append(np.concatenate(parts)[:MAX_CALIBRATION_SAMPLES])
    return columns


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
            f"{name}: got {_describe(batch)} for {len(inputs)} inputs; "
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
        if len(arrays) == 1:
            return np.asarray(next(iter(arrays.values())))
    found = ", ".join(f"'{key}'" for key in arrays) or "nothing"
    wanted = f"'{spec.name}'" + (" or 'x'" if len(inputs) == 1 else "")
    raise InputError(f"{name}: no array {wanted}; found: {found}")


def _fit(values: Array, spec: InputSpec, where: str) -> Array:
    """Check one input's samples, and cast them if no value changes its meaning."""
    sample = tuple(spec.shape[1:])
    if values.ndim != len(spec.shape) or any(
        want not in (None, got) for want, got in zip(sample, values.shape[1:], strict=True)
    ):
        raise InputError(
            f"{where} takes samples of shape {_shape(sample)}, got an array of shape "
            f"{_shape(values.shape)}; the first dimension counts the samples"
        )
    _check_values(values, where)
    target = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    kinds = {"f": "f", "i": "iu", "u": "iu", "b": "b"}
    if values.dtype.kind not in kinds.get(target.kind, ""):
        hint = (
            "scale and cast them as for training, for example x.astype('float32') / 255"
            if target.kind == "f"
            else f"cast them to {target} as for training"
        )
        raise InputError(f"{where} takes {spec.dtype}, got {values.dtype}; {hint}")
    if target.kind in "iu":
        limits = np.iinfo(target)
        if values.min() < limits.min or values.max() > limits.max:
            raise InputError(
                f"{where} takes {target}, got values from {values.min()} to {values.max()}; "
                "they do not fit"
            )
    with np.errstate(over="ignore"):
        cast = values.astype(target, copy=False)
    if target.kind == "f" and not np.isfinite(cast).all():
        raise InputError(f"{where} takes {target}, got values up to {np.abs(values).max():g}")
    return cast


def _check_values(values: Array, where: str) -> None:
    if values.ndim == 0:
        raise InputError(f"{where} is a single number; an array of samples is needed")
    if values.size == 0:
        raise InputError(f"{where} is empty (shape {_shape(values.shape)}); samples are needed")
    if values.dtype.kind not in "fiub":
        raise InputError(f"{where} is of dtype {values.dtype}; supported: numbers")
    if values.dtype.kind == "f" and (bad := values.size - int(np.isfinite(values).sum())):
        raise InputError(
            f"{where} holds {bad} NaN or infinite values of {values.size}; remove or repair them"
        )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, np.generic)


def _describe(value: Any) -> str:
    if _is_array(value):
        return f"an array of shape {_shape(np.asarray(value).shape)}"
    return f"{type(value).__name__}"


def _names(inputs: Sequence[InputSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in inputs)


def _shape(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def batches(columns: Sequence[Array], size: int) -> Iterator[list[Array]]:
    """Yield batches of exactly `size` samples; the last is filled up from the first samples."""
    total = len(columns[0])
    for start in range(0, total, size):
        indices = np.arange(start, start + size) % total
        yield [column[indices] for column in columns]
