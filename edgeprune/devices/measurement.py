"""What a benchmark gives back, whatever device it ran on: figures that say how they came to be."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from edgeprune.devices.typed import from_record, parse_json
from edgeprune.errors import InputError
from edgeprune.report.table import Cell, Column, Unit, format_cell, render
from edgeprune.toml_data import shown

Kind = Literal["measured", "simulated", "predicted"]

_COLUMNS = (
    Column("model"),
    Column("median ms", "ms"),
    Column("mean ms", "ms"),
    Column("p90 ms", "ms"),
    Column("relative", "ratio"),
    Column("95 % interval"),
    Column("init ms", "ms"),
    Column("first ms", "ms"),
    Column("memory", "bytes"),
    Column("arena", "bytes"),
)
_MEAN = 2  # shown where there is no median

Table = tuple[str, tuple[Column, ...], list[tuple[Cell, ...]]]


@dataclass(frozen=True)
class Latency:
    """Times of one inference at batch 1, in milliseconds, over `runs` runs.

    Attributes:
      median: None where the device's program does not tell it.
      p90: 90th percentile, linear between ranks; None likewise.
      std: sample standard deviation.
    """

    median: float | None
    p90: float | None
    mean: float
    min: float
    max: float
    std: float
    runs: int


@dataclass(frozen=True)
class ModelBenchmark:
    """One model on one device. A figure that is None has its reason in `unavailable`.

    Attributes:
      model: its name, unique within the benchmark.
      device: where it ran.
      kind: whether the figures are ``measured``, ``simulated`` or ``predicted``.
      runtime: what ran it, for example ``ai-edge-litert``.
      runtime_version: of that runtime.
      threads: used by one inference.
      init_ms: constructing the interpreter and allocating its tensors.
      first_ms: the first inference.
      latency_ms: of an inference when warm.
      relative_latency: its time by that of the benchmark's first model, taken in the same rounds.
      relative_latency_interval: 95 % interval of that, over several loads of the models.
      peak_memory_bytes: how far the model raised its process's peak of resident memory.
      peak_memory_how: how that was read.
      arena_bytes: TFLite Micro's tensor arena.
      path: of the file, as it was given.
      bytes: of the file.
      sha256: of the file.
      rounds: in which all models had a turn.
      environment: processor, clock, temperature, versions and the like.
      warnings: what makes the figures less trustworthy.
      unavailable: missing figure -> why.
      details: figures that only some kinds of device have, by name and with the unit in it:
        ``cycles``, ``flash_bytes``, ``sram_bytes`` and the like.
      protocol: all that is needed to have the same run again.
      compared: with an earlier result; see `edgeprune.devices.compare`.
      per_operator: time by operator and layer, if asked for; see `edgeprune.devices.profiling`.
      error: why the device gave no figures at all, of any model; None where it did.
    """

    model: str
    device: str
    kind: Kind
    runtime: str
    runtime_version: str
    threads: int
    init_ms: float | None
    first_ms: float | None
    latency_ms: Latency | None
    relative_latency: float | None
    relative_latency_interval: tuple[float, float] | None
    peak_memory_bytes: int | None
    peak_memory_how: str | None
    arena_bytes: int | None
    path: str
    bytes: int
    sha256: str
    rounds: int | None
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)
    per_operator: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def from_json(cls, record: Any, where: str = "the result") -> "ModelBenchmark":
        """Build it from one entry of the JSON document, as `tools/bench_on_device.py` prints it.

        Raises:
          InputError: a key is unknown, missing or of the wrong type; `where` begins the line.
        """
        return from_record(cls, record, where)

    @property
    def typical_ms(self) -> float | None:
        """The median time of an inference, or the mean where no median is told."""
        latency = self.latency_ms
        if latency is None:
            return None
        return latency.mean if latency.median is None else latency.median

    @property
    def has_no_time(self) -> bool:
        """Whether its device can tell no time, neither measured nor predicted, and says why."""
        told = self.typical_ms is not None or self.details.get("inference_ms") is not None
        return not told and "latency_ms" in self.unavailable

    @property
    def refusals(self) -> list[str]:
        """Those of its warnings that say that the device cannot run the model."""
        if self.details.get("failure") is not None:
            return [f"{self.model}: {self.details['failure']}"]
        unfit = f"{self.model} does not fit: "
        return [line for line in self.warnings if line.startswith(unfit)]

    @property
    def _interval(self) -> str | None:
        """The relative latency's interval in words; none for the first model, which is itself."""
        low, high = self.relative_latency_interval or (1.0, 1.0)
        if low == high == 1.0:
            return None
        return f"{format_cell(low, 'ms')} to {format_cell(high, 'ms')}"

    @property
    def _cells(self) -> tuple[Cell, ...]:
        """The values of `_COLUMNS`."""
        latency = self.latency_ms
        return (
            self.model,
            latency.median if latency else None,
            latency.mean if latency else None,
            latency.p90 if latency else None,
            self.relative_latency,
            self._interval,
            self.init_ms,
            self.first_ms,
            self.peak_memory_bytes,
            self.arena_bytes,
        )

    @property
    def setting(self) -> str:
        """What its figures share with others that may stand in the same table."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        runtime = f"{self.runtime} {self.runtime_version}".strip()
        return f"{self.device}: {self.kind} with {runtime}, {threads}"


class Benchmark(Sequence[ModelBenchmark]):
    """The results of one benchmark, in the order of the models; printing it shows the table."""

    def __init__(self, results: Sequence[ModelBenchmark]) -> None:
        self._results = tuple(results)

    @classmethod
    def from_json(cls, document: str) -> "Benchmark":
        """Parse the JSON document that `tools/bench_on_device.py` prints, or `to_json`.

        Raises:
          InputError: it is no such document.
        """
        return cls.parse(document, "the result")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Benchmark":
        """Read a file that `edgeprune benchmark --output` or `--json` wrote.

        Raises:
          InputError: it cannot be read, or is no such file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"result {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"result {path} is not JSON: it is no text") from error
        return cls.parse(text, f"result {path}")

    @classmethod
    def parse(cls, document: str, where: str) -> "Benchmark":
        """Like `from_json`, with what errors are to begin with."""
        records = parse_json(document, where)
        if not isinstance(records, list):
            raise InputError(
                f"{where} must be a list with an object for each model, got {shown(records)}"
            )
        return cls(
            [
                ModelBenchmark.from_json(record, f"{where}: entry {number}")
                for number, record in enumerate(records, 1)
            ]
        )

    @overload
    def __getitem__(self, index: int) -> ModelBenchmark: ...
    @overload
    def __getitem__(self, index: slice) -> "Benchmark": ...
    def __getitem__(self, index: int | slice) -> "ModelBenchmark | Benchmark":
        if isinstance(index, slice):
            return Benchmark(self._results[index])
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Benchmark) and self._results == other._results

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"Benchmark({list(self._results)!r})"

    def to_json(self) -> str:
        """Return one JSON document: a list with an object for each model."""
        return json.dumps([asdict(result) for result in self._results], indent=2) + "\n"

    @property
    def failures(self) -> dict[str, str]:
        """The devices that gave no figures, and why."""
        return {r.device: r.error for r in self._results if r.error is not None}

    @property
    def problems(self) -> tuple[str, ...]:
        """What cannot be deployed as it is, each in a line that begins with the device.

        Devices that gave no figures, models that a device refuses, and models that do not fit.
        """
        lines = [
            f"{result.device}: {line}"
            for result in self._results
            for line in ([result.error] if result.error is not None else result.refusals)
        ]
        return tuple(dict.fromkeys(lines))

    def tables(self) -> Iterator[Table]:
        """Yield (title, columns, rows): a table for each kind, device and runtime.

        A column that has no value in any row is left out.
        """
        measured = [result for result in self._results if result.error is None]
        for setting in dict.fromkeys(result.setting for result in measured):
            yield _table(setting, [result for result in measured if result.setting == setting])

    def overview(self) -> Table | None:
        """Return (title, columns, rows): a row a model, columns for each of several devices.

        A device's column is its time, or where it has none, its time by its first model's; and
        the arena or SRAM where it has one. Each heading says whether its figures are measured,
        simulated or predicted. None for a single device.
        """
        measured = [result for result in self._results if result.error is None]
        devices = list(dict.fromkeys(result.device for result in measured))
        if len(devices) < 2:
            return None
        files = {result.model: result.bytes for result in measured}
        columns = [Column("model"), Column("file", "bytes")]
        # All are .tflite files, and what they have in common takes room.
        names = [name.removesuffix(".tflite") for name in files]
        if len(set(names)) < len(files):
            names = list(files)
        rows: list[list[Cell]] = [
            [name, size] for name, size in zip(names, files.values(), strict=True)
        ]
        for device in devices:
            by_model = {row.model: row for row in measured if row.device == device}
            for column, values in _overview_columns(device, by_model):
                columns.append(column)
                for row, model in zip(rows, files, strict=True):
                    row.append(values.get(model))
        return "All devices", tuple(columns), [tuple(row) for row in rows]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before trusting the figures, each a line, once."""
        several = len({result.device for result in self._results}) > 1
        begins = [f"{result.device}: " if several else "" for result in self._results]
        lines = [
            begin + line
            for begin, result in zip(begins, self._results, strict=True)
            for line in result.warnings
        ]
        lines += [
            f"{begin}no times: {result.unavailable['latency_ms']}"
            for begin, result in zip(begins, self._results, strict=True)
            if several and result.error is None and result.has_no_time
        ]
        baselines: dict[str, ModelBenchmark] = {}
        for begin, result in zip(begins, self._results, strict=True):
            first = baselines.setdefault(result.device, result)
            if first is result:
                continue
            low, high = result.relative_latency_interval or (0.0, 0.0)
            if low <= 1.0 <= high:
                lines.append(
                    f"{begin}{result.model}: no difference from {first.model} was found "
                    f"(95 % interval {low:.3f} to {high:.3f})"
                )
        return tuple(dict.fromkeys(lines))

    def __str__(self) -> str:
        tables = [*self.tables()]
        if overview := self.overview():
            tables.append(overview)
        parts = [render(columns, rows, title) for title, columns, rows in tables]
        if self.notes:
            parts.append("\n".join(f"note: {line}" for line in self.notes))
        if self.failures:
            parts.append("\n".join(f"{name} failed: {why}" for name, why in self.failures.items()))
        return "\n\n".join(parts)


def _overview_columns(
    device: str, by_model: Mapping[str, ModelBenchmark]
) -> Iterator[tuple[Column, dict[str, Cell]]]:
    kind = next(iter(by_model.values())).kind
    # A predicted time is one number, no median of runs.
    times = {
        name: row.details.get("inference_ms") if row.typical_ms is None else row.typical_ms
        for name, row in by_model.items()
    }
    ratios = {name: row.relative_latency for name, row in by_model.items()}
    arenas = {name: row.arena_bytes for name, row in by_model.items()}
    srams = {name: row.details.get("sram_bytes") for name, row in by_model.items()}
    timed = any(value is not None for value in times.values())
    figures: list[tuple[str, Unit, Mapping[str, Cell]]] = [
        ("ms", "ms", times) if timed else ("relative", "ratio", ratios),
        ("arena", "bytes", arenas),
        ("SRAM", "bytes", srams),
    ]
    for title, unit, values in figures:
        if any(value is not None for value in values.values()):
            yield Column(f"{device}\n{kind}\n{title}", unit), dict(values)


def _table(title: str, results: Sequence[ModelBenchmark]) -> Table:
    columns = [*_COLUMNS]
    rows = [[*result._cells] for result in results]
    for key in dict.fromkeys(key for result in results for key in result.details):
        values = [result.details.get(key) for result in results]
        if all(value is None or _is_figure(value) for value in values):
            columns.append(_detail_column(key))
            for row, value in zip(rows, values, strict=True):
                row.append(value)
    medians = any(row[_MEAN - 1] is not None for row in rows)
    shown = [
        place
        for place in range(len(columns))
        if any(row[place] is not None for row in rows) and not (place == _MEAN and medians)
    ]
    return (
        title,
        tuple(columns[place] for place in shown),
        [tuple(row[place] for place in shown) for row in rows],
    )


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _detail_column(key: str) -> Column:
    """Name a column after a figure, whose name ends with its unit: ``flash_bytes`` -> flash."""
    suffixes: dict[str, Unit] = {"_bytes": "bytes", "_ms": "ms", "_ratio": "ratio"}
    for suffix, unit in suffixes.items():
        if key.endswith(suffix):
            name = key.removesuffix(suffix).replace("_", " ")
            return Column(f"{name} ms" if unit == "ms" else name, unit)
    return Column(key.replace("_", " "), "count")
