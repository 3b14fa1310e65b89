"""What Vela predicts, layer by layer, brought back to the operators of the model.

Vela makes several operations of one operator. The last of them has the name of the operator's
output; those before it have names of Vela's own, and say only what kind of operator they are from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.devices.profiling import OperatorTime, profile_of
from edgeprune.devices.vela_report import Estimate, LayerEstimate
from edgeprune.export.graph import Subgraph
from edgeprune.export.layer_names import Layers
from edgeprune.export.tflite import read

HOW = (
    "cycles that Vela predicts for each operation that it makes of an operator, waiting for memory "
    "included, at the accelerator's clock"
)
_ON_CPU = "it stays on the CPU, whose time Vela does not predict"
_NOT_NAMED = "no operation of Vela's has its name: it was merged with another, or needs none"


def vela_profile(path: Path, found: Estimate) -> dict[str, Any]:
    """Return what goes under ``per_operator`` in the row of a model that Vela compiled."""
    model = read(path)
    graph = model.subgraphs[0]
    layers = Layers(path, model)
    cycles, rest = cycles_by_operator(graph, found.layers)
    on_cpu = {operator.name for operator in found.cpu_operators}
    operators = []
    for position, operator in enumerate(graph.operators):
        names = {graph.tensors[index].name for index in operator.outputs if index >= 0}
        left = bool(names & on_cpu)
        ms = None
        if position in cycles and not left:
            ms = 1000 * cycles[position] / found.clock_hz
        operators.append(
            OperatorTime(
                (position,),
                operator.name,
                layers.of(position),
                ms,
                runs_on="CPU" if left else "NPU",
                reason=None if ms is not None else _ON_CPU if left else _NOT_NAMED,
            )
        )
    operators += [
        OperatorTime((), one.op, one.name, 1000 * one.cycles / found.clock_hz, runs_on="NPU")
        for one in rest
    ]
    return profile_of(operators, HOW, found.inference_ms, layers)


def cycles_by_operator(
    graph: Subgraph, operations: Sequence[LayerEstimate]
) -> tuple[dict[int, int], list[LayerEstimate]]:
    """Add up the cycles of what Vela made of each operator.

    Args:
      graph: of the model that Vela compiled.
      operations: in the order of execution.

    Returns:
      Position of the operator -> its cycles, and the operations that belong to none by name.
    """
    makers = {graph.tensors[i].name: p for p, op in enumerate(graph.operators) for i in op.outputs}
    cycles: dict[int, int] = {}
    waiting: list[LayerEstimate] = []
    for operation in operations:
        position = makers.get(operation.name)
        if position is None:
            waiting.append(operation)
            continue
        own = [one for one in waiting if one.op == operation.op]
        waiting = [one for one in waiting if one.op != operation.op]
        cycles[position] = cycles.get(position, 0) + sum(
            one.cycles for one in (*own, operation) if one.on_npu
        )
    return cycles, [one for one in waiting if one.cycles]
