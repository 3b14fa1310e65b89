"""Make Keras models small and fast on the device they will run on, and prove it.

Public names are imported when they are first used, so `import edgeprune` loads no TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeprune.comparison import compare_ways
    from edgeprune.devices.advice import Advice
    from edgeprune.devices.advise import advise
    from edgeprune.devices.look_up_tables import look_up_tables
    from edgeprune.devices.run import benchmark
    from edgeprune.errors import (
        ArgumentError,
        EdgepruneError,
        InputError,
        UnsupportedError,
        VerificationError,
    )
    from edgeprune.export.artifact import Artifact
    from edgeprune.export.convert import convert
    from edgeprune.export.inspect import inspect
    from edgeprune.export.pack import pack, unpack
    from edgeprune.export.strip import strip
    from edgeprune.models import load_model
    from edgeprune.pipeline import compress
    from edgeprune.quantization.clustering import WeightClustering
    from edgeprune.quantization.preserve_clusters import PreserveClusters
    from edgeprune.quantization.qat import quantize_aware
    from edgeprune.recipe import Recipe
    from edgeprune.sensitivity.allocation import allocate_sparsity
    from edgeprune.sensitivity.changes import Change
    from edgeprune.sensitivity.measure import Sensitivity, measure_sensitivity
    from edgeprune.sparsity.callbacks import MagnitudePruning, PreserveSparsity
    from edgeprune.sparsity.patterns import NM, Block, Unstructured
    from edgeprune.sparsity.schedules import ConstantSparsity, PolynomialDecay
    from edgeprune.structure.attention import plan_heads, prune_heads
    from edgeprune.structure.cleanup import remove_dead_channels
    from edgeprune.structure.depth import plan_layers, prune_layers
    from edgeprune.structure.eligible import make_sparse_eligible
    from edgeprune.structure.group import PruningGroup
    from edgeprune.structure.layerdrop import layer_drop
    from edgeprune.structure.plan import PruningPlan, plan_channels
    from edgeprune.structure.pruning import prune_channels
    from edgeprune.structure.registry import register_pruning_rule
    from edgeprune.structure.slimming import SparsityRegularizer

_HOMES = {
    "Advice": "devices.advice",
    "ArgumentError": "errors",
    "Artifact": "export.artifact",
    "Block": "sparsity.patterns",
    "Change": "sensitivity.changes",
    "ConstantSparsity": "sparsity.schedules",
    "EdgepruneError": "errors",
    "InputError": "errors",
    "MagnitudePruning": "sparsity.callbacks",
    "NM": "sparsity.patterns",
    "PolynomialDecay": "sparsity.schedules",
    "PreserveClusters": "quantization.preserve_clusters",
    "PreserveSparsity": "sparsity.callbacks",
    "PruningGroup": "structure.group",
    "PruningPlan": "structure.plan",
    "Recipe": "recipe",
    "Sensitivity": "sensitivity.measure",
    "SparsityRegularizer": "structure.slimming",
    "Unstructured": "sparsity.patterns",
    "UnsupportedError": "errors",
    "VerificationError": "errors",
    "WeightClustering": "quantization.clustering",
    "advise": "devices.advise",
    "allocate_sparsity": "sensitivity.allocation",
    "benchmark": "devices.run",
    "compare_ways": "comparison",
    "compress": "pipeline",
    "convert": "export.convert",
    "inspect": "export.inspect",
    "layer_drop": "structure.layerdrop",
    "load_model": "models",
    "look_up_tables": "devices.look_up_tables",
    "make_sparse_eligible": "structure.eligible",
    "measure_sensitivity": "sensitivity.measure",
    "pack": "export.pack",
    "plan_channels": "structure.plan",
    "plan_heads": "structure.attention",
    "plan_layers": "structure.depth",
    "prune_channels": "structure.pruning",
    "prune_heads": "structure.attention",
    "prune_layers": "structure.depth",
    "quantize_aware": "quantization.qat",
    "register_pruning_rule": "structure.registry",
    "remove_dead_channels": "structure.cleanup",
    "strip": "export.strip",
    "unpack": "export.pack",
}

__all__ = [
    "NM",
    "Advice",
    "ArgumentError",
    "Artifact",
    "Block",
    "Change",
    "ConstantSparsity",
    "EdgepruneError",
    "InputError",
    "MagnitudePruning",
    "PolynomialDecay",
    "PreserveClusters",
    "PreserveSparsity",
    "PruningGroup",
    "PruningPlan",
    "Recipe",
    "Sensitivity",
    "SparsityRegularizer",
    "Unstructured",
    "UnsupportedError",
    "VerificationError",
    "WeightClustering",
    "advise",
    "allocate_sparsity",
    "benchmark",
    "compare_ways",
    "compress",
    "convert",
    "inspect",
    "layer_drop",
    "load_model",
    "look_up_tables",
    "make_sparse_eligible",
    "measure_sensitivity",
    "pack",
    "plan_channels",
    "plan_heads",
    "plan_layers",
    "prune_channels",
    "prune_heads",
    "prune_layers",
    "quantize_aware",
    "register_pruning_rule",
    "remove_dead_channels",
    "strip",
    "unpack",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeprune' has no attribute '{name}'")
    value = getattr(import_module(f"edgeprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
