"""Change one kernel of a model, run it on samples, and put every bit back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgeprune.data import Samples, load_samples
from edgeprune.errors import ArgumentError, InputError
from edgeprune.export.program import Program, program_of
from edgeprune.models import Kernel
from edgeprune.samples import evenly_spaced

Array = npt.NDArray[Any]
Progress = Callable[[str, float, str], None]

_BATCH = 256
STAGE = "sensitivity"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Trial:
    """A model with the samples that it is tried on, compiled once.

    Attributes:
      samples: that it runs on.
      sample_shapes: of its inputs, without the batch.
      run: gives the outputs (n, ...) for all samples, with the weights as they are.
    """

    samples: Samples
    sample_shapes: tuple[tuple[int | None, ...], ...]
    run: Callable[[], list[Array]]

    @classmethod
    def of(cls, model: Any, data: Any, samples: int) -> "Trial":
        """Prepare a model, with samples that its data hold out, or else with any of them.

        Raises:
          InputError: the data cannot be loaded or do not fit the model.
        """
        if data is None:
            raise ArgumentError(
                "sensitivity is measured on data; give `data`: samples, alone or with targets, or "
                "an .npz, .npy or module:function that has them"
            )
        if samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        program = program_of(model)
        given, aside = load_samples(data, program.inputs, integers_to_floats=True)
        found = given if aside is None else aside
        chosen = found.take(evenly_spaced(len(found), samples))
        size = (program.inputs[0].shape or (None,))[0]
        if size is not None:  # a model that is built for batches of one size
            if len(chosen) < size:
                raise InputError(
                    f"the model takes batches of {size}, and there are {len(chosen)} samples; give "
                    "as many or more"
                )
            chosen = chosen.take(slice(0, len(chosen) // size * size))
        shapes = tuple(spec.shape[1:] for spec in program.inputs)
        return cls(chosen, shapes, _compiled(program, chosen, size or _BATCH))


def _compiled(program: Program, samples: Samples, size: int) -> Callable[[], list[Array]]:
    import tensorflow as tf

    batches = [
        [
            tf.constant(column[start : start + size], spec.dtype)
            for column, spec in zip(samples.columns, program.inputs, strict=True)
        ]
        for start in range(0, len(samples), size)
    ]
    compiled = tf.function(lambda *tensors: program.call(tensors), reduce_retracing=True)

    def run() -> list[Array]:
        parts = [compiled(*batch) for batch in batches]
        return [
            np.concatenate([np.asarray(tf.cast(one, tf.float32)) for one in output])
            for output in zip(*parts, strict=True)
        ]

    return run


def check_weights(kernels: Sequence[Kernel]) -> None:
    """Refuse weights that are no numbers, since any change of them proves nothing.

    Raises:
      InputError: a kernel holds NaN or infinity.
    """
    for kernel in kernels:
        values = np.asarray(kernel.variable).astype(np.float32)
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise InputError(
                f"'{kernel.name}' holds {bad} NaN or infinite weights of {values.size}; load a "
                "model that trained to the end, or train it again with a smaller learning rate"
            )


@contextmanager
def kept_as_they_are(kernels: Sequence[Kernel]) -> Iterator[list[Array]]:
    """Yield the kernels' weights, and in the end give each kernel exactly these again."""
    originals = [np.asarray(kernel.variable).copy() for kernel in kernels]
    try:
        yield originals
    finally:
        for kernel, original in zip(kernels, originals, strict=True):
            if np.asarray(kernel.variable).tobytes() != original.tobytes():
                kernel.variable.assign(original)


def judge_each(
    kernels: Sequence[Kernel],
    changed: Callable[[Kernel, Array], Iterator[Array]],
    judged: Callable[[], T],
    progress: Progress | None,
) -> list[list[T]]:
    """Judge the model with one kernel at a time changed in each of several ways.

    Args:
      kernels: to change, one at a time.
      changed: gives the weights to try in a kernel's place, one array after another.
      judged: runs the model and gives its figures.
      progress: called with the stage, the fraction done and a note.

    Returns:
      Figures, by kernel and change. The weights are as they were, also after an error or Ctrl-C.
    """
    found: list[list[T]] = []
    with kept_as_they_are(kernels) as originals:
        for number, (kernel, original) in enumerate(zip(kernels, originals, strict=True)):
            if progress is not None:
                progress(STAGE, number / len(kernels), kernel.name)
            figures = []
            for values in changed(kernel, original):
                kernel.variable.assign(values.astype(original.dtype))
                figures.append(judged())
            kernel.variable.assign(original)
            found.append(figures)
    if progress is not None:
        progress(STAGE, 1.0, f"{len(kernels)} kernels")
    return found
