"""What is asked of a plan: the budget, the criterion and the limits, checked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgeprune.errors import ArgumentError
from edgeprune.structure.importance import Criterion, CriterionName, criterion_of
from edgeprune.structure.scope import Selector
from edgeprune.structure.selection import Limits, Ranking

Kind = Literal["channels", "heads"]
_MAX_RATIO = 0.9
_SELECTOR = str | type
_SELECTORS = "a layer's name, a pattern, a class name or a class"


@dataclass(frozen=True, kw_only=True, eq=False)
class PruningRequest:
    """The arguments of `plan_channels`, which says what they mean.

    Attributes:
      kind: of the groups that are pruned, ``channels`` or ``heads``; `plan_heads` asks for heads.

    Raises:
      InputError: one of them is out of range or unknown.
    """

    pruning_ratio: float | None = None
    target_macs: float | None = None
    target_parameters: float | None = None
    criterion: CriterionName | Criterion = "l2"
    ranking: Ranking = "group"
    data: Any = None
    batches: int = 8
    batch_size: int = 32
    round_to: int = 8
    min_channels: int = 1
    max_ratio: float | None = None
    skip: Selector | Sequence[Selector] = ()
    ratios: Mapping[Selector, float] | None = None
    seed: int = 0
    kind: Kind = "channels"

    def __post_init__(self) -> None:
        budgets = {
            name: getattr(self, name)
            for name in ("pruning_ratio", "target_macs", "target_parameters")
            if getattr(self, name) is not None
        }
        if len(budgets) != 1:
            raise ArgumentError(
                f"got {' and '.join(budgets) or 'no budget'}; give exactly one of `pruning_ratio`, "
                "`target_macs` and `target_parameters`"
            )
        for name, value in budgets.items():
            if name == "pruning_ratio":
                _check_ratio(value, name)
            elif not _is_number(value) or not 0 < value <= 1:
                raise ArgumentError(
                    f"`{name}={value!r}` is outside (0, 1]; it is the fraction that may stay, "
                    "0.5 for half"
                )
        criterion_of(self.criterion)
        if self.ranking not in get_args(Ranking):
            raise ArgumentError(
                f"`ranking={self.ranking!r}` is unknown; supported: {', '.join(get_args(Ranking))}"
            )
        for name in ("round_to", "min_channels", "batches", "batch_size"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ArgumentError(f"`{name}={count!r}` is not a whole number from 1 on")
        if self.max_ratio is not None:
            _check_ratio(self.max_ratio, "max_ratio")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ArgumentError(f"`seed={self.seed!r}` is not a whole number from 0 on")
        if not isinstance(self.skip, _SELECTOR) and not (
            isinstance(self.skip, Collection)
            and all(isinstance(selector, _SELECTOR) for selector in self.skip)
        ):
            raise ArgumentError(
                f"`skip={self.skip!r}` names no layers; give {_SELECTORS}, or a list of these"
            )
        if self.ratios is not None and not (
            isinstance(self.ratios, Mapping)
            and all(isinstance(selector, _SELECTOR) for selector in self.ratios)
        ):
            raise ArgumentError(
                f"`ratios={self.ratios!r}` is unknown; give a dict from {_SELECTORS} to its ratio"
            )
        for selector, ratio in (self.ratios or {}).items():
            _check_ratio(ratio, f"ratios[{getattr(selector, '__name__', selector)!r}]")

    @property
    def limits(self) -> Limits:
        """What no selection goes beyond."""
        most = self.max_ratio
        if most is None:
            most = max(_MAX_RATIO, self.pruning_ratio or 0)
        return Limits(self.round_to, self.min_channels, most)

    @property
    def skipped(self) -> Sequence[Selector]:
        """What to skip, as a sequence."""
        return (self.skip,) if isinstance(self.skip, _SELECTOR) else self.skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_ratio(ratio: Any, name: str) -> None:
    if not _is_number(ratio) or not 0 <= ratio < 1:
        raise ArgumentError(f"`{name}={ratio!r}` is outside [0, 1); it is a fraction, 0.5 for half")
