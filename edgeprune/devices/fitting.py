"""What keeps a device from running a model: operators that it lacks, too little memory."""

from edgeprune.devices import crashes
from edgeprune.devices.advice import Reason
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.reach import VelaReach
from edgeprune.devices.subject import Subject
from edgeprune.export.graph import Subgraph
from edgeprune.export.micro import dtype_notes, unsupported_operators

_IN_PLACE = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"))
_SELECT = "Flex"
# What TFLite Micro has no kernel for, but Vela 5.2 puts on the accelerator, by probing it with
# int8 models of one such operator each. DENSIFY goes with sparse encoding, which has its own word.
_VELA_TAKES = frozenset(("GELU", "RELU_0_TO_1", "RELU_N1_TO_1", "TILE", "DENSIFY"))
_U85_TAKES = frozenset(("SELECT", "REDUCE_ANY"))


def blockers(subject: Subject, profile: DeviceProfile) -> tuple[Reason, ...]:
    """List the operators and dtypes of weights that the device lacks, or fails at."""
    found: list[Reason] = []
    if profile.backend == "tflm":
        lacking = set(unsupported_operators(subject.tflite))
        found += _operators(subject, lacking, "has no kernel in TFLite Micro")
        found += [Reason(note) for note in dtype_notes(subject.tflite)]
        found += loops(
            subject,
            "runs as a loop (WHILE), which TFLite Micro may compute wrongly; "
            "build it with unroll=True",
        )
    elif isinstance(profile.reach, VelaReach):
        lacking = set(unsupported_operators(subject.tflite)) - _VELA_TAKES
        if profile.reach.accelerator.startswith("ethos-u85"):
            lacking -= _U85_TAKES
        why = "runs neither on the Ethos-U nor in TFLite Micro beside it"
        found += _operators(subject, lacking, why)
    elif profile.runtime != "tensorflow":
        names = {op.name for graph in subject.tflite.subgraphs for op in graph.operators}
        select = {name for name in names if name.startswith(_SELECT)}
        found += _operators(
            subject, select, "needs TensorFlow's own kernels, which the runtime there lacks"
        )
        if crashes.crashes(profile):
            found += crashes.reasons(subject, profile)
    return tuple(found)


def loops(subject: Subject, why: str) -> list[Reason]:
    """List the layers that run as loops, each with the same reason."""
    graph = subject.tflite.subgraphs[0]
    layers = [subject.layer(op) for op in graph.operators if op.name == "WHILE"]
    return [Reason(why, layer) for layer in dict.fromkeys(layers)]


def _operators(subject: Subject, names: set[str], why: str) -> list[Reason]:
    found: dict[tuple[str, str | None], None] = {}
    for number, graph in enumerate(subject.tflite.subgraphs):
        for operator in graph.operators:
            if operator.name in names:
                # Inside a loop, names are the cell's.
                layer = None if number else subject.layer(operator)
                found[operator.name, layer] = None
    return [Reason(f"({name}) {why}" if layer else f"{name} {why}", layer) for name, layer in found]


def smallest_activations(graph: Subgraph, item_bytes: int) -> tuple[int, int]:
    """Return the least that activations take, and the position of the operator that needs it.

    An operator's inputs and outputs are in memory at the same time, whatever the planner does.

    Args:
      graph: the main graph.
      item_bytes: of one activation.
    """
    most, where = 0, 0
    for position, operator in enumerate(graph.operators):
        if operator.name in _IN_PLACE:
            continue
        indices = {index for index in (*operator.inputs, *operator.outputs) if index >= 0}
        size = sum(
            graph.tensors[index].entries * item_bytes
            for index in indices
            if graph.constant(index) is None
        )
        if size > most:
            most, where = size, position
    return most, where


def too_large(subject: Subject, profile: DeviceProfile, smallest_bytes: int) -> tuple[Reason, ...]:
    """List the memories that the model does not fit, however its weights are stored.

    Args:
      subject: the model.
      profile: of the device.
      smallest_bytes: of the files that techniques make of it, channels not counted.
    """
    limit, found = profile.limits.flash_bytes, []
    if limit is not None and smallest_bytes > limit:
        found.append(
            Reason(
                f"the smallest form counted takes {smallest_bytes:,} bytes, more than the flash's "
                f"{limit:,}; prune channels (edgeprune prune)"
            )
        )
    return (*found, *_arena(subject, profile))


def _arena(subject: Subject, profile: DeviceProfile) -> list[Reason]:
    # Others than TFLite Micro may compute an operator in stripes.
    limit = profile.limits.largest_arena_bytes if profile.backend == "tflm" else None
    graph = subject.tflite.subgraphs[0]
    if limit is None or not graph.operators:
        return []
    needed, position = smallest_activations(graph, item_bytes=1)
    if needed <= limit:
        return []
    return [
        Reason(
            f"reads and writes {needed:,} bytes at once even in int8, "
            f"and the largest arena is {limit:,}; prune its channels, or take smaller inputs",
            subject.layer(graph.operators[position]),
        )
    ]
