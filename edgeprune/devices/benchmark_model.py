"""TFLite's own benchmark_model: its flags, what it prints, and figures from several runs of it.

It times one model in a process, so that models are interleaved by many short runs. Of a run it
prints statistics, not times; what they do not tell stays untold.

Source: tensorflow/lite/tools/benchmark/{README.md,benchmark_model.cc} and
tensorflow/core/util/stats_calculator.h, whose lines the tests hold.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.devices.measurement import Latency
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

ROUNDS = 10  # enough for an interval of 97.5 %
# Standard deviations of a normal distribution that hold 95 % and 97.5 % of it.
WITHIN_95, WITHIN_975 = 1.96, 2.2414
PER_OPERATOR = "--enable_op_profiling=true"
"""Makes it time the operators, too, which disturbs the timing of the whole."""
DRIFT = 0.05  # of the first model's time, below which nothing is said

_MIB = 1 << 20
_NUMBER = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?)"
_SPREAD = re.compile(
    rf"count=(\d+) first={_NUMBER} curr={_NUMBER} min={_NUMBER} max={_NUMBER} avg={_NUMBER} "
    rf"std={_NUMBER}(?: p5={_NUMBER} median={_NUMBER} p95={_NUMBER})?"
)
_SAME = re.compile(rf"count=(\d+) curr={_NUMBER}")
_INIT = re.compile(rf"Initialized session in {_NUMBER} ?ms")
_GROWTH = re.compile(rf"emory footprint .*\(MB\): init={_NUMBER} overall={_NUMBER}")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_ERROR = re.compile(r"^(?:ERROR: |E/tflite *: )(.*)$", re.MULTILINE)
_PROFILE = "Operator-wise Profiling Info for Regular Benchmark Runs:"
_TABLE = re.compile(r"=+ Run Order =+\s*\n[ \t]*(\[node type\].*)\n((?:[ \t]*\S.*\n?)*)")
_NODE = re.compile(r"\[.*\]:(\d+)$")
_DELEGATED = re.compile(r"Delegate/(.*):\d+$")
_SUBGRAPHS = re.compile(
    r"^Subgraph \(index: \d+\) profile:.*?(?=^Subgraph|^Delegate internal:|\Z)", re.DOTALL | re.M
)
_CUSTOM = re.compile(r"(?:unresolved custom op|Op type not registered)[: ]+'?(\w+)")


@dataclass(frozen=True)
class Spread:
    """What it tells of several inferences, in milliseconds; `std` is of the population."""

    count: int
    first: float
    min: float
    max: float
    mean: float
    std: float
    median: float | None

    @property
    def typical(self) -> float:
        """The median where it is told, else the mean."""
        return self.mean if self.median is None else self.median


@dataclass(frozen=True)
class Run:
    """What one run of it told.

    Attributes:
      init_ms: constructing the interpreter and allocating its tensors.
      warm_up: times of the first inferences.
      timed: times of those that count.
      growth_bytes: how far the process's peak of resident memory grew (ru_maxrss).
      peak_bytes: the whole process's memory, sampled; only where it was asked for.
    """

    init_ms: float
    warm_up: Spread
    timed: Spread
    growth_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Node:
    """A row of its table of operators.

    Attributes:
      kind: ``CONV_2D`` of TFLite's own, ``Convolution (NHWC, F32) GEMM`` of a delegate's.
      position: in the model's main graph; None of a delegate's operators.
      ms: in one inference, on average.
      calls: in one inference; several of a delegate's that bear the same name count as one row.
    """

    kind: str
    position: int | None
    ms: float
    calls: int

    @property
    def is_delegate(self) -> bool:
        """Whether it stands for all that a delegate runs at once."""
        return self.kind.startswith("TfLite") and self.kind.split("/")[0].endswith("Delegate")


def flags(
    graph: str,
    threads: int,
    *,
    runs: int,
    seconds: float,
    warm_up_seconds: float,
    memory: bool = False,
) -> list[str]:
    """Return its flags for one run.

    Args:
      graph: path of the model on the device.
      threads: of one inference.
      runs: inferences, at least.
      seconds: likewise.
      warm_up_seconds: before them, at least; one inference is always made.
      memory: sample the memory, by a thread of its own that may disturb the timing.
    """
    return [
        f"--graph={graph}",
        f"--num_threads={threads}",
        "--warmup_runs=1",
        f"--warmup_min_secs={warm_up_seconds:g}",
        f"--num_runs={runs}",
        f"--min_secs={seconds:g}",
        "--use_xnnpack=true",
        f"--report_peak_memory_footprint={'true' if memory else 'false'}",
    ]


def parse(text: str, model: str) -> Run:
    """Read what a run printed.

    Raises:
      InputError: it could not use the model.
      UnsupportedError: it lacks an operator.
      EdgepruneError: what it printed is not what benchmark_model prints.
    """
    if errors := [line for line in _ERROR.findall(text) if "Benchmarking failed" not in line]:
        custom = _CUSTOM.search("\n".join(errors))
        if custom:
            raise UnsupportedError(
                f"{model}: benchmark_model lacks operator {custom[1]}; convert the model to "
                "builtin operators only"
            )
        if "Benchmarking failed" in text or not _INIT.search(text):
            raise InputError(f"{model}: benchmark_model refuses it: {errors[0]}")
    init = _INIT.search(text)
    spreads = [spread for line in text.splitlines() if (spread := _spread(line)) is not None]
    if init is None or len(spreads) < 2:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = lines[-1] if lines else "nothing"
        raise EdgepruneError(
            f"{model}: what came back is not what TFLite's benchmark_model prints ({last[:120]})"
        )
    growth, peak = _GROWTH.search(text), _PEAK.search(text)
    return Run(
        _number(init[1]),
        spreads[0],
        spreads[1],
        round(_number(growth[2]) * _MIB) or None if growth else None,
        round(_number(peak[1]) * _MIB) or None if peak else None,
    )


def parse_nodes(text: str, model: str) -> list[Node]:
    """Read the table of operators that a run with `PER_OPERATOR` printed, in their order.

    Those of the main graph, that is; what runs inside a loop is in the loop's own row. Where a
    delegate's operators are told, the row of the delegate itself is left out.

    Raises:
      EdgepruneError: there is no such table, or it is another one.
    """
    nodes: list[Node] = []
    for head, body in _TABLE.findall(_SUBGRAPHS.sub("", text.partition(_PROFILE)[2])):
        columns = re.findall(r"\[([^\]]+)\]", head)
        # The node's type and its name have blanks in them; the numbers between them do not.
        row = re.compile(rf"\s*(\S.*?)\s+((?:\S+\s+){{{len(columns) - 2}}})(\[.*|Delegate/.*)")
        for line in body.splitlines():
            found = row.fullmatch(line.rstrip())
            if found is None or not {"avg ms", "times called"} <= set(columns):
                raise EdgepruneError(f"{model}: benchmark_model's table is not understood: {line}")
            kind, numbers, name = found.groups()
            values = dict(zip(columns[1:-1], numbers.split(), strict=True))
            calls = round(_number(values["times called"]))
            # Releases differ in which column says that it is a delegate's.
            delegated = _DELEGATED.match(name) or re.match("Delegate/(.*)", kind)
            at = None if delegated else _NODE.match(name)
            nodes.append(
                Node(
                    delegated[1] if delegated else kind,
                    int(at[1]) if at else None,
                    _number(values["avg ms"]) * calls,
                    calls,
                )
            )
    if not nodes:
        raise EdgepruneError(
            f"{model}: benchmark_model printed no table of operators; take one that knows "
            "--enable_op_profiling"
        )
    if any(node.position is None for node in nodes):
        return [node for node in nodes if not node.is_delegate]
    return nodes


def pooled(spreads: Sequence[Spread]) -> Latency:
    """Return the figures of all inferences of several runs.

    Mean, extremes and standard deviation are exact. The median is the median of the runs' medians,
    None where they are not told; a 90th percentile cannot be had.
    """
    count = sum(spread.count for spread in spreads)
    mean = sum(spread.count * spread.mean for spread in spreads) / count
    squares = sum(s.count * (s.std**2 + (s.mean - mean) ** 2) for s in spreads)
    medians = [spread.median for spread in spreads if spread.median is not None]
    return Latency(
        median=statistics.median(medians) if len(medians) == len(spreads) else None,
        p90=None,
        mean=mean,
        min=min(spread.min for spread in spreads),
        max=max(spread.max for spread in spreads),
        std=math.sqrt(squares / (count - 1)) if count > 1 else 0.0,
        runs=count,
    )


def median_interval(
    values: Sequence[float], deviations: float = WITHIN_95
) -> tuple[float, float] | None:
    """Return an interval of the median, or None for too few values.

    The same as in tools/bench_on_device.py, which must stand alone; a test compares the two.

    Source: sign-test interval, Conover, Practical Nonparametric Statistics, 3rd ed., 3.2.
    """
    count = len(values)
    low = math.floor((count + 1) / 2 - deviations * math.sqrt(count) / 2)
    if low < 1:
        return None
    ordered = sorted(values)
    return ordered[low - 1], ordered[count - low]


def drift(times: Sequence[float]) -> float:
    """Return by what fraction the time changed from the first third of the rounds to the last.

    0 where the change is below `DRIFT`, or the thirds overlap.
    """
    third = len(times) // 3
    if third < 3:
        return 0.0
    begin, end = times[:third], times[-third:]
    change = statistics.median(end) / statistics.median(begin) - 1
    apart = min(end) > max(begin) or max(end) < min(begin)
    return change if apart and abs(change) > DRIFT else 0.0


def order(round_number: int, count: int) -> list[int]:
    """Return the order of the models in a round: rotated, and reversed each full rotation."""
    start = round_number % count
    rotated = [*range(start, count), *range(start)]
    return rotated if (round_number // count) % 2 == 0 else rotated[::-1]


def _spread(line: str) -> Spread | None:
    if found := _SPREAD.search(line):
        count, first, _, low, high, mean, std, _, median, _ = found.groups()
        return Spread(
            count=int(count),
            first=_number(first) / 1e3,
            min=_number(low) / 1e3,
            max=_number(high) / 1e3,
            mean=_number(mean) / 1e3,
            std=_number(std) / 1e3,
            median=None if median is None else _number(median) / 1e3,
        )
    if (found := _SAME.search(line)) and int(found[1]) > 0:
        same = _number(found[2]) / 1e3
        return Spread(int(found[1]), same, same, same, same, 0.0, same)
    return None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise EdgepruneError(f"benchmark_model printed {text!r} where a number stands") from error
    if not 0 <= value < math.inf:
        raise EdgepruneError(f"benchmark_model printed {text}, which no time or size can be")
    return value
