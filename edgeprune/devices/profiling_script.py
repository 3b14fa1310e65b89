"""Profiles of what bench_on_device.py runs: models cut into operators, and what comes back.

What the runtimes offer, as found with ai-edge-litert 2.3.0 and tflite-runtime 2.14.0: no Python
interface of either profiles. So each operator is cut out and timed alone, with the same kernels and
by the same clock as the whole model, under any runtime. What that cannot see is what only happens
in the whole model. The C library inside ai-edge-litert does see it, XNNPACK's operators included;
but it counts whole microseconds, rounded down, so that small operators take 0, and its interface
differs from release to release. Where it can be called, it counts if the sum of what was timed
alone is far from the whole model's time, and its own is nearer.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.devices.benchmark_model import Node
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profiling import OperatorTime, doubts, is_apart, profile_of
from edgeprune.devices.profiling_parts import parts_of, write_parts
from edgeprune.devices.profiling_xnnpack import UNKNOWN, nodes_profile
from edgeprune.devices.script import one_line
from edgeprune.errors import EdgepruneError
from edgeprune.export.graph import TfliteModel
from edgeprune.export.layer_names import Layers
from edgeprune.export.tflite import read

ALONE = (
    "each operator timed alone, as a model of its own, on the values that reach it in the whole "
    "model, less the time of a call; XNNPACK runs those that it takes in the whole model"
)
WHOLE = (
    "LiteRT's own profiler, in the whole model with XNNPACK; its clock counts whole microseconds"
)


@contextlib.contextmanager
def archives(models: Sequence[str], options: RunOptions) -> Iterator[list[Path]]:
    """Yield an archive of operators for each model, or nothing if no profile was asked for.

    Raises:
      InputError: a file is no whole .tflite model.
    """
    if not options.per_operator:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="edgeprune-profile-") as name:
        files = []
        for number, model in enumerate(models):
            options.say(f"cutting {Path(model).name} into its operators")
            files.append(Path(name) / f"parts-{number}.zip")
            write_parts(read(model), files[-1])
        yield files


def with_profiles(rows: Sequence[ModelBenchmark], options: RunOptions) -> list[ModelBenchmark]:
    """Put what bench_on_device.py found of the parts into the rows' profiles.

    Raises:
      EdgepruneError: what came back is not what that script writes.
    """
    if not options.per_operator:
        return [replace(row, per_operator={}) for row in rows]
    return [
        replace(row, per_operator={})
        if "per_operator" in row.unavailable
        else with_profile(row, row.per_operator)
        for row in rows
    ]


def with_profile(row: ModelBenchmark, said: Mapping[str, Any], how: str = ALONE) -> ModelBenchmark:
    """Return a row with its profile.

    Args:
      row: of a model that was timed, operator by operator.
      said: what bench_on_device.py's `time_operators` returned; in place of ``ns`` a part may have
        a ``share``, and there may be ``nodes``, of its `profile_whole`.
      how: it came to be.

    Raises:
      EdgepruneError: it is not what that writes.
    """
    path = Path(row.path)
    model = read(path)
    layers = Layers(path, model)
    try:
        operators = _alone(said, model, layers)
        by_whole = _number(said["sum_by_whole"]) if "sum_by_whole" in said else None
        nodes = _nodes(said, model)
    except (KeyError, TypeError, ValueError) as error:
        raise EdgepruneError(
            f"the profile that came back is not understood ({one_line(str(error))}); run it again"
        ) from error
    found = profile_of(operators, how, row.typical_ms, layers, by_whole)
    if nodes:
        found = _nearer(found, nodes_profile(path, nodes, row.typical_ms, WHOLE))
    return replace(row, per_operator=found, warnings=(*row.warnings, *doubts(row.model, found)))


def _nearer(alone: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Return the profile of parts, or that of the whole where it is clearly nearer to the truth."""
    if not is_apart(alone) or any(one["layer"] == UNKNOWN for one in whole["operators"]):
        return alone
    return min(alone, whole, key=_distance)


def _distance(found: Mapping[str, Any]) -> float:
    ratio = found["sum_by_whole"]
    return abs(math.log(ratio)) if ratio else math.inf


def _nodes(said: Mapping[str, Any], model: TfliteModel) -> list[Node]:
    """Read what LiteRT's profiler told, if it did; of loops it does not tell what is inside."""
    if len(model.subgraphs) > 1:
        return []
    found = []
    for node in said.get("nodes", ()):
        position = node["position"]
        if not (position is None or (type(position) is int and position >= 0)):
            raise ValueError(f"{position!r} is no position")
        found.append(Node(one_line(str(node["kind"])), position, _number(node["ns"]) / 1e6, 1))
    return found


def _alone(said: Mapping[str, Any], model: TfliteModel, layers: Layers) -> list[OperatorTime]:
    """Read what was said of a model's parts; raise what looking into a wrong value raises."""
    graph = model.subgraphs[0]
    parts = parts_of(graph)
    times = list(said["parts"])
    if len(times) != len(parts):
        raise ValueError(f"{len(times)} operators of {len(parts)}")
    found = []
    for part, time in zip(parts, times, strict=True):
        position = part.positions[-1]
        op, layer = graph.operators[position].name, layers.of(position)
        ms, share, reason = None, None, None
        if "reason" in time:
            reason = one_line(str(time["reason"]))
        elif "share" in time:
            share = _number(time["share"])
        else:
            ms = max(_number(time["ns"]) - _number(said["call_ns"]), 0.0) / 1e6
        found.append(OperatorTime(part.positions, op, layer, ms, share, reason=reason))
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is below 0 or without end")
    return float(value)
