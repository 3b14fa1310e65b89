"""What is said of the multiply-accumulates of a model, wherever they were counted."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one inference at batch 1.

    Attributes:
      total: None where it cannot be known; `reason` says why.
      by_layer: of each operator (its position in the main graph) or layer (its path).
      reason: why there is no total.
      notes: what the total rests on, such as a loop counted once.
    """

    total: int | None
    by_layer: dict[int | str, int] = field(default_factory=dict)
    reason: str | None = None
    notes: tuple[str, ...] = ()


class UnknownShapeError(Exception):
    """The count depends on a dimension that the model leaves open."""
