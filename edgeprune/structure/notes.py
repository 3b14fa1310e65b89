"""What a plan tells besides its figures: how far from its budget it is, and what held it there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgeprune.errors import listed
from edgeprune.structure.group import PruningGroup
from edgeprune.structure.importance import bn_scale, has_scales
from edgeprune.structure.request import PruningRequest
from edgeprune.structure.selection import Limits, whole

_FAR = 0.9  # of a target: less than that is said


def off_target(
    name: str, left: int, target: float, before: int, request: PruningRequest
) -> str | None:
    """Say how far what is left is from a target: above it, or far below."""
    limits = request.limits
    asked = f"`{name}={target / before:.3g}`"
    if left > target:
        return (
            f"{asked} is not met: {left / before:.3f} stays with `round_to={limits.round_to}`, "
            f"`min_channels={limits.min_channels}`, `max_ratio={limits.max_ratio:g}`, what is "
            "skipped and what is refused; loosen these"
        )
    if left >= _FAR * target or request.ratios:
        return None
    finer = "; a smaller `round_to` comes closer" if limits.round_to > 1 else ""
    return (
        f"{asked} was asked, {left / before:.3f} stays: nothing nearer that cuts the groups "
        f"alike was found{finer}"
    )


def held_back(
    groups: Mapping[int, PruningGroup],
    before: Mapping[int, int],
    removed: Mapping[int, object],
    limits: Limits,
) -> Iterator[str]:
    """Say which groups lose nothing because the limits leave them no cut, and which limit it is.

    Args:
      groups: that may be pruned, by position.
      before: position of a group -> its channels before anything left.
      removed: has the positions of the groups that lose something.
      limits: of the plan.
    """
    loose = {
        f"`min_channels={limits.min_channels}`": replace(limits, min_channels=1),
        f"`max_ratio={limits.max_ratio:g}`": replace(limits, max_ratio=1.0),
    }
    held: dict[str, list[str]] = {}
    for index, group in groups.items():
        began = before[index]
        if index in removed or group.size < began or not whole(group, limits, began):
            continue
        reasons = [name for name, other in loose.items() if not whole(group, other, began)]
        if not reasons and not whole(group, replace(limits, min_channels=1, max_ratio=1.0), began):
            reasons = [*loose]
        if not reasons and not whole(group, Limits(1, max_ratio=1.0), began):
            reasons = [f"`round_to={limits.round_to}`", *loose]
        if reasons:
            held.setdefault(", ".join(reasons), []).append(group.name)
    for reason, names in held.items():
        yield f"{listed(names)}: nothing leaves with {reason}"


def without_scales(request: PruningRequest, groups: Sequence[PruningGroup]) -> Iterator[str]:
    """Say which groups `bn_scale` ranks by their kernels, for want of scales."""
    if request.criterion not in ("bn_scale", bn_scale):
        return
    names = [group.name for group in groups if not has_scales(group)]
    if names:
        yield f"{listed(names)}: ranked by l2, as not every channel has a scale of a normalization"
