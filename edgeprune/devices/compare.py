"""Compare results with earlier ones: a verdict only where the figures bear it.

What two runs have in common is the device, not the moment: its clock, its temperature and its
other work differ. So a model is compared through its run's first model wherever that is the same
file in both: the ratio of their relative latencies. The first model itself can be compared by its
milliseconds only, and says what changed on the device.

The interval of the ratio is [low / old high, high / old low], of two intervals of 97.5 % that each
run found from its loads of the models. Both hold what they are to with a chance of at least 95 %
(Boole's inequality), however the runs depend on each other. What changed of a model whose file is
the same in both is the device, and its verdict says so. Milliseconds of two files that are not the
same cannot tell the model from the device: a warning says what to do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from edgeprune.devices.measurement import Benchmark, ModelBenchmark, Table
from edgeprune.report.table import Cell, Column

Verdict = Literal[
    "faster",
    "slower",
    "device faster",
    "device slower",
    "less",
    "more",
    "same",
    "not told apart",
]

_RELATIVE, _MS = "relative latency", "latency ms"
_COLUMNS = (
    Column("device"),
    Column("model"),
    Column("figure"),
    Column("before"),
    Column("now"),
    Column("ratio", "ratio"),
    Column("95 % interval"),
    Column("verdict"),
)
_MILLISECONDS = (
    "compared by milliseconds, in which the device's own state then and now is, too; name an "
    "unchanged model first, and the others are compared through it"
)
_ONE_LOAD = (
    "the earlier result is of one load of the models, so its intervals are too narrow; measure it "
    "again before trusting a verdict of a few percent"
)
# What a ratio of milliseconds depends on, besides the model.
_SETTING = ("runtime", "runtime_version", "threads")
_ENVIRONMENT = ("cpu", "machine", "governor", "affinity", "python", "numpy", "platform")
_PROTOCOL = (
    *("loads", "min_seconds", "min_runs", "warmup_seconds", "starts", "seed", "cpu"),
    "script_sha256",
)


def compare_with(new: Benchmark, old: Benchmark) -> Benchmark:
    """Return results with `compared` and warnings added, model by model and device by device.

    `compared` has the keys ``figure ratio interval before now verdict same_file``, or ``missing``
    with a reason.
    """
    earlier = {(row.device, row.model): row for row in old if row.error is None}
    firsts_now, firsts_then = _first_rows(new), _first_rows(old)
    rows = []
    for row in new:
        if row.error is not None:
            rows.append(row)
            continue
        then = earlier.get((row.device, row.model))
        if then is None:
            reason = f"the earlier result has no {row.model} on {row.device}"
            rows.append(replace(row, compared={"missing": reason}))
            continue
        baselines = firsts_now[row.device], firsts_then[row.device]
        notes = _differences(row, then) if row is baselines[0] else []
        found = _compared(row, then, *baselines)
        if found.get("figure") == _MS and not found["same_file"]:
            notes.append(f"{row.model}: {_MILLISECONDS}")
        rows.append(replace(row, compared=found, warnings=(*row.warnings, *notes)))
    return Benchmark(rows)


def comparison_table(results: Benchmark, title: str) -> Table:
    """Return (title, columns, rows) of what `compare_with` found."""
    rows: list[tuple[Cell, ...]] = []
    for row in results:
        found = row.compared
        if not found:
            continue
        if "missing" in found:
            rows.append((row.device, row.model, "-", None, None, None, None, found["missing"]))
            continue
        interval = found["interval"]
        same = " (same file)" if found["same_file"] else ""
        rows.append(
            (
                row.device,
                row.model,
                found["figure"],
                f"{found['before']:.4g}",
                f"{found['now']:.4g}",
                found["ratio"],
                None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
                found["verdict"] + same,
            )
        )
    return title, _COLUMNS, rows


def _first_rows(results: Benchmark) -> dict[str, ModelBenchmark]:
    firsts: dict[str, ModelBenchmark] = {}
    for row in results:
        if row.error is None:
            firsts.setdefault(row.device, row)
    return firsts


def _compared(
    now: ModelBenchmark, then: ModelBenchmark, first_now: ModelBenchmark, first_then: ModelBenchmark
) -> Mapping[str, Any]:
    same_file = now.sha256 == then.sha256
    if now.kind != then.kind:
        return {"missing": f"it was {then.kind} then and is {now.kind} now"}
    through_first = (
        now is not first_now
        and then is not first_then
        and first_now.sha256 == first_then.sha256
        and None not in (now.relative_latency, then.relative_latency)
    )
    if through_first:
        figure, key = _RELATIVE, "relative_interval_975"
        values = now.relative_latency, then.relative_latency
    elif now.typical_ms is not None and then.typical_ms is not None:
        figure, key = _MS, "latency_interval_975_ms"
        values = now.typical_ms, then.typical_ms
    elif now.arena_bytes is not None and then.arena_bytes is not None:
        figure, key = "arena bytes", ""
        values = float(now.arena_bytes), float(then.arena_bytes)
    else:
        return {"missing": "no figure that both results have"}
    value, before = values
    assert value is not None
    assert before is not None
    if before <= 0 or value <= 0:
        return {"missing": f"{figure} of 0 cannot be compared"}
    # A compiler's or a simulator's figures are exact: they have no interval and need none.
    exact = now.kind != "measured" and now.rounds is None
    interval = None if exact else _ratio_interval(now.details.get(key), then.details.get(key))
    ratio = value / before
    verdict = _verdict(figure, ratio, [ratio, ratio] if exact else interval)
    if same_file and not exact and verdict in ("faster", "slower"):
        verdict = "device faster" if verdict == "faster" else "device slower"
    return {
        "figure": figure,
        "before": before,
        "now": value,
        "ratio": ratio,
        "interval": interval,
        "verdict": verdict,
        "same_file": same_file,
    }


def _ratio_interval(now: Any, then: Any) -> list[float] | None:
    intervals = [_interval(now), _interval(then)]
    if None in intervals:
        return None
    (low, high), (then_low, then_high) = (pair for pair in intervals if pair is not None)
    return [low / then_high, high / then_low]


def _interval(value: Any) -> tuple[float, float] | None:
    """Return an interval of positive numbers, if it is one: details may hold anything."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = value
    if not all(isinstance(end, int | float) and 0 < end < math.inf for end in (low, high)):
        return None
    return (low, high) if low <= high else None


def _verdict(figure: str, ratio: float, interval: Sequence[float] | None) -> Verdict:
    less: Verdict = "less" if figure == "arena bytes" else "faster"
    more: Verdict = "more" if figure == "arena bytes" else "slower"
    if interval is None:
        return "not told apart"
    if interval[0] == ratio == interval[1] == 1:
        return "same"
    return less if interval[1] < 1 else more if interval[0] > 1 else "not told apart"


def _differences(now: ModelBenchmark, then: ModelBenchmark) -> list[str]:
    """Return a line that names what was not as it was in the earlier run, or nothing."""
    pairs = [(key, getattr(then, key), getattr(now, key)) for key in _SETTING]
    pairs += [(key, then.environment.get(key), now.environment.get(key)) for key in _ENVIRONMENT]
    pairs += [(key, then.protocol.get(key), now.protocol.get(key)) for key in _PROTOCOL]
    changed = [(key, before, value) for key, before, value in pairs if before != value]
    told = [f"{key} {_brief(before)} -> {_brief(value)}" for key, before, value in changed]
    notes = []
    if told:
        notes.append(f"the earlier run differs in more than the models: {', '.join(told)}")
    if "loads" in now.protocol and "loads" not in then.protocol:
        notes.append(_ONE_LOAD)
    return notes


def _brief(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
