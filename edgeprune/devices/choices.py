"""What devices choose of a recipe where it leaves the choice: one recipe that suits them all."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from edgeprune.devices import techniques
from edgeprune.devices.profile import DeviceProfile, Technique
from edgeprune.devices.refusals import MISREADS, cannot_quantize, check_recipe
from edgeprune.devices.subject import Subject, subject_of
from edgeprune.devices.weight_bytes import (
    CLUSTERS,
    MOST_VALUES,
    clustered_bytes,
    int8_bytes,
    may_be_int8,
)
from edgeprune.errors import EdgepruneError, UnsupportedError
from edgeprune.recipe import Quantize, Recipe

# XNNPACK runs 1x1 convolutions sparse above this.
_LEAST_SPARSITY = 2 / 3
# From this sparsity on sparse float takes no longer than int8: 0.22 of the dense float time, as
# int8 does, both measured on emulated 64-bit Arm; and it takes fewer bytes.
_SPARSITY_TO_STAY_FLOAT = 0.9
_NO_PRUNED_WEIGHTS = "the recipe prunes no weights"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
      name: ``round_to``, ``quantize``, ``sparse``, ``rewrite_padding`` or ``look_up_tables``.
      value: as the recipe has it; None where the recipe has no use for it.
      reason: ``recipe`` where the recipe states it, and then what the devices would take instead.
      source: device -> where its profile has it from.
    """

    name: str
    value: str | int | bool | None
    reason: str
    source: Mapping[str, str]


def choose(
    model: Any,
    subject: Subject,
    recipe: Recipe,
    stated: frozenset[str],
    profiles: Sequence[DeviceProfile],
) -> tuple[Recipe, tuple[Choice, ...]]:
    """Fill in what a recipe leaves open, so that it suits all of some devices.

    Args:
      model: the Keras model; it is not changed.
      subject: the same model, to be counted.
      recipe: to fill in.
      stated: paths of the keys that it states, which win.
      profiles: of the devices, at least one.

    Returns:
      The recipe to run, and each choice in it. Weights are clustered only where the recipe says so;
      where it does not, that choice says what look-up tables would bring.

    Raises:
      InputError: the recipe asks for what one of the devices cannot take.
      UnsupportedError: the model cannot be stored so that one of them runs it.
    """
    check_recipe(recipe, stated, profiles)
    deciding = _Deciding(model, subject, recipe, stated, tuple(profiles))
    quantize = deciding.quantize()
    mode = str(quantize.value)
    found = (
        deciding.round_to(),
        quantize,
        deciding.sparse(mode),
        deciding.rewrite_padding(mode),
        deciding.look_up_tables(mode),
    )
    values: dict[str, Any] = {choice.name: choice.value for choice in found}
    export = replace(
        recipe.export,
        quantize=values["quantize"],
        sparse=values["sparse"],
        look_up_tables=values["look_up_tables"],
    )
    structure, sparsity = recipe.structure, recipe.sparsity
    if structure is not None:
        structure = replace(structure, round_to=values["round_to"])
    if sparsity is not None:
        sparsity = replace(sparsity, rewrite_padding=values["rewrite_padding"])
    return replace(recipe, structure=structure, sparsity=sparsity, export=export), found


@dataclass(frozen=True)
class _SparseInference:
    """Whether zeros would make an inference faster.

    Attributes:
      runs: whether they would.
      rewrites: whether padding has to be rewritten for it.
      why: or why not.
    """

    runs: bool
    rewrites: bool
    why: str


class _Deciding:
    """One decision in the making."""

    def __init__(
        self,
        model: Any,
        subject: Subject,
        recipe: Recipe,
        stated: frozenset[str],
        profiles: tuple[DeviceProfile, ...],
    ) -> None:
        self._model = model
        self._subject = subject
        self._recipe = recipe
        self._stated = stated
        self._profiles = profiles

    def round_to(self) -> Choice:
        source = self._source("channel_multiple")
        spec = self._recipe.structure
        if spec is None:
            return Choice("round_to", None, "the recipe removes no channels", source)
        multiples = {profile.name: profile.channel_multiple for profile in self._profiles}
        value = math.lcm(*multiples.values())
        reason = "fills the kernels of " + ", ".join(
            f"{name} (multiples of {multiple})" for name, multiple in multiples.items()
        )
        if "structure.round_to" in self._stated:
            return self._by_recipe("round_to", spec.round_to, value, source)
        return Choice("round_to", value, reason, source)

    def quantize(self) -> Choice:
        value, reason, key = self._best_quantize()
        source = self._source(f"rewards.{key}")
        if "export.quantize" in self._stated:
            return self._by_recipe("quantize", self._recipe.export.quantize, value, source)
        for profile in self._profiles:
            if (why := cannot_quantize(value, profile)) is not None:
                raise UnsupportedError(f"{profile.name} cannot run the model: {why}, and {reason}")
        return Choice("quantize", value, reason, source)

    def _best_quantize(self) -> tuple[Quantize, str, Technique]:
        """Return the mode that suits all devices best, why, and the technique it rests on."""
        spec, fast = self._recipe.sparsity, self._with_speed("int8")
        if (
            spec is not None
            and spec.final_sparsity >= _SPARSITY_TO_STAY_FLOAT
            # Float costs a device nothing where it runs zeros sparse, or int8 is no faster.
            and {profile.name for profile in fast} <= {p.name for p in self._sparse_devices}
            and self._sparse_inference.runs
        ):
            why = f"{self._sparse_inference.why}, as fast as int8 at this sparsity, and smaller"
            return "none", why, "sparse_float"
        in_int8 = [techniques.int8(self._subject, profile) for profile in self._profiles]
        refused = next(
            (o.reasons[0] for o in in_int8 if o.effect != "faster" and not o.smaller), None
        )
        float_only = self._recipe.export.sparse == "on"
        if not float_only and any(outcome.effect == "faster" for outcome in in_int8):
            others = [profile for profile in self._profiles if profile not in fast]
            also = f"; {_names(others)} can run it too" if others else ""
            return "int8", f"smaller, and faster on {_names(fast)}{also}", "int8"
        halves = [techniques.float16(self._subject, profile) for profile in self._profiles]
        takes = all(cannot_quantize("float16", profile) is None for profile in self._profiles)
        if takes and all(outcome.smaller for outcome in halves):
            why = "sparse 'on' is for float weights" if float_only else "int8 is no faster there"
            return "float16", f"half the bytes; {refused or why}", "float16"
        if not float_only and any(outcome.smaller for outcome in in_int8):
            return "int8", "smaller, though no faster there", "int8"
        why = "sparse 'on' is for float weights" if float_only else "int8 and float16 bring nothing"
        return "none", str(refused or why), "int8"

    def sparse(self, quantize: str) -> Choice:
        key: Technique = "sparse_int8"
        if self._misreading:
            words = " and ".join(dict.fromkeys(MISREADS[p.backend] for p in self._misreading))
            value, reason = "off", f"{words} would misread sparse-encoded weights"
        elif quantize not in ("none", "float16"):
            value, reason = "off", f"no runtime runs {quantize} weights that are sparse-encoded"
        else:
            value, reason, key = "auto", self._why_auto(quantize), "sparse_float"
        source = self._source(f"rewards.{key}")
        stated = self._recipe.export.sparse
        if "export.sparse" not in self._stated:
            return Choice("sparse", value, reason, source)
        if (stated, value) == ("auto", "off"):
            return Choice("sparse", value, f"recipe leaves it open ('auto'): {reason}", source)
        return self._by_recipe("sparse", stated, value, source)

    def _why_auto(self, quantize: str) -> str:
        smaller = "where that makes the file smaller"
        if self._recipe.sparsity is None or not self._sparse_devices:
            return smaller
        if quantize != "none":
            return f"{smaller}; an inference would be faster only with quantize 'none'"
        found = self._sparse_inference
        return f"{smaller}; {'' if found.runs else 'an inference is no faster: '}{found.why}"

    def rewrite_padding(self, quantize: str) -> Choice:
        name, source = "rewrite_padding", self._source("rewards.sparse_float")
        spec = self._recipe.sparsity
        if spec is None:
            return Choice(name, None, _NO_PRUNED_WEIGHTS, source)
        wanted, reason = False, "zeros run sparse in float only, where XNNPACK has kernels for it"
        if quantize == "none" and self._sparse_devices:
            wanted, reason = self._sparse_inference.rewrites, self._sparse_inference.why
            if self._sparse_inference.runs and not wanted:
                reason += " as it is"
        if "sparsity.rewrite_padding" in self._stated:
            return self._by_recipe(name, spec.rewrite_padding, wanted, source)
        return Choice(name, wanted, reason, source)

    def look_up_tables(self, quantize: str) -> Choice:
        """Choose tables of few distinct weights, or say what they would bring."""
        name, source = "look_up_tables", self._source("rewards.weight_clustering")
        value, reason = self._tables(quantize)
        if "export.look_up_tables" in self._stated:
            return self._by_recipe(name, self._recipe.export.look_up_tables, value, source)
        return Choice(name, value, reason, source)

    def _tables(self, quantize: str) -> tuple[bool, str]:
        tables = [profile for profile in self._profiles if profile.backend == "tflm"]
        if not tables:
            return False, "only TFLite Micro reads them"
        if not any("weight_clustering" in p.rewards.faster | p.rewards.smaller for p in tables):
            return False, f"bring nothing on {_names(tables)}"
        if quantize != "int8":
            return False, "are for int8 weights"
        spec, model = self._recipe.clustering, self._subject.tflite
        clusters = CLUSTERS if spec is None else spec.clusters
        # Zeros of pruned weights are a value more.
        values = clusters + (self._recipe.sparsity is not None)
        if values > MOST_VALUES:
            return False, f"hold {MOST_VALUES} values, zero among them, not {values}"
        before, after = int8_bytes(model), clustered_bytes(model, values)
        if after >= before:
            return False, "take no fewer bytes than the weights themselves"
        brings = (
            f"the {'' if self._recipe.structure is None else 'unpruned '}int8 model from "
            f"about {before:,} to about {after:,} bytes on {_names(tables)}"
        )
        if spec is None:
            return False, f"would take {brings}, once [clustering] in the recipe shares weights"
        if find_spec("tflite_micro") is None:
            return False, "tflite-micro is not installed; pip install 'edgeprune[mcu]'"
        largest = max(kernel.entries for kernel in model.weights() if may_be_int8(kernel))
        return True, (
            f"take {brings}; kernels are decoded in the arena, which may need about {largest:,} "
            "bytes more for the largest"
        )

    @cached_property
    def _sparse_inference(self) -> _SparseInference:
        spec, fast = self._recipe.sparsity, self._sparse_devices
        if spec is None or not fast:
            return _SparseInference(False, False, _NO_PRUNED_WEIGHTS)
        if spec.final_sparsity <= _LEAST_SPARSITY:
            why = "XNNPACK runs zeros sparse only above a sparsity of 2/3"
            return _SparseInference(False, False, why)
        if self._recipe.export.sparse == "off":
            why = "XNNPACK runs zeros sparse only where they are stored so"
            return _SparseInference(False, False, why)
        there = f"zeros run sparse on {_names(fast)}"
        outcome = techniques.sparse_float(self._subject, fast[0])
        if outcome.effect == "faster":
            return _SparseInference(True, False, there)
        blocked = _SparseInference(False, False, str(outcome.reasons[0]))
        if "sparsity.rewrite_padding" in self._stated and not spec.rewrite_padding:
            return blocked
        rewritten = self._rewritten()
        if rewritten is None:
            return blocked
        names, subject = rewritten
        after = techniques.sparse_float(subject, fast[0])
        if after.effect != "faster":
            return _SparseInference(False, False, str(after.reasons[0]))
        return _SparseInference(True, True, f"{there} once padding is rewritten in {names}")

    def _rewritten(self) -> tuple[str, Subject] | None:
        """Rewrite padding in a copy; return the layers' names and the copy, if there are any."""
        from edgeprune.structure.eligible import make_sparse_eligible, plan_sparse_eligible

        try:
            names = plan_sparse_eligible(self._model).rewritten
            if not names:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the copy needs training is no news here
                return ", ".join(names), subject_of(make_sparse_eligible(self._model))
        except EdgepruneError:  # a tf_keras or subclassed model: it stays as it is
            return None

    @property
    def _sparse_devices(self) -> list[DeviceProfile]:
        return self._with_speed("sparse_float")

    @property
    def _misreading(self) -> list[DeviceProfile]:
        return [profile for profile in self._profiles if profile.backend in MISREADS]

    def _with_speed(self, technique: Technique) -> list[DeviceProfile]:
        return [profile for profile in self._profiles if technique in profile.rewards.faster]

    def _source(self, key: str) -> dict[str, str]:
        return {
            profile.name: profile.sources.get(key, f"no source is given for {key}")
            for profile in self._profiles
        }

    def _by_recipe(
        self, name: str, value: str | int | bool, wish: str | int | bool, source: dict[str, str]
    ) -> Choice:
        reason = "recipe"
        if value != wish:
            reason += f"; {_names(self._profiles)} would take {wish}"
        return Choice(name, value, reason, source)


def _names(profiles: Sequence[DeviceProfile]) -> str:
    return ", ".join(profile.name for profile in profiles)
