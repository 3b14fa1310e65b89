"""One rule for each technique: whether it pays for a model on a device, and why not."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from edgeprune.devices import crashes
from edgeprune.devices.advice import Effect, Gain, Latency, Reason, TechniqueAdvice, Verdict
from edgeprune.devices.fitting import loops
from edgeprune.devices.profile import DeviceProfile, Technique
from edgeprune.devices.subject import Subject
from edgeprune.devices.weight_bytes import (
    CLUSTERS,
    clustered_bytes,
    float16_bytes,
    float_kernels,
    int8_bytes,
    integer_kernels,
    may_be_int8,
    prunable,
    pruned_bytes,
)
from edgeprune.errors import EdgepruneError, listed
from edgeprune.export.sparse_inference import (
    NO_END,
    little_work,
    miscomputed,
    sparse_parts,
    too_dense,
)
from edgeprune.export.sparse_rules import PADS

SPARSITY = 0.9
"""What advice on sparsity assumes of a model that has fewer zeros."""

# Above this the 1x1 convolutions run sparse; XNNPACK's own rule.
_LEAST_SPARSITY = 2 / 3
_STATIC_SHAPES = (
    "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/"
    "README.md: only static shapes; measured for this project (tflite-runtime 2.14.0): a MobileNet "
    "took 102 ms with a free batch, 28 ms with batch 1 fixed"
)
_STATIC_ARENA = "the memory of all tensors is planned before the first inference"


@dataclass(frozen=True)
class Outcome:
    """What a rule found, before it is put into words that all techniques share.

    Attributes:
      bytes_after: None where it cannot be counted.
      smaller: whether the device stores less; None where it is not known.
      effect: on latency.
      reasons: why not, layer by layer.
      sources: where the statements about the device come from.
      basis: of the latency; the first source if left out.
      assumes: what the figures suppose.
      relative_macs: multiply-accumulates after by before.
    """

    bytes_after: int | None
    smaller: bool | None
    effect: Effect
    reasons: tuple[Reason, ...] = ()
    sources: tuple[str, ...] = ()
    basis: str | None = None
    assumes: str | None = None
    relative_macs: float | None = None


def advice_on(
    technique: str, outcome: Outcome, subject: Subject, profile: DeviceProfile
) -> TechniqueAdvice:
    """Turn what a rule found into advice."""
    gains: list[Gain] = []
    if outcome.smaller:
        gains.append("bytes")
    if outcome.effect == "faster":
        gains.append("latency")
    verdict: Verdict = "pays" if gains else "does not pay"
    if not gains and (outcome.smaller is None or outcome.effect == "not known"):
        verdict = "not known"
    basis = outcome.basis or next(iter(outcome.sources), "no statement in the device's profile")
    command = f"edgeprune benchmark MODEL.tflite SMALLER.tflite --device {profile.name}"
    return TechniqueAdvice(
        technique=technique,
        verdict=verdict,
        pays_in=tuple(gains),
        bytes_before=subject.bytes,
        bytes_after=outcome.bytes_after,
        assumes=outcome.assumes,
        latency=Latency(outcome.effect, "predicted", basis, outcome.relative_macs, command),
        reasons=(*outcome.reasons, *_flash(subject, profile, outcome.bytes_after)),
        sources=outcome.sources,
    )


def int8(subject: Subject, profile: DeviceProfile) -> Outcome:
    """Weights and activations in 8 bits."""
    outcome = _by_reward("int8", profile, lambda: int8_bytes(subject.tflite), subject)
    if refusal := _no_float_kernels(subject):
        return _refused(outcome, [refusal], subject.bytes)
    why = (
        "runs as a loop (WHILE), which int8 calibration does not take; build it with unroll=True, "
        "or use dynamic or float16"
    )
    found = loops(subject, why)
    crashing = crashes.reasons(subject, profile, once_int8=True)
    if found or (crashing and crashes.crashes(profile)):
        return _refused(outcome, [*found, *crashing], None)
    return replace(outcome, reasons=(*outcome.reasons, *crashing))


def float16(subject: Subject, profile: DeviceProfile) -> Outcome:
    """Weights in half precision."""
    outcome = _by_reward("float16", profile, lambda: float16_bytes(subject.tflite), subject)
    if refusal := _no_float_kernels(subject):
        return _refused(outcome, [refusal], subject.bytes)
    if all(kernel.dtype == "float16" for kernel in float_kernels(subject.tflite)):
        return _refused(outcome, [Reason("its weights are float16 already")], subject.bytes)
    return outcome


def sparse_float(subject: Subject, profile: DeviceProfile) -> Outcome:
    """Zeros in float weights, sparse-encoded."""
    kernels = prunable(subject.tflite)
    entries = sum(kernel.entries for kernel in kernels)
    now = sum(kernel.zeros() for kernel in kernels) / entries if entries else 0.0
    enough = now > _LEAST_SPARSITY
    count = lambda: pruned_bytes(subject.tflite, 0.0 if enough else SPARSITY)  # noqa: E731
    outcome = _by_reward("sparse_float", profile, count, subject)
    if not enough:
        outcome = replace(
            outcome,
            assumes=f"sparsity {SPARSITY} of every kernel that is not depthwise; now {now:.3f}",
        )
    if refusal := _no_float_kernels(subject):
        return _refused(outcome, [refusal], subject.bytes)
    if not kernels:
        return _refused(
            outcome, [Reason("no kernel can be stored sparse: all are depthwise")], subject.bytes
        )
    if wrong := miscomputed(subject.tflite, pruned=True):
        first = Reason(wrong.why, subject.layer(wrong.operator))
        return _refused(outcome, [first, *sparse_blockers(subject)], subject.bytes)
    stored = any(kernel.sparsity is not None for kernel in kernels)
    if stored:
        already = Reason(f"its weights are stored sparse already, at sparsity {now:.3f}")
        outcome = _refused(outcome, [already], subject.bytes)
    if "sparse_float" not in profile.rewards.faster:
        return outcome
    blocking = sparse_blockers(subject)
    if blocking:
        reasons = (*outcome.reasons, *blocking, *_padding_mend(subject, blocking))
        return replace(outcome, effect="no faster", reasons=reasons)
    if enough and (few := _too_dense(subject)):
        return replace(outcome, effect="no faster", reasons=(*outcome.reasons, few))
    if stored:
        return outcome
    if little := little_work(subject.tflite):
        return replace(outcome, effect="not known", reasons=(*outcome.reasons, Reason(little)))
    return outcome


def sparse_int8(subject: Subject, profile: DeviceProfile) -> Outcome:
    """Zeros in 8-bit weights."""
    return replace(
        _by_reward("sparse_int8", profile, lambda: None, subject),
        assumes="int8 weights, most of them zero",
    )


def weight_clustering(subject: Subject, profile: DeviceProfile) -> Outcome:
    """Few distinct weights: look-up tables, or the accelerator's encoding."""
    tables = profile.backend == "tflm"
    count = (lambda: clustered_bytes(subject.tflite)) if tables else lambda: None
    outcome = replace(
        _by_reward("weight_clustering", profile, count, subject),
        assumes=f"int8 weights, {CLUSTERS} distinct ones in each channel"
        if tables
        else f"int8 weights, {CLUSTERS} distinct ones",
    )
    kernels = subject.tflite.weights()
    if not kernels:
        return _refused(outcome, [Reason("the model has no kernels")], subject.bytes)
    others = sorted({kernel.dtype for kernel in kernels if not may_be_int8(kernel)})
    if others and not any(map(may_be_int8, kernels)):
        why = Reason(f"is for int8 weights, and these are {listed(others)}")
        return _refused(outcome, [why], subject.bytes)
    return outcome


def fixed_batch(subject: Subject, profile: DeviceProfile) -> Outcome:
    """One batch size, fixed when the model is exported."""
    xnnpack = profile.backend not in ("tflm", "vela")
    source = _STATIC_SHAPES if xnnpack else _STATIC_ARENA
    if not subject.free_inputs:
        why = "every input's batch is fixed already"
        return Outcome(subject.bytes, False, "no faster", (Reason(why),), (source,))
    mend = ", which `edgeprune convert` fixes to 1 unless told otherwise"
    if subject.keras is None:
        mend = "; convert the Keras model again with a batch of 1"
    reasons = tuple(
        Reason(f"input '{name}' leaves the batch free{mend}") for name in subject.free_inputs
    )
    return Outcome(subject.bytes, False, "faster", reasons, (source,))


def sparse_blockers(subject: Subject) -> tuple[Reason, ...]:
    """Say, layer by layer, why XNNPACK would not run the model sparse; nothing if it would."""
    parts = sparse_parts(subject.tflite)
    if not parts:
        return (Reason(NO_END),)
    if any(not part.blockers for part in parts):
        return ()
    found = [
        Reason(blocker.why, subject.layer(blocker.operator))
        for part in parts
        for blocker in reversed(part.blockers)
    ]
    return tuple(dict.fromkeys(found))


def _padding_mend(subject: Subject, blocking: Iterable[Reason]) -> list[Reason]:
    """Say how padding that stands in the way is rewritten, where it can be."""
    padding = {reason.layer for reason in blocking if reason.text.startswith(PADS)}
    by = "`ep.make_sparse_eligible`, or `rewrite_padding = true` under [sparsity] of a recipe,"
    if not padding:
        return []
    if subject.keras is None:
        return [Reason(f"{by} may pad so in the Keras model that it comes from")]
    from edgeprune.structure.eligible import plan_sparse_eligible

    try:
        can = [name for name in plan_sparse_eligible(subject.keras).rewritten if name in padding]
    except EdgepruneError:  # a tf_keras or subclassed model
        return []
    if not can:
        return []
    return [Reason(f"{by} pads {listed(can)} so; the model is to be fine-tuned after it")]


def _too_dense(subject: Subject) -> Reason | None:
    """Say why the zeros that are there are not enough, where no qualifying part has enough."""
    graph = subject.tflite.subgraphs[0]
    parts = [part for part in sparse_parts(subject.tflite) if not part.blockers]
    found = [too_dense(graph, list(part.operators)) for part in parts]
    return None if None in found else Reason(str(found[0]))


def _by_reward(
    technique: Technique,
    profile: DeviceProfile,
    count: Callable[[], int | None],
    subject: Subject,
) -> Outcome:
    """Take the profile's word for what a technique brings, and count the bytes."""
    reward = profile.rewards.of(technique)
    source = profile.sources.get(f"rewards.{technique}")
    sources = () if source is None else (source,)
    if reward is None:
        why = Reason("the device's profile does not say what it brings")
        return Outcome(count(), None, "not known", (why,), sources)
    if reward == "none":
        why = Reason(f"brings nothing there: {_reason_first(source)}")
        return Outcome(None, False, "no faster", (why,), sources)
    faster: Effect = "faster" if reward in ("speed", "both") else "no faster"
    after, smaller = count(), reward in ("size", "both")
    reasons: list[Reason] = []
    if faster == "no faster":
        reasons.append(Reason(f"no faster there: {_reason_first(source)}"))
    if smaller and after is not None and after >= subject.bytes:
        reasons.append(Reason(f"the file would take {after:,} bytes, not fewer"))
        smaller = False
    if after is None:
        reasons.append(Reason("how many bytes it saves is for the device's own compiler to say"))
    return Outcome(after, smaller, faster, tuple(reasons), sources)


def _reason_first(source: str | None) -> str:
    """Put what a profile says before where it has it from: ``<where>: <what>; <where>: <what>``."""
    if source is None:
        return "by its profile"
    told = []
    for part in re.split(r"; (?=https?://)", source):
        where, _, what = part.partition(": ")
        known = what and ("://" in where or where.startswith("measured "))
        told.append(f"{what} [{where}]" if known else part)
    return "; ".join(told)


def _refused(outcome: Outcome, reasons: Iterable[Reason], after: int | None) -> Outcome:
    return replace(
        outcome,
        bytes_after=after,
        smaller=False,
        effect="no faster",
        reasons=tuple(reasons),
        assumes=None,
    )


def _no_float_kernels(subject: Subject) -> Reason | None:
    if float_kernels(subject.tflite):
        return None
    if integer_kernels(subject.tflite):
        return Reason("its weights are integers already")
    return Reason("the model has no kernels")


def _flash(subject: Subject, profile: DeviceProfile, after: int | None) -> tuple[Reason, ...]:
    limit = profile.limits.flash_bytes
    if limit is None or after is None:
        return ()
    if after > limit:
        return (Reason(f"still {after:,} bytes, more than the flash's {limit:,}"),)
    if subject.bytes > limit:
        return (
            Reason(f"it makes the model fit: {subject.bytes:,} bytes exceed the flash's {limit:,}"),
        )
    return ()
