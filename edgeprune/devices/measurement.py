"""What a benchmark gives back, whatever device it ran on: figures that say how they came to be."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, overload

from edgeprune.report.table import Column, render

Kind = Literal["measured", "simulated", "predicted"]

COLUMNS = (
    Column("model"),
    Column("median ms", "ms"),
    Column("p90 ms", "ms"),
    Column("relative", "ratio"),
    Column("init ms", "ms"),
    Column("first ms", "ms"),
    Column("memory", "bytes"),
)


@dataclass(frozen=True)
class Latency:
    """Times of one inference at batch 1, in milliseconds, over `runs` runs.

    Attributes:
      p90: 90th percentile, linear between ranks.
      std: sample standard deviation.
    """

    median: float
    p90: float
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
      relative_latency_interval: 95 % interval of that.
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

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelBenchmark":
        """Build it from one entry of the JSON document, as `tools/bench_on_device.py` prints it."""
        latency, interval = record["latency_ms"], record["relative_latency_interval"]
        return cls(
            **{
                **record,
                "latency_ms": None if latency is None else Latency(**latency),
                "relative_latency_interval": None if interval is None else tuple(interval),
                "warnings": tuple(record["warnings"]),
            }
        )

    @property
    def row(self) -> tuple[str | float | None, ...]:
        """The values of `COLUMNS`."""
        latency = self.latency_ms
        return (
            self.model,
            latency.median if latency else None,
            latency.p90 if latency else None,
            self.relative_latency,
            self.init_ms,
            self.first_ms,
            self.peak_memory_bytes,
        )

    @property
    def setting(self) -> str:
        """What its figures share with others that may stand in the same table."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device}: {self.kind} with {self.runtime} {self.runtime_version}, {threads}"


class Benchmark(Sequence[ModelBenchmark]):
    """The results of one benchmark, in the order of the models; printing it shows the table."""

    def __init__(self, results: Sequence[ModelBenchmark]) -> None:
        self._results = tuple(results)

    @classmethod
    def from_json(cls, document: str) -> "Benchmark":
        """Parse the JSON document that `tools/bench_on_device.py` prints, or `to_json`."""
        return cls([ModelBenchmark.from_json(record) for record in json.loads(document)])

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

    def tables(self) -> Iterator[tuple[str, list[tuple[str | float | None, ...]]]]:
        """Yield (title, rows of `COLUMNS`): a table for each kind, device and runtime."""
        for setting in dict.fromkeys(result.setting for result in self._results):
            yield setting, [result.row for result in self._results if result.setting == setting]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before trusting the figures, each a line, once."""
        lines = [line for result in self._results for line in result.warnings]
        for result in self._results[1:]:
            low, high = result.relative_latency_interval or (0.0, 0.0)
            if low <= 1.0 <= high:
                lines.append(
                    f"{result.model}: no difference from {self._results[0].model} was found "
                    f"(95 % interval {low:.3f} to {high:.3f})"
                )
        return tuple(dict.fromkeys(lines))

    def __str__(self) -> str:
        parts = [render(COLUMNS, rows, title) for title, rows in self.tables()]
        if self.notes:
            parts.append("\n".join(f"note: {line}" for line in self.notes))
        return "\n\n".join(parts)
