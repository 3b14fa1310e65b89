"""Training and calibration data: from memory, .npz, .npy or `module:function`, checked."""

import contextlib
import hashlib
import importlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import ArgumentError, InputError
from edgeprune.inputs import InputSpec, inputs_of
from edgeprune.samples import (
    MAX_ITERATED_SAMPLES,
    check_values,
    collect,
    describe,
    evenly_spaced,
    fit_inputs,
)

Array = npt.NDArray[Any]
Inputs = Array | Mapping[str, Array]

_HELD_OUT_EVERY = 10
_FILES = (".npz", ".npy")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data to train and to validate on.

    Attributes:
      x: (n, ...) inputs.
      y: (n, ...) targets.
      x_val: (m, ...) inputs that are never trained on.
      y_val: (m, ...) their targets.
      validation: where the validation data came from, in words.

    `x` and `x_val` are one array, or of a model with several inputs a mapping by input name.
    """

    x: Inputs
    y: Array
    x_val: Inputs
    y_val: Array
    validation: str

    def for_model(self, model: Any) -> "Dataset":
        """Return the data in the dtypes of a model's inputs, after checking that they fit.

        Unlike calibration data, integers become floats here, as in the model's own `fit`.

        Raises:
          InputError: the shapes or dtypes of the samples are not those that the model takes.
        """
        inputs = inputs_of(model)
        return replace(
            self,
            x=_as_inputs(self.x, inputs, "training data"),
            x_val=_as_inputs(self.x_val, inputs, "validation data"),
        )

    def take(self, indices: npt.NDArray[np.intp]) -> Inputs:
        """Return the training inputs of these samples."""
        return _pick(self.x, indices)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all arrays, shapes and dtypes, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for part in (self.x, self.y, self.x_val, self.y_val):
            arrays = sorted(part.items()) if isinstance(part, Mapping) else [("", part)]
            for name, values in arrays:
                digest.update(f"{name} {values.shape} {values.dtype} ".encode())
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model's inputs, with their targets where there are any.

    Attributes:
      columns: one array (n, ...) an input, in the dtypes that the model takes.
      targets: (n, ...), or None.
    """

    columns: list[Array]
    targets: Array | None

    def __len__(self) -> int:
        return len(self.columns[0])

    def take(self, indices: Any) -> "Samples":
        """Return some of them: by an array of indices, or a slice."""
        return Samples(
            [column[indices] for column in self.columns],
            None if self.targets is None else self.targets[indices],
        )


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
    with contextlib.redirect_stdout(sys.stderr):  # what a function of the user's prints
        loaded = _training_arrays(_load(str(spec)), str(spec))
    for key, value in loaded.items():
        for name, values in value.items() if isinstance(value, Mapping) else [("", value)]:
            check_values(values, f"{spec}: '{key}'" + (f" of input '{name}'" if name else ""))
    _check_pair(loaded, "x", "y", str(spec))
    x, y = loaded["x"], np.asarray(loaded["y"])
    for kind in ("val", "test"):
        keys = (f"x_{kind}", f"y_{kind}")
        given = [key for key in keys if key in loaded]
        if len(given) == 1:
            missing = next(key for key in keys if key not in loaded)
            raise InputError(f"{spec} has '{given[0]}' but no '{missing}'; give both or neither")
        if given:
            _check_pair(loaded, *keys, str(spec))
            y_val = np.asarray(loaded[keys[1]])
            return Dataset(x, y, loaded[keys[0]], y_val, f"{len(y_val)} samples of '{keys[0]}'")
    if len(y) < 2:
        raise InputError(f"{spec} has one sample; at least 2 are needed, to hold one out")
    held_out = np.arange(len(y)) % _HELD_OUT_EVERY == 0
    return Dataset(
        _pick(x, ~held_out),
        y[~held_out],
        _pick(x, held_out),
        y[held_out],
        f"every {_HELD_OUT_EVERY}th sample ({int(held_out.sum())} of {len(y)}), held out",
    )


def load_calibration(source: Any, inputs: Sequence[InputSpec]) -> list[Array]:
    """Load samples of a model's inputs, and check that they fit.

    Args:
      source: an array; a tuple or list (in the order of `inputs`) or a mapping by input name of
        arrays; a `tf.data.Dataset` or another iterable of batches of these, whose targets are
        left aside; a function that gives any of these when it is called, such as TFLite's
        `representative_dataset`; an .npy file; an .npz file with one array an input, named like
        it (a single input's may be `x`); or ``module:function``, which returns any of these.
      inputs: what the model takes.

    Returns:
      One array (n, ...) an input, of its dtype. n is at most 512: evenly spaced samples of
      arrays, the first of an iterable.

    Raises:
      InputError: the source cannot be loaded, is empty, holds NaN or infinity, or does not fit
        the inputs' shapes or dtypes. Only casts that keep values are made, and never integers to
        floats: an image of 0..255 fed to a model trained on 0..1 would calibrate wrong ranges.
    """
    with _opened(source, "calibration data") as (source, name):
        named = {spec.name for spec in inputs}
        if isinstance(source, Mapping) and {"x", "y"} <= set(source) and named.isdisjoint(source):
            source = source["x"]  # training data, whose targets are not needed
        found = collect(source, inputs, name)
    columns = fit_inputs(found, inputs, name, integers_to_floats=False)
    chosen = evenly_spaced(len(columns[0]), MAX_ITERATED_SAMPLES)
    return [column if len(column) == len(chosen) else column[chosen] for column in columns]


@contextlib.contextmanager
def _opened(source: Any, name: str) -> Iterator[tuple[Any, str]]:
    """Yield what a file, a ``module:function`` or a function gives, and its name in messages."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, str | Path):
            # What a function of the user's prints, a generator as it goes, is no result.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            name, source = str(source), _load(str(source))
        if callable(source) and not isinstance(source, Iterable):
            source = _called(source, name)
        yield source, name


def load_samples(
    source: Any, inputs: Sequence[InputSpec], *, integers_to_floats: bool
) -> tuple[Samples, Samples | None]:
    """Load samples of a model's inputs with their targets, where the source has them.

    Args:
      source: as for `load_calibration` or `load_training_data`, targets or not: arrays x, (x, y),
        (x, y, x_val, y_val), a mapping with these keys, an iterable of batches x or (x, y), or a
        file or ``module:function`` with any of these. The two arrays of a pair are the inputs of
        a model that has two.
      inputs: what the model takes.
      integers_to_floats: whether integer samples of a float input are cast, as `fit` does.

    Returns:
      All samples of arrays, the first 512 of an iterable; and those that the source itself sets
      aside as `x_val` and `y_val`, or `x_test` and `y_test`, or None.

    Raises:
      InputError: the source cannot be loaded, or does not fit the model or its own targets.
    """
    with _opened(source, "data") as (source, name):
        found = _with_targets(source, inputs, name)
    first, *others = [
        Samples(
            fit_inputs(columns, inputs, name, integers_to_floats=integers_to_floats),
            _targets_of(targets, columns, name),
        )
        for columns, targets in found
    ]
    return first, others[0] if others else None


def _with_targets(
    source: Any, inputs: Sequence[InputSpec], name: str
) -> list[tuple[list[Array], Any]]:
    """Sort a source's samples by input, with their targets or None; held-out ones come second."""
    named = {spec.name for spec in inputs}
    pair = isinstance(source, tuple) and len(source) in (2, 4) and len(source) != len(inputs)
    keyed = isinstance(source, Mapping) and {"x", "y"} <= set(source) and named.isdisjoint(source)
    if isinstance(source, Dataset) or pair or keyed:
        loaded = _training_arrays(source, name)
        aside = [kind for kind in ("_val", "_test") if {f"x{kind}", f"y{kind}"} <= set(loaded)]
        return [
            (collect(loaded[f"x{kind}"], inputs, name), loaded[f"y{kind}"])
            for kind in ("", *aside[:1])
        ]
    if isinstance(source, Mapping):
        given = source["x"] if "x" in source and named.isdisjoint(source) else source
        return [(collect(given, inputs, name), None if "y" in named else source.get("y"))]
    arrays = isinstance(source, tuple | list) or hasattr(source, "__array__")
    if arrays or not isinstance(source, Iterable):
        return [(collect(source, inputs, name), None)]
    targets: list[Array] = []

    def inputs_only() -> Iterator[Any]:
        for batch in source:
            if isinstance(batch, tuple) and len(batch) in (2, 3) and len(batch) != len(inputs):
                targets.append(np.asarray(batch[1]))
                yield batch[0]
            else:
                yield batch

    columns = collect(inputs_only(), inputs, name)
    return [(columns, np.concatenate(targets)[: len(columns[0])] if targets else None)]


def _targets_of(targets: Any, columns: Sequence[Array], name: str) -> Array | None:
    if targets is None:
        return None
    values = np.asarray(targets)
    check_values(values, f"{name}: 'y'")
    if len(values) != len(columns[0]):
        raise InputError(
            f"{name}: 'x' has {len(columns[0])} samples and 'y' has {len(values)}; "
            "every sample needs its target"
        )
    return values


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"{name}: calling it failed with {type(error).__name__}: {error}; it is called "
            "without arguments, like TFLite's representative_dataset"
        ) from error


def check_source(source: Any) -> None:
    """Refuse a spec that names no data, before any work is done for it.

    Raises:
      InputError: it is a string or path of neither an existing file nor ``module:function``.
    """
    if not isinstance(source, str | Path):
        return
    path = Path(source)
    if path.suffix not in _FILES:
        module, _, function = str(source).partition(":")
        if not (module and function.isidentifier()):
            raise ArgumentError(
                f"cannot load data from '{source}'; supported: .npz, .npy, module:function"
            )
    elif not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"data file {path} {what}; name an .npz or .npy file")


def _load(spec: str) -> Any:
    """Load what a spec string names: arrays, a mapping of arrays, or what a function returns."""
    check_source(spec)
    path = Path(spec)
    if path.suffix in _FILES:
        return _load_file(path)
    module, _, function = spec.partition(":")
    return _call(module, function, spec)


def _load_file(path: Path) -> Any:
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
        if callable(target):
            return target()
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"data '{spec}': calling it failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    raise InputError(f"data '{spec}': module '{module}' has no function '{function}'")


def _training_arrays(loaded: Any, spec: str) -> dict[str, Any]:
    if isinstance(loaded, Dataset):
        return {key: getattr(loaded, key) for key in ("x", "y", "x_val", "y_val")}
    if isinstance(loaded, tuple | list):
        parts = list(loaded)
        if len(parts) == 2 and all(isinstance(part, tuple) and len(part) == 2 for part in parts):
            parts = [array for part in parts for array in part]
        if len(parts) in (2, 4):
            loaded = dict(zip(("x", "y", "x_val", "y_val"), parts, strict=False))
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{spec} gives {describe(loaded)}; supported: arrays x and y "
            "(and x_val, y_val), as a mapping or in this order"
        )
    for key in ("x", "y"):
        if key not in loaded:
            found = ", ".join(map(str, loaded)) or "nothing"
            raise InputError(f"{spec} has no '{key}'; found: {found}; x and y are needed")
    known = ("x", "y", "x_val", "y_val", "x_test", "y_test")
    return {key: _arrays(loaded[key]) for key in known if key in loaded}


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _arrays(part) for name, part in value.items()}
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"training data: got arrays of different shapes in one {type(value).__name__}; "
            "give the inputs of a model with several as a mapping by input name"
        ) from error


def _check_pair(loaded: Mapping[str, Any], x: str, y: str, spec: str) -> None:
    given = loaded[x]
    arrays = list(given.values()) if isinstance(given, Mapping) else [given]
    for values in arrays:
        if len(values) != len(loaded[y]):
            raise InputError(
                f"{spec}: '{x}' has {len(values)} samples and '{y}' has {len(loaded[y])}; "
                "every sample needs its target"
            )


def _as_inputs(x: Any, inputs: Sequence[InputSpec], name: str) -> Array | dict[str, Array]:
    columns = fit_inputs(collect(x, inputs, name), inputs, name, integers_to_floats=True)
    if len(inputs) == 1:
        return columns[0]
    return {spec.name: column for spec, column in zip(inputs, columns, strict=True)}


def _pick(x: Inputs, chosen: npt.NDArray[Any]) -> Inputs:
    if isinstance(x, np.ndarray):
        picked: Array = x[chosen]
        return picked
    return {name: values[chosen] for name, values in x.items()}
