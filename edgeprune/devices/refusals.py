"""What no device can run is refused before any training for it.

Three times the same question is put, as more is known: of the recipe alone, of the model as the
recipe will leave it, of the first file that was converted.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgeprune.devices import crashes
from edgeprune.devices.advice import Reason
from edgeprune.devices.fitting import blockers, smallest_activations
from edgeprune.devices.profile import Backend, DeviceProfile
from edgeprune.devices.reach import VelaReach
from edgeprune.devices.subject import Subject
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.export.graph import TfliteModel
from edgeprune.export.micro import SUPPORTED_OPERATORS, unsupported_operators
from edgeprune.export.tflite import read
from edgeprune.recipe import Quantize, Recipe

_log = logging.getLogger(__name__)

MISREADS: dict[Backend, str] = {"tflm": "TFLite Micro", "vela": "Vela"}
"""Backends that take what is stored of sparse-encoded weights for all of them."""

_CANNOT_QUANTIZE: dict[Backend, tuple[tuple[Quantize, ...], str]] = {
    "tflm": (("float16", "dynamic", "int4"), "TFLite Micro has no kernels for such weights"),
    "vela": (("none", "float16", "dynamic", "int4"), "the Ethos-U computes with integers alone"),
}
_NO_INT4 = "tflite-runtime has no kernels for int4 weights, LiteRT (ai-edge-litert) has"

_WEIGHT_BYTES: dict[Quantize, float] = {"none": 4, "float16": 2, "int4": 0.5}  # others: 1
_ACTIVATION_BYTES: dict[Quantize, int] = {"int8": 1, "int16x8": 2}  # others: 4
_MOST_REASONS = 3


def check_recipe(recipe: Recipe, stated: frozenset[str], profiles: Sequence[DeviceProfile]) -> None:
    """Refuse a recipe that asks for what one of the devices cannot take.

    Args:
      recipe: its sparse encoding and its quantization are looked at.
      stated: paths of the keys that it states; what it does not state it does not ask for.
      profiles: of the devices.

    Raises:
      InputError: the key and the device are named.
    """
    for profile in profiles:
        if recipe.export.sparse == "on" and profile.backend in MISREADS:
            raise InputError(
                f"recipe: export.sparse is 'on', but {profile.name} cannot take it: "
                f"{MISREADS[profile.backend]} would misread sparse-encoded weights; set it to "
                "'off', or leave it out"
            )
        why = cannot_quantize(recipe.export.quantize, profile)
        if why is not None and "export.quantize" in stated:
            raise InputError(
                f"recipe: export.quantize is '{recipe.export.quantize}', but {profile.name} "
                f"cannot take it: {why}; set it to 'int8', or leave it out"
            )


def cannot_quantize(quantize: Quantize, profile: DeviceProfile) -> str | None:
    """Say why a device does not run a model that is stored so; None where it does."""
    if quantize == "int4" and profile.runtime == "tflite-runtime":
        return _NO_INT4
    modes, why = _CANNOT_QUANTIZE.get(profile.backend, ((), ""))
    return why if quantize in modes else None


def check_operators(subject: Subject, profiles: Sequence[DeviceProfile]) -> None:
    """Refuse a model with operators that one of the devices lacks, or computes wrongly.

    Raises:
      UnsupportedError: they are named, with their layers.
    """
    found = {profile.name: blockers(subject, profile) for profile in profiles}
    told = [f"{name} cannot run the model: {_few(why)}" for name, why in found.items() if why]
    if told:
        raise UnsupportedError(f"{'; '.join(told)}. Replace these layers; nothing was trained")


def check_size(
    subject: Subject,
    recipe: Recipe,
    profiles: Sequence[DeviceProfile],
    smaller: Callable[[], Subject],
) -> None:
    """Refuse a model that one of the devices cannot hold, even as the recipe will leave it.

    Of the file its kernels are counted alone, and zeros only where they are stored as such; of
    the arena, what the largest operator reads and writes. A model that is larger never fits, but
    for channels that die while it is trained: those cannot be foreseen.

    Args:
      subject: the model as it is.
      recipe: what will be done to it.
      profiles: of the devices.
      smaller: gives the model without the channels that the recipe, or clean-up, may remove; it
        is called only if the model as it is does not fit.

    Raises:
      UnsupportedError: the device, what is needed and what there is are named.
    """
    if not any(_too_large(subject, recipe, profile) for profile in profiles):
        return
    least = smaller()
    found = {profile.name: _too_large(least, recipe, profile) for profile in profiles}
    told = [
        f"{name} cannot hold the model, even as the recipe would leave it: {_few(why)}"
        for name, why in found.items()
        if why
    ]
    if told:
        raise UnsupportedError(
            f"{'; '.join(told)}. Remove more channels ([structure]), or take smaller inputs; "
            "nothing was trained"
        )


def check_file(path: Path, recipe: Recipe, profiles: Sequence[DeviceProfile]) -> None:
    """Refuse what shows only in a file, converted and quantized as the result will be.

    What runs it on the device, TFLite Micro or Vela, is asked where it is installed. The size
    counts only where no stage of the recipe makes the model smaller.

    Args:
      path: of the untrained model's file.
      recipe: whose result will be like it.
      profiles: of the devices.

    Raises:
      UnsupportedError: one of the devices does not run it, crashes, or cannot hold it.
    """
    shrinks = recipe.structure is not None or _zeros_leave(recipe)
    for profile in profiles:
        if profile.backend == "tflm":
            problem = _in_tflm(path, profile, shrinks)
        elif isinstance(profile.reach, VelaReach):
            problem = _in_vela(path, profile.reach)
        else:
            problem = _in_tflite_runtime(path, profile)
        # Look-up tables save flash alone, and only where TFLite Micro reads them.
        tables = recipe.export.look_up_tables and profile.backend == "tflm"
        if problem is None and not shrinks and not tables:
            problem = over_flash(path, profile)
        if problem is not None:
            raise UnsupportedError(
                f"{profile.name}, for the model as it is before training: {problem}; "
                "nothing was trained"
            )


def over_flash(path: Path, profile: DeviceProfile) -> str | None:
    """Say by how much a .tflite file exceeds the flash; None where it fits, or nothing is known."""
    limit, size = profile.limits.flash_bytes, path.stat().st_size
    # Vela encodes weights anew, and tells by itself what its file takes.
    if limit is None or profile.backend == "vela" or size <= limit:
        return None
    return f"its file takes {size:,} bytes, more than the flash's {limit:,}"


def _in_tflite_runtime(path: Path, profile: DeviceProfile) -> str | None:
    """Say what crashes there; where it only may, depending on what is installed, warn."""
    known = crashes.crashes(profile)
    told = None if known is False else crashes.told_of(read(path))
    if known is None and told is not None:
        _log.warning("%s, if the runtime there is none other: %s", profile.name, told)
    return told if known else None


def _in_tflm(path: Path, profile: DeviceProfile, shrinks: bool) -> str | None:
    from edgeprune.devices.tflm import simulate

    if lacking := unsupported_operators(read(path)):
        return f"TFLite Micro has no kernel for {', '.join(lacking)}"
    try:
        found = simulate(path, samples=1)
    except EdgepruneError:  # not installed, or broken: its operators are all that is known
        return None
    if found.failure is not None or found.arena is None:
        return found.failure
    limit, needed = profile.limits.largest_arena_bytes, found.arena.smallest_bytes
    if shrinks or limit is None or needed <= limit:
        return None
    return f"TFLite Micro needs an arena of {needed:,} bytes, and the largest is {limit:,}"


def _in_vela(path: Path, reach: VelaReach) -> str | None:
    from edgeprune.devices.vela import estimate, version

    try:
        version()
    except UnsupportedError:  # not installed
        return None
    try:
        left = {operator.op for operator in estimate(path, reach).cpu_operators}
    except UnsupportedError as error:
        return str(error)
    # What the accelerator leaves is for TFLite Micro, on the CPU beside it.
    if lacking := sorted(left - SUPPORTED_OPERATORS):
        return f"neither the Ethos-U nor TFLite Micro beside it runs {', '.join(lacking)}"
    return None


def _too_large(subject: Subject, recipe: Recipe, profile: DeviceProfile) -> list[Reason]:
    quantize, limits, found = recipe.export.quantize, profile.limits, []
    if limits.flash_bytes is not None and profile.backend != "vela":
        needed = _least_bytes(subject.tflite, recipe)
        how = quantize + ("" if _zeros_leave(recipe) else ", zeros included")
        if recipe.export.look_up_tables and profile.backend == "tflm":
            needed, how = math.ceil(needed / 8), "indices of one bit in look-up tables"
        if needed > limits.flash_bytes:
            found.append(
                Reason(
                    f"its weights alone take {needed:,} bytes ({how}), more than the flash's "
                    f"{limits.flash_bytes:,}"
                )
            )
    graph, arena = subject.tflite.subgraphs[0], limits.largest_arena_bytes
    # Others than TFLite Micro may compute an operator in stripes.
    if profile.backend == "tflm" and arena is not None and graph.operators:
        needed, place = smallest_activations(graph, _ACTIVATION_BYTES.get(quantize, 4))
        if needed > arena:
            found.append(
                Reason(
                    f"reads and writes {needed:,} bytes at once ({quantize}), and the largest "
                    f"arena is {arena:,}",
                    subject.layer(graph.operators[place]),
                )
            )
    return found


def _least_bytes(model: TfliteModel, recipe: Recipe) -> int:
    """Return what the kernels of a float model will take in the result's file."""
    left = 0
    for kernel in model.weights():
        left += kernel.entries
        if _zeros_leave(recipe):
            sparsity = 0.0 if recipe.sparsity is None else recipe.sparsity.final_sparsity
            left -= max(kernel.zeros(), round(sparsity * kernel.entries))
    return math.ceil(left * _WEIGHT_BYTES.get(recipe.export.quantize, 1))


def _zeros_leave(recipe: Recipe) -> bool:
    """Tell whether zeros may be left out of the file: sparse-encoded."""
    return recipe.export.sparse != "off"


def _few(reasons: Iterable[Reason]) -> str:
    told = [str(reason) for reason in reasons]
    more = len(told) - _MOST_REASONS
    return "; ".join(told[:_MOST_REASONS] + ([f"and {more} more"] if more > 0 else []))
