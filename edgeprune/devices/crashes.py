"""Where a runtime is known to crash: tflite-runtime 2.14, the last, on 64-bit Arm.

It came before converters gave int8 Dense layers a scale an output channel. Measured for this
project in emulation (Cortex-A53, A72, A76 and qemu's "max", 137 small models): such a
FULLY_CONNECTED ends the process, unless it has one row of at least 8 inputs and at least 4
outputs. On x86 it does not, nor does ai-edge-litert on either.
"""

import platform

from edgeprune.devices.advice import Reason
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.subject import Subject
from edgeprune.errors import listed
from edgeprune.export.graph import Operator, Subgraph, TfliteModel

_CRASHES = "crashes tflite-runtime 2.14 on 64-bit Arm"
_MEND = 'set runtime = "ai-edge-litert" in the profile, and install that there'
_RUNTIME = "tflite-runtime"
_LEAST_OUTPUTS, _LEAST_INPUTS = 4, 8


def crashes(profile: DeviceProfile) -> bool | None:
    """Tell whether a device's runtime is the one that crashes; None where it may be.

    What an ssh device's processor is, its profile does not say; boards are 64-bit Arm.
    """
    if profile.backend == "local" and platform.machine() != "aarch64":
        return False
    if profile.backend == "ssh" and profile.runtime == "any":
        return None
    return profile.backend in ("emulated", "ssh", "local") and profile.runtime == _RUNTIME


def crashing(model: TfliteModel, *, once_int8: bool = False) -> list[tuple[Operator, str]]:
    """List the operators of the main graph that crash it, each with what it is.

    Args:
      model: as it would run.
      once_int8: of a float model, those that would once it is int8.
    """
    graph = model.subgraphs[0]
    found = ((operator, _dense(graph, operator, once_int8)) for operator in graph.operators)
    return [(operator, told) for operator, told in found if told is not None]


def reasons(subject: Subject, profile: DeviceProfile, *, once_int8: bool = False) -> list[Reason]:
    """Say of each such layer that it crashes, or may crash, a device's runtime, and what to do."""
    known = crashes(profile)
    if known is False:
        return []
    told = f"{_CRASHES}: {_MEND}" if known else f"{_CRASHES}, if that is what is installed there"
    return [
        Reason(f"({what}, int8) {told}", subject.layer(operator))
        for operator, what in crashing(subject.tflite, once_int8=once_int8)
    ]


def told_of(model: TfliteModel) -> str | None:
    """Say in a line which operators of a file crash that runtime, and what to do; None if none."""
    found = dict.fromkeys(f"({what}, int8)" for _, what in crashing(model))
    return f"{listed(list(found))} {_CRASHES}: {_MEND}" if found else None


def _dense(graph: Subgraph, operator: Operator, once_int8: bool) -> str | None:
    """Describe a FULLY_CONNECTED that crashes; None for any other operator."""
    kernels = graph.kernels(operator)
    if operator.name != "FULLY_CONNECTED" or not kernels or len(kernels[0].shape) != 2:
        return None
    kernel, given = kernels[0], graph.tensors[operator.inputs[0]]
    outputs, inputs = kernel.shape
    rows = given.entries // max(inputs, 1)
    if given.dtype == "int8" and kernel.dtype == "int8":
        quantized = kernel.quantization is not None and kernel.quantization.scale.size > 1
    else:
        floats = kernel.dtype.startswith("float") and given.dtype == "float32"
        quantized = once_int8 and floats and outputs > 1
    if not quantized:
        return None
    if rows == 1 and outputs >= _LEAST_OUTPUTS and inputs >= _LEAST_INPUTS:
        return None
    row = "row" if rows == 1 else "rows"
    return f"FULLY_CONNECTED, {rows} {row} of {inputs} inputs and {outputs} outputs"
