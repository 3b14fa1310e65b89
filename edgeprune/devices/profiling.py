"""Where a model's time goes: operator by operator and layer by layer, whatever device it ran on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeprune.export.layer_names import Layers

_CALL_MS = 0.001  # of a model that does nothing, at most
_APART = 0.25  # of the whole model's time, beyond which the sum is doubted


@dataclass(frozen=True)
class OperatorTime:
    """What one operator takes.

    Attributes:
      positions: in the file's main graph: its own and, before it, those of operators that only
        unpack its constants.
      op: what it computes: ``CONV_2D``.
      layer: of the Keras model.
      ms: None where no time can be told.
      share: of the sum of all; None likewise. Where only shares can be told, there is one without
        `ms`.
      runs_on: ``NPU`` or ``CPU`` on devices that have both, else None.
      reason: why there is no time.
    """

    positions: tuple[int, ...]
    op: str
    layer: str
    ms: float | None
    share: float | None = None
    runs_on: str | None = None
    reason: str | None = None


def profile_of(
    operators: Sequence[OperatorTime],
    how: str,
    whole_ms: float | None,
    layers: Layers,
    sum_by_whole: float | None = None,
) -> dict[str, Any]:
    """Return what goes under ``per_operator`` in a row of results.

    Args:
      operators: in order of execution; where they have times, their shares are worked out here.
      how: the times came to be.
      whole_ms: time of the whole model in the same row.
      layers: that named the operators.
      sum_by_whole: the sum by the whole model's time, where only ratios can be told.

    Returns:
      ``how``, ``whole_ms``, ``sum_ms``, ``sum_by_whole``, ``operators``: an `OperatorTime` each,
      ``layers``: for each its ``layer``, ``ms``, ``share`` and ``ops``, the shares of each kind of
      operator in it, in the order of the model, and ``layer_names_from``, a `Layers.source`.
    """
    times = [one.ms for one in operators if one.ms is not None]
    total = sum(times) if times else None
    if total is not None:
        operators = [
            replace(one, share=None if one.ms is None else one.ms / total if total else 0.0)
            for one in operators
        ]
    by_layer: dict[str, dict[str, float]] = {}
    for one in operators:
        if one.share is not None:
            ops = by_layer.setdefault(one.layer, {})
            ops[one.op] = ops.get(one.op, 0.0) + one.share
    return {
        "how": how,
        "whole_ms": whole_ms,
        "sum_ms": total,
        "sum_by_whole": total / whole_ms if whole_ms and total is not None else sum_by_whole,
        "operators": [asdict(one) | {"positions": [*one.positions]} for one in operators],
        "layers": [
            {
                "layer": layer,
                "ms": None if total is None else total * sum(ops.values()),
                "share": sum(ops.values()),
                "ops": ops,
            }
            for layer, ops in by_layer.items()
        ],
        "layer_names_from": layers.source,
    }


def is_apart(found: Mapping[str, Any]) -> bool:
    """Whether the operators' sum is far from the whole model's time, by more than a call takes."""
    ratio, whole = found["sum_by_whole"], found["whole_ms"]
    if ratio is None or abs(ratio - 1) <= _APART:
        return False
    return whole is None or abs(ratio - 1) * whole > _CALL_MS


def doubts(name: str, found: Mapping[str, Any]) -> list[str]:
    """Return what makes a profile less trustworthy, each a line."""
    lines = []
    if is_apart(found):
        ratio = f"{found['sum_by_whole']:.2f}x"
        lines.append(
            f"{name}: in sum its operators take {ratio} the whole model's time: there they are "
            "fused, run sparse, share caches otherwise; trust their shares only roughly"
        )
    missing = [one for one in found["operators"] if one["share"] is None]
    if missing:
        named = ", ".join(dict.fromkeys(f"{one['op']} ({one['reason']})" for one in missing))
        lines.append(f"{name}: no time of {len(missing)} of its operators: {named}")
    return lines
