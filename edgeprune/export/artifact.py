"""What a conversion leaves: the file, its hash, and how it was made."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import counted
from edgeprune.export.candidates import (
    CANDIDATE_COLUMNS,
    Candidate,
    candidate_notes,
    candidate_rows,
)
from edgeprune.report.table import format_bytes, render


@dataclass(frozen=True)
class Verification:
    """How a converted model compares with the Keras model that it was made from.

    Attributes:
      samples: how many inputs both ran on.
      max_abs_error: largest absolute difference over all outputs, in output units.
      argmax_agreement: fraction of samples with the same arg max, of classifiers only.
      tolerance: the bound that was applied, in words and numbers.
      passed: whether it held.
      notes: what makes the pass worth less than it seems, a sentence each.
      random: whether the samples were made up, since there were no typical ones.
    """

    samples: int
    max_abs_error: float
    argmax_agreement: float | None
    tolerance: str
    passed: bool
    notes: tuple[str, ...] = ()
    random: bool = False

    @property
    def on(self) -> str:
        """What both ran on, in words."""
        return counted(self.samples, f"{'random ' * self.random}sample")

    def __str__(self) -> str:
        agreement = (
            ""
            if self.argmax_agreement is None
            else f", same arg max on {self.argmax_agreement:.1%}"
        )
        verdict = "verified" if self.passed else "failed"
        return "\n".join(
            [
                f"{verdict} on {self.on}: max abs error {self.max_abs_error:.2e}"
                f"{agreement} (tolerance: {self.tolerance})",
                *(f"note: {note}" for note in self.notes),
            ]
        )


@dataclass(frozen=True)
class Artifact:
    """A .tflite file and where it came from.

    Attributes:
      path: the file.
      sha256: of its content.
      bytes: its size.
      gzip_bytes: its size after gzip, level 9.
      quantization: ``none``, ``float16``, ``dynamic``, ``int8``, ``int16x8`` or ``int4``;
        ``mixed`` where layers have modes of their own; ``unchanged`` of a file that was made from
        another .tflite file.
      sparsity: fraction of zero weights, counted in the file.
      verification: against the model that was given; None when it was switched off.
      made_by: recipe, versions and hashes of what went in.
      candidates: the modes that ``auto`` tried; empty otherwise.
    """

    path: Path
    sha256: str
    bytes: int
    gzip_bytes: int
    quantization: str
    sparsity: float
    verification: Verification | None
    made_by: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()

    @property
    def dead_channels(self) -> dict[str, Any]:
        """What left because it cannot change the output, or ``reason``: why nothing did.

        ``file``: what left the converted int8 file after that.
        """
        dead: dict[str, Any] = self.made_by.get("dead_channels", {})
        return dead

    @property
    def record_path(self) -> Path:
        """The JSON that lies beside the file and says how it was made."""
        return record_path(self.path)

    def to_json(self) -> str:
        """Return everything but the content as one JSON document."""
        record = asdict(self) | {"path": self.path.name}
        return json.dumps(record, indent=2) + "\n"

    def __fspath__(self) -> str:
        return str(self.path)

    def summary(self) -> list[str]:
        """Say what the file is and how it was verified, a line each."""
        lines = [
            f"{self.path}: {format_bytes(self.bytes)} ({format_bytes(self.gzip_bytes)} gzip), "
            f"quantization {self.quantization}, sparsity {self.sparsity:.3f}"
        ]
        if self.quantization in ("int4", "mixed"):
            stored = self.made_by.get("weight_dtypes", {}).items()
            lines.append("weights: " + ", ".join(f"{count:,} {dtype}" for dtype, count in stored))
            if "int4" in dict(stored):
                lines.append("note: LiteRT runs int4; tflite-runtime 2.14 and TFLite Micro do not")
        # "dense: ..." says why zeros that could be encoded were not; of few zeros nobody asks.
        if (encoding := str(self.made_by.get("weights_encoding", ""))).startswith("dense: "):
            lines.append(f"weights stored {encoding}")
        lines += str(self.dead_channels.get("summary", "")).splitlines()[:1]
        in_file = self.dead_channels.get("file", {})
        if in_file.get("channels_removed"):
            lines.append(f"after conversion: {in_file['summary'].splitlines()[0]}")
        verified = "not verified, as asked" if self.verification is None else self.verification
        return [*lines, *str(verified).splitlines()]

    def __str__(self) -> str:
        lines = self.summary()
        if self.candidates:
            table = render(CANDIDATE_COLUMNS, candidate_rows(self.candidates))
            lines += ["", table, "", *candidate_notes(self.candidates)]
        return "\n".join(lines)


def record_path(output: Path) -> Path:
    """Name the record of a .tflite file: ``model.tflite`` -> ``model.tflite.json``."""
    return output.with_name(f"{output.name}.json")
