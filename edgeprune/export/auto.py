"""Choose among the quantizations of a model: the smallest file that is hardly worse."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edgeprune.data import Samples
from edgeprune.drop import Yardstick
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.export.candidates import Candidate
from edgeprune.export.conversion import Conversion, Converted
from edgeprune.export.post_training import MODES
from edgeprune.export.verify import Interpreter, reference, run_columns
from edgeprune.samples import MAX_ITERATED_SAMPLES, evenly_spaced

MAX_DROP = 0.01
# So many resolve a drop of 0.01 to a twentieth of it, and take a small model seconds.
_MAX_MEASURED = 2048


def split(samples: Samples, aside: Samples | None) -> tuple[Samples, Samples]:
    """Part samples into those to calibrate with and those to measure on, which share none.

    Args:
      samples: all, or those to train on.
      aside: those that the source holds out itself, and are measured on alone; or None: then
        every second sample is.

    Returns:
      At most 512 samples to calibrate with and 2048 to measure on, evenly spaced.

    Raises:
      InputError: there is only one.
    """
    if aside is None:
        if len(samples) < 2:
            raise InputError(
                "quantize 'auto' needs samples to calibrate with and others to measure on; got "
                "one in all; a few hundred of each are a good number"
            )
        samples, aside = samples.take(slice(0, None, 2)), samples.take(slice(1, None, 2))
    calibrating = samples.take(evenly_spaced(len(samples), MAX_ITERATED_SAMPLES))
    return calibrating, aside.take(evenly_spaced(len(aside), _MAX_MEASURED))


def choose(
    conversion: Conversion,
    measured: Samples,
    max_drop: float,
    modes: Sequence[str] | None,
    tell: Callable[[str], None],
) -> tuple[str, Converted, tuple[Candidate, ...]]:
    """Convert in every mode, and choose the smallest file that is within the drop.

    Args:
      conversion: how to convert, with the samples to calibrate with.
      measured: samples to measure on, with targets or without.
      max_drop: how much worse than the Keras model is accepted.
      modes: those to choose among; None for all.
      tell: called with the name of each step.

    Returns:
      The mode, its file, and all that were tried, in the order of the modes.

    Raises:
      InputError: the targets do not fit the model's output.
      UnsupportedError: no mode is within the drop; each is named with what stands in its way.
    """
    program = conversion.program
    expected = reference(program, measured.columns)
    yardstick = Yardstick(
        [expected[name] for name in program.outputs],
        measured.targets,
        [spec.shape[1:] for spec in program.inputs],
    )
    tried: list[tuple[Candidate, Converted | None]] = []
    for mode in (mode for mode in MODES if modes is None or mode in modes):
        tell(f"try {mode}")
        figures = Candidate(mode, None, None, None, yardstick.name, len(measured), False, "")
        try:
            converted = conversion.run(mode, lambda step: None)
            outputs = run_columns(Interpreter(converted.content), program.inputs, measured.columns)
        except EdgepruneError as error:
            tried.append((replace(figures, reason=str(error)), None))
            continue
        drop = yardstick.drop([outputs[name] for name in program.outputs])
        within = drop <= max_drop
        candidate = replace(
            figures,
            bytes=len(converted.content),
            gzip_bytes=len(gzip.compress(converted.content, 9)),
            drop=float(drop) if np.isfinite(drop) else None,
            reason="" if within else f"drop above {max_drop:g}",
        )
        tried.append((candidate, converted if within else None))
    within_drop = [pair for pair in tried if pair[1] is not None]
    if not within_drop:
        told = "; ".join(f"{one.quantization}: {_shown(one)}" for one, _ in tried)
        raise UnsupportedError(
            f"no quantization has a drop of {yardstick.name} within {max_drop:g} ({told}); allow "
            "more with --max-drop, or other modes"
        )
    best, chosen = min(within_drop, key=lambda pair: (pair[0].bytes or 0, pair[0].gzip_bytes or 0))
    assert chosen is not None
    candidates = tuple(
        replace(one, kept=True, reason=f"smallest within {max_drop:g}")
        if one is best
        else replace(one, reason=one.reason or f"larger than {best.quantization}")
        for one, _ in tried
    )
    return best.quantization, chosen, candidates


def _shown(candidate: Candidate) -> str:
    if candidate.drop is not None:
        return f"{candidate.drop:.4f}"
    return candidate.short_reason
