"""Whether structured pruning pays: channels, heads or layers that leave."""

from edgeprune.devices.advice import Reason
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.subject import Subject
from edgeprune.devices.techniques import Outcome
from edgeprune.devices.widths import Width, uneven, widths
from edgeprune.errors import EdgepruneError
from edgeprune.models import flavour

PRUNING_RATIO = 0.5
"""What advice on structured pruning assumes."""


def structured_pruning(subject: Subject, profile: DeviceProfile) -> Outcome:
    """Judge what half of the channels, in the device's multiples, would save.

    With a Keras 3 model at hand its pruning is planned; a .tflite file shows only its widths.
    """
    multiple = profile.channel_multiple
    found = widths(subject)
    reasons = uneven(found, multiple)
    source = profile.sources.get("channel_multiple")
    sources = () if source is None else (source,)
    narrow = [width for width in found if width.channels <= multiple]
    if len(narrow) == len(found):
        return Outcome(
            None, False, "no faster", (*reasons, *_too_narrow(narrow, multiple)), sources
        )
    basis = f"fewer multiply-accumulates; {source}" if source else "fewer multiply-accumulates"
    assumes = f"pruning ratio {PRUNING_RATIO}, channels in multiples of {multiple}"
    if subject.keras is None or flavour(subject.keras) != "keras":
        why = "how many bytes it saves shows when a Keras 3 model is given instead"
        return Outcome(None, True, "faster", (*reasons, Reason(why)), sources, basis, assumes)
    return _planned(subject, multiple, reasons, sources, basis, assumes)


def _planned(
    subject: Subject,
    multiple: int,
    reasons: list[Reason],
    sources: tuple[str, ...],
    basis: str,
    assumes: str,
) -> Outcome:
    from edgeprune.structure.plan import plan_channels

    try:
        plan = plan_channels(subject.keras, pruning_ratio=PRUNING_RATIO, round_to=multiple)
    except EdgepruneError as error:
        return Outcome(None, None, "not known", (*reasons, Reason(str(error))), sources, basis)
    refused = [Reason(refusal.reason, refusal.layer) for refusal in plan.refused]
    gone = plan.parameters_before - plan.parameters_after
    if not gone:
        why = Reason(f"no channels can leave in multiples of {multiple}")
        return Outcome(subject.bytes, False, "no faster", (*reasons, *refused, why), sources, basis)
    # BatchNorm is folded away in the file: its weights take a share of the bytes with the rest.
    weights = sum(4 * kernel.entries for kernel in subject.tflite.weights())
    after = subject.bytes - round(weights * gone / plan.parameters_before)
    macs = None
    if plan.macs_before and plan.macs_after is not None:
        macs = plan.macs_after / plan.macs_before
    return Outcome(
        after, True, "faster", (*reasons, *refused), sources, basis, assumes, relative_macs=macs
    )


def _too_narrow(narrow: list[Width], multiple: int) -> list[Reason]:
    if not narrow:
        return [Reason("no layer makes channels of its own")]
    return [
        Reason(f"has {width.channels} channels: fewer fill no less of the kernels", width.layer)
        for width in narrow
        if width.channels == multiple
    ] or [Reason(f"no layer has more than {multiple} channels, the kernels' width")]
