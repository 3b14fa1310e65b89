"""Which techniques pay for a model on a device, and why the others do not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.devices import techniques
from edgeprune.devices.advice import Advice, Reason, TechniqueAdvice
from edgeprune.devices.fitting import blockers, too_large
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.narrowing import structured_pruning
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.rows import refusal_of_sparse
from edgeprune.devices.subject import Shapes, Subject, subject_of
from edgeprune.export.dead_channels import remove_dead_channels_tflite
from edgeprune.export.finite import not_finite_in_file
from edgeprune.export.micro import has_look_up_tables

_RULES = {
    "int8": techniques.int8,
    "float16": techniques.float16,
    "sparse_float": techniques.sparse_float,
    "sparse_int8": techniques.sparse_int8,
    "structured_pruning": structured_pruning,
    "weight_clustering": techniques.weight_clustering,
    "fixed_batch": techniques.fixed_batch,
}


def advise(
    model: Any,
    device: str | Path | DeviceProfile,
    *,
    input_shape: Shapes | None = None,
    unsafe: bool = False,
) -> Advice:
    """Say for each technique whether it pays for a model on a device. Nothing is run.

    Args:
      model: a .tflite file (no TensorFlow is loaded for it), a .keras or HDF5 file, or a Keras 3
        or tf_keras model. Keras models are converted in memory as they are, at batch 1, without
        their dead channels.
      device: name of a profile, a profile's .toml file, or a profile.
      input_shape: free dimensions of a Keras model's sample, without the batch; by input name if
        there are several.
      unsafe: load a .keras file that carries Python code, such as Lambda layers.

    Returns:
      Byte counts of the .tflite file, counted from the model's own weights, and expected effects
      on latency, predicted from what the profile says of the device's kernels. Operators that
      the device lacks are in `blockers`; then no technique pays. What its memory cannot hold even
      in the smallest form is in `too_large`.

    Raises:
      InputError: an unknown device, no such file, or not a whole model.
      UnsupportedError: the Keras model cannot be converted.

    Source: the statements of the device's profile, each with its own source; XNNPACK's rules in
    `edgeprune.export.sparse_inference`.
    """
    profile = device if isinstance(device, DeviceProfile) else load_profile(device)
    subject = subject_of(model, input_shape=input_shape, unsafe=unsafe, clean=True)
    blocking = blockers(subject, profile)
    found = [
        techniques.advice_on(name, rule(subject, profile), subject, profile)
        for name, rule in _RULES.items()
    ]
    sizes = [advice.bytes_after for advice in found if advice.bytes_after and advice.pays_in]
    if blocking:
        found = [_useless(advice, blocking) for advice in found]
    return Advice(
        model=subject.name,
        device=profile.name,
        description=profile.description,
        bytes=subject.bytes,
        blockers=blocking,
        too_large=too_large(subject, profile, min([subject.bytes, *sizes])),
        techniques=tuple(found),
        notes=_notes(subject, profile),
    )


def _useless(advice: TechniqueAdvice, blocking: tuple[Reason, ...]) -> TechniqueAdvice:
    return replace(
        advice,
        verdict="does not pay",
        pays_in=(),
        latency=replace(advice.latency, effect="no faster"),
        reasons=(*blocking, *advice.reasons),
    )


def _notes(subject: Subject, profile: DeviceProfile) -> tuple[str, ...]:
    notes = ["bytes are counted from the weights; the file's own tables vary by a few percent"]
    notes += _dead_channels(subject)
    notes += map(str, not_finite_in_file(subject.tflite, subject.layers))
    if profile.backend == "tflm":
        notes.append("flash holds the program too; the arena of a model shows in a benchmark")
    if profile.backend in ("tflm", "vela"):
        refusal = refusal_of_sparse(subject.tflite, profile.runtime)
        notes += [] if refusal is None else [refusal]
    return tuple(notes)


def _dead_channels(subject: Subject) -> list[str]:
    """Say what `edgeprune convert` removes before anything is counted, or of the file itself."""
    if subject.keras is not None:
        count = subject.dead_channels
        told = "are not counted: `edgeprune convert` removes them"
    elif has_look_up_tables(subject.tflite):
        return []
    else:
        _, report = remove_dead_channels_tflite(subject.tflite.content)
        count = report.channels_removed
        told = (
            f"are counted: `edgeprune convert {subject.name}` removes them, which leaves "
            f"{report.bytes_after:,} bytes"
        )
    return [f"dead channels, which cannot change the output ({count:,}), {told}"] * bool(count)
