"""The quantizations of a model that were tried, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

from edgeprune.drop import AGREEMENT, ERROR, few_samples
from edgeprune.errors import counted
from edgeprune.report.table import Cell, Column

_REASON_PLACES = 72
CANDIDATE_COLUMNS = (
    Column("mode"),
    Column("file", "bytes"),
    Column("gzip", "bytes"),
    Column("drop"),
    Column(""),
)


@dataclass(frozen=True)
class Candidate:
    """One mode that was tried.

    Attributes:
      quantization: the mode.
      bytes: of its file; None where there is none.
      gzip_bytes: of the file after gzip, level 9; likewise.
      drop: how much worse it is than the Keras model; None where it was not measured.
      drop_of: what drops, or rises: see `edgeprune.drop.Yardstick`.
      measured_on: samples, none of which anything was calibrated on.
      kept: whether it is the file that was kept.
      reason: why, or why not.
    """

    quantization: str
    bytes: int | None
    gzip_bytes: int | None
    drop: float | None
    drop_of: str
    measured_on: int
    kept: bool
    reason: str

    @property
    def short_reason(self) -> str:
        """The reason without advice and figures, which a table has no room for."""
        told = self.reason.partition(";")[0].partition(" (")[0]
        return shorten(told, _REASON_PLACES, placeholder=" ...")


def candidate_rows(candidates: Sequence[Candidate]) -> list[tuple[Cell, ...]]:
    """Return the values of `CANDIDATE_COLUMNS`, a row a mode."""
    return [
        (
            one.quantization,
            one.bytes,
            one.gzip_bytes,
            None if one.drop is None else f"{one.drop:.4f}",
            f"kept: {one.reason}" if one.kept else one.short_reason,
        )
        for one in candidates
    ]


def candidate_notes(candidates: Sequence[Candidate]) -> list[str]:
    """Say what was measured on what, a line each."""
    first = candidates[0]
    what = {
        AGREEMENT: "fraction of samples whose arg max is another than the Keras model's",
        ERROR: "rms change of the outputs, in their standard deviations",
    }.get(first.drop_of, f"{first.drop_of} lost against the Keras model")
    lines = [
        f"drop: {what}, on {counted(first.measured_on, 'sample')} that nothing was calibrated on"
    ]
    return [*lines, *few_samples(first.drop_of, first.measured_on)]
