"""Samples and targets for scoring channels, in any of the forms people have them."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune import models
from edgeprune.data import Dataset, load_training_data
from edgeprune.errors import InputError
from edgeprune.inputs import inputs_of
from edgeprune.samples import check_values, collect, describe, evenly_spaced, fit_inputs

keras: Any = models.import_keras()

Array = npt.NDArray[Any]


def arrays(model: Any, data: Any, wanted: int) -> tuple[list[Array], Any]:
    """Read data for a model, in any form that `Evidence` takes.

    Returns:
      Inputs, one array each in the model's order, and targets or None; of more samples than are
      wanted, so many evenly spaced ones.

    Raises:
      InputError: the data cannot be read or do not fit the model.
    """
    if isinstance(data, str | Path):
        data = load_training_data(data)
    if isinstance(data, Dataset):
        data = (data.x, data.y)
    if not isinstance(data, tuple | dict) and not hasattr(data, "__array__"):
        data = _joined(data, wanted)
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    inputs = inputs_of(model)
    columns = fit_inputs(collect(x, inputs, "data"), inputs, "data", integers_to_floats=True)
    total = len(columns[0])
    chosen = evenly_spaced(total, wanted)
    if y is not None:
        y = each(np.asarray, y)
        for part in keras.tree.flatten(y):
            check_values(part, "data: the targets")
            if len(part) != total:
                raise InputError(
                    f"data: {total} samples and {len(part)} targets; every sample needs its target"
                )
        y = each(lambda part: part[chosen], y)
    return [column[chosen] for column in columns], y


def _joined(data: Any, wanted: int) -> tuple[Any, Any]:
    """Return the first samples of an iterable of batches (x, y)."""
    try:
        read: list[Any] = []
        count = 0
        for batch in islice(iter(data), wanted):
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise InputError(
                    f"data: got batches of {describe(batch)}; supported: batches (x, y)"
                )
            read.append(keras.tree.map_structure(np.asarray, tuple(batch[:2])))
            count += len(keras.tree.flatten(read[-1])[0])
            if count >= wanted:
                break
    except TypeError as error:
        raise InputError(
            f"data: got {describe(data)}; supported: (x, y), a Dataset, batches (x, y), an .npz "
            "file or module:function"
        ) from error
    if not read:
        raise InputError("data: no batches; a few hundred samples are a good number")
    joined: tuple[Any, Any] = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *read)
    return joined


def each(function: Callable[[Any], Any], structure: Any) -> Any:
    """Map a function over the arrays of nested lists, tuples and dicts."""
    if isinstance(structure, dict):
        return {name: each(function, part) for name, part in structure.items()}
    if isinstance(structure, tuple) or (
        isinstance(structure, list) and structure and hasattr(structure[0], "__array__")
    ):
        return type(structure)(each(function, part) for part in structure)
    return function(structure)
