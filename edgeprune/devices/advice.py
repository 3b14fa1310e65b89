"""What advice says: for each technique, whether it pays on a device, and why not."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgeprune.devices.measurement import Kind
from edgeprune.report.table import Cell, Column, format_bytes, render

Verdict = Literal["pays", "does not pay", "not known"]
Effect = Literal["faster", "no faster", "not known"]
Gain = Literal["bytes", "latency"]

COLUMNS = (
    Column("technique"),
    Column("verdict"),
    Column("bytes\nbefore", "bytes"),
    Column("after", "bytes"),
    Column("latency"),
)


@dataclass(frozen=True)
class Reason:
    """A line of why, of one layer or of the whole model.

    Attributes:
      text: without the layer.
      layer: its name; None where it concerns the whole model.
    """

    text: str
    layer: str | None = None

    def __str__(self) -> str:
        return self.text if self.layer is None else f"{self.layer} {self.text}"


@dataclass(frozen=True)
class Latency:
    """What a technique does to the time of an inference.

    Attributes:
      effect: expected on the device.
      kind: ``predicted`` always: nothing is run for advice.
      basis: where the expectation comes from.
      relative_macs: multiply-accumulates after by before, where the technique changes them.
      command: what gives a figure instead of an expectation.
    """

    effect: Effect
    kind: Kind
    basis: str
    relative_macs: float | None
    command: str


@dataclass(frozen=True)
class TechniqueAdvice:
    """Whether a technique pays.

    Attributes:
      technique: ``int8``, ``float16``, ``sparse_float``, ``sparse_int8``,
        ``structured_pruning``, ``weight_clustering`` or ``fixed_batch``.
      verdict: ``pays`` if it saves anything on the device.
      pays_in: what it saves: bytes, latency or both.
      bytes_before: of the .tflite file.
      bytes_after: of the file with the technique, counted; None where `reasons` say why not.
      assumes: what `bytes_after` and `latency` suppose, such as a sparsity; None for nothing.
      latency: the expected effect.
      reasons: why it does not pay, or pays less; what it depends on.
      sources: where the statements about the device come from.
    """

    technique: str
    verdict: Verdict
    pays_in: tuple[Gain, ...]
    bytes_before: int
    bytes_after: int | None
    assumes: str | None
    latency: Latency
    reasons: tuple[Reason, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """Advice about one model on one device.

    Attributes:
      model: its name.
      device: name of the profile.
      description: of the device.
      bytes: of the model's .tflite file, as it is now.
      blockers: operators that the device lacks, so that it cannot run the model at all and no
        technique pays.
      too_large: memories that the model does not fit until it has fewer channels or inputs.
      techniques: each with its verdict.
      notes: what else there is to know.
    """

    model: str
    device: str
    description: str
    bytes: int
    blockers: tuple[Reason, ...]
    too_large: tuple[Reason, ...]
    techniques: tuple[TechniqueAdvice, ...]
    notes: tuple[str, ...]

    def of(self, technique: str) -> TechniqueAdvice:
        """Return the advice on one technique, by its name.

        Raises:
          KeyError: there is no such technique.
        """
        return {advice.technique: advice for advice in self.techniques}[technique]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, keyed as the attributes."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def title(self) -> str:
        """Return a line for above the table."""
        return f"{self.model} ({format_bytes(self.bytes)}) on {self.device}: {self.description}"

    def rows(self) -> list[tuple[Cell, ...]]:
        """Return the values of `COLUMNS`, a row a technique."""
        return [
            (
                advice.technique,
                f"pays ({', '.join(advice.pays_in)})" if advice.pays_in else advice.verdict,
                advice.bytes_before,
                advice.bytes_after,
                f"{advice.latency.effect} ({advice.latency.kind})",
            )
            for advice in self.techniques
        ]

    def lines(self) -> Iterator[str]:
        """Yield what stands below the table: reasons, assumptions, notes."""
        for blocker in self.blockers:
            yield f"cannot run: {blocker}"
        for reason in self.too_large:
            yield f"does not fit: {reason}"
        for advice in self.techniques:
            if advice.assumes is not None and advice.verdict == "pays":
                yield f"{advice.technique} assumes {advice.assumes}"
            for reason in advice.reasons:
                yield f"{advice.technique}: {reason}"
        commands = dict.fromkeys(advice.latency.command for advice in self.techniques)
        for command in commands:
            yield f"for figures instead of expectations: {command}"
        for note in self.notes:
            yield f"note: {note}"

    def __str__(self) -> str:
        return "\n".join([render(COLUMNS, self.rows(), self.title()), "", *self.lines()])
