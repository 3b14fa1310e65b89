"""What to do to a model, as data: frozen dataclasses that read from and write to TOML."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeprune.errors import ArgumentError, InputError
from edgeprune.toml_data import build, format_value, read_toml

Quantize = Literal["none", "float16", "dynamic", "int8", "int16x8", "int4"]
Way = Literal["fine-tune", "during", "scratch-e", "scratch-b"]
"""How a structurally pruned model gets its weights; see `StructureSpec`."""
Criterion = Literal[
    "l1", "l2", "bn_scale", "taylor", "taylor_activation", "fpgm", "activation", "random"
]
BUDGETS = ("pruning_ratio", "target_macs", "target_parameters")


@dataclass(frozen=True)
class TrainingSpec:
    """How the stages that train do it.

    Attributes:
      batch_size: samples a step.
      learning_rate: of every stage; None keeps the compiled optimizer's own (1e-3 for Adam).
      seed: of shuffling and dropout, set anew at each stage so that a resumed run repeats.
    """

    batch_size: int = 64
    learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class StructureSpec:
    """Channels leave, and the model is trained again. Exactly one of the three budgets is given.

    The way is one of:

    - ``fine-tune``: the trained model is pruned, and trained for `epochs` more (Han et al. 2015,
      arXiv:1506.02626).
    - ``during``: new initial weights; pruned while they are trained, for `dense_epochs` in all.
    - ``scratch-e``: the pruned architecture with new initial weights, trained for `dense_epochs`.
    - ``scratch-b``: the same for as many epochs as cost what training the unpruned model does:
      `dense_epochs` x MACs before / MACs after (both: Liu et al. 2019, arXiv:1810.05270).

    Attributes:
      pruning_ratio: fraction of each group's channels that leave, in [0, 1).
      target_macs: fraction of the multiply-accumulates that stays, in (0, 1].
      target_parameters: fraction of the parameters that stays, in (0, 1].
      criterion: what scores channels.
      ranking: ``group`` (the same fraction of each) or ``global``.
      round_to: the channels that stay are a multiple of this.
      min_channels: that stay in each group.
      max_ratio: largest fraction of one group that may leave; None for 0.9, or the pruning ratio
        where that is larger.
      skip: names, name patterns or types of layers whose channels stay.
      way: as above.
      rounds: in how many steps channels leave, with training between, by the ways ``fine-tune``
        and ``during``.
      epochs: of fine-tuning, in all rounds together; 0 for none, after a single round.
      dense_epochs: that training the unpruned model takes.
      learning_rate: of fine-tuning; None takes the one of `TrainingSpec`.
      decay: ``cosine`` lets the rate fall to zero over each round of fine-tuning, and over the
        whole of a training from new initial weights; ``none`` keeps it. A compiled schedule,
        unless a rate is given in its place, is taken to span `dense_epochs`, and is stretched or
        shrunk to the same.
    """

    pruning_ratio: float | None = None
    target_macs: float | None = None
    target_parameters: float | None = None
    criterion: Criterion = "l2"
    ranking: Literal["group", "global"] = "group"
    round_to: int = 8
    min_channels: int = 1
    max_ratio: float | None = None
    skip: tuple[str, ...] = ()
    way: Way = "fine-tune"
    rounds: int = 1
    epochs: int = 10
    dense_epochs: int = 30
    learning_rate: float | None = None
    decay: Literal["none", "cosine"] = "none"

    def check(self, where: str = "recipe: structure.") -> None:
        """Refuse what is out of range or contradicts itself.

        Args:
          where: what to put before the names of the keys.

        Raises:
          InputError: a value out of range, not exactly one budget, or fewer epochs than rounds.
        """
        _check_ranges(self, where)
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InputError(
                f"{where.rstrip('.')}: exactly one of {', '.join(BUDGETS)} is needed; got {found}"
            )
        if self.way.startswith("scratch") and self.rounds > 1:
            raise InputError(
                f"{where}rounds is {self.rounds}, but way '{self.way}' prunes at once; "
                "leave rounds out"
            )
        key, needed = (
            ("dense_epochs", self.rounds + 1) if self.way == "during" else ("epochs", self.rounds)
        )
        if self.rounds > 1 and getattr(self, key) < needed:
            raise InputError(
                f"{where}{key} is {getattr(self, key)}, but {self.rounds} rounds by "
                f"way '{self.way}' need at least {needed}, one for each training between"
            )


@dataclass(frozen=True)
class SparsitySpec:
    """Magnitude pruning during fine-tuning.

    Attributes:
      final_sparsity: fraction of zeros at the end, in [0, 1).
      initial_sparsity: fraction of zeros at the first pruning step, in [0, 1).
      epochs: of training while pruning.
      pattern: ``unstructured``, ``block 1x4`` (rows x columns) or ``2:4`` (N kept of every M).
      ranking: ``layer`` or ``global``.
      skip: names, name patterns or layer types that stay dense.
      learning_rate: of this stage; None takes the one of `TrainingSpec`.
      rewrite_padding: first make convolutions pad as XNNPACK's sparse inference asks for; see
        `edgeprune.make_sparse_eligible`.
    """

    final_sparsity: float = 0.8
    initial_sparsity: float = 0.0
    epochs: int = 10
    pattern: str = "unstructured"
    ranking: Literal["layer", "global"] = "layer"
    skip: tuple[str, ...] = ()
    learning_rate: float | None = None
    rewrite_padding: bool = False


@dataclass(frozen=True)
class ClusteringSpec:
    """Weights share few values, which train on; see `edgeprune.WeightClustering`. Zeros stay.

    Attributes:
      clusters: values other than zero in each kernel, 2 or more. 15, and zero, are what indices of
        4 bits tell apart.
      per_channel: so many in each output channel, not in the kernel.
      epochs: of training them.
      skip: names, name patterns or layer types that keep weights of their own.
      learning_rate: of this stage; None takes the one of `TrainingSpec`.
    """

    clusters: int = 16
    per_channel: bool = False
    epochs: int = 5
    skip: tuple[str, ...] = ()
    learning_rate: float | None = None


@dataclass(frozen=True)
class QuantizationSpec:
    """Quantization-aware training on the int8 grid; zeros that are there stay.

    So do the clusters of `ClusteringSpec` where there is one; see `edgeprune.PreserveClusters`.

    Attributes:
      epochs: of training on the grid.
      skip: names, name patterns or layer types that train in float.
      learning_rate: of this stage; None takes the one of `TrainingSpec`.
    """

    epochs: int = 5
    skip: tuple[str, ...] = ()
    learning_rate: float | None = None


@dataclass(frozen=True)
class ExportSpec:
    """The .tflite file to write.

    Attributes:
      quantize: ``none``, ``float16``, ``dynamic``, ``int8``, ``int16x8`` or ``int4`` (weights
        alone; LiteRT runs it, no other runtime).
      io: ``float`` or ``int8`` inputs and outputs.
      sparse: ``auto``, ``on`` or ``off``: sparse encoding of the weights.
      calibration_samples: how many training samples calibrate the activations' ranges.
      look_up_tables: of an int8 model also write a file for TFLite Micro, with few distinct
        weights in look-up tables; see `edgeprune.look_up_tables`.
    """

    quantize: Quantize = "none"
    io: Literal["float", "int8"] = "float"
    sparse: Literal["auto", "on", "off"] = "auto"
    calibration_samples: int = 256
    look_up_tables: bool = False


@dataclass(frozen=True)
class Recipe:
    """What `compress` does: a stage that is None is left out."""

    training: TrainingSpec = TrainingSpec()
    structure: StructureSpec | None = None
    sparsity: SparsitySpec | None = None
    clustering: ClusteringSpec | None = None
    quantization: QuantizationSpec | None = None
    export: ExportSpec = ExportSpec()

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            spec = getattr(self, section.name)
            if spec is not None:
                _check_ranges(spec, f"recipe: {section.name}.")
        if self.structure is not None:
            self.structure.check()
        if self.quantization is not None and self.export.quantize not in ("int8", "int16x8"):
            raise InputError(
                f"recipe: [quantization] trains on the int8 grid, but [export] quantize is "
                f"'{self.export.quantize}'; set it to 'int8' or leave [quantization] out"
            )
        if self.export.look_up_tables and self.export.quantize != "int8":
            raise InputError(
                "recipe: export.look_up_tables is for int8 weights, but quantize is "
                f"'{self.export.quantize}'; set it to 'int8', or leave look_up_tables out"
            )
        if self.export.sparse == "on" and self.export.quantize not in ("none", "float16"):
            raise InputError(
                f"recipe: export.sparse is 'on', but the weights of quantize "
                f"'{self.export.quantize}' are never sparse-encoded: no runtime runs them so; set "
                "quantize to 'none' or 'float16', or leave sparse out"
            )

    @classmethod
    def load(cls, name_or_path: str | Path) -> "Recipe":
        """Return the preset of this name, or read a .toml file.

        Raises:
          InputError: no such preset or file, or the file is not a recipe; the key is named.
        """
        return load_stated(name_or_path)[0]

    @classmethod
    def from_dict(cls, document: dict[str, Any], source: str = "recipe") -> "Recipe":
        """Build a recipe from nested dicts as TOML gives them.

        What trains on the int8 grid is exported as ``int8`` where ``export.quantize`` is not given.

        Raises:
          InputError: a key is unknown or its value has the wrong type; both are named.
        """
        export = document.get("export", {})
        if "quantization" in document and isinstance(export, dict):
            document = {**document, "export": {"quantize": "int8", **export}}
        recipe: Recipe = build(cls, document, source)
        return recipe

    def to_toml(self) -> str:
        """Return the recipe as TOML that `load` reads back to an equal recipe."""
        lines: list[str] = []
        for section in dataclasses.fields(self):
            spec = getattr(self, section.name)
            if spec is None:
                continue
            lines.append(f"[{section.name}]")
            values = dataclasses.asdict(spec)
            lines += [
                f"{key} = {format_value(value)}"
                for key, value in values.items()
                if value is not None
            ]
            lines.append("")
        return "\n".join(lines)


def load_stated(recipe: Recipe | str | Path) -> tuple[Recipe, frozenset[str]]:
    """Return a recipe, and the paths of the keys that it states: ``export.quantize``, ...

    A .toml file states the keys that are written in it, whatever their values. A preset, and a
    `Recipe` made in Python, states each value that is not the default. What is not stated, a
    device may choose.

    Args:
      recipe: a preset's name, the path of a .toml file, or a `Recipe`.

    Raises:
      InputError: no such preset or file, or the file is not a recipe; the key is named.
    """
    if isinstance(recipe, Recipe):
        return recipe, _not_default(recipe)
    name = str(recipe)
    if name in PRESETS:
        return PRESETS[name], _not_default(PRESETS[name])
    path = Path(name)
    if path.suffix != ".toml":
        raise ArgumentError(
            f"unknown recipe '{name}'; the presets are {', '.join(PRESETS)}; "
            "a recipe of your own is a .toml file"
        )
    document = read_toml(path, "recipe")
    loaded = Recipe.from_dict(document, str(path))
    stated = {f"{name}.{key}" for name in document for key in document[name]}
    if loaded.quantization is not None:
        stated.add("export.quantize")  # the grid that it trains on
    return loaded, frozenset(stated)


def _not_default(recipe: Recipe) -> frozenset[str]:
    return frozenset(
        f"{section.name}.{key}"
        for section in dataclasses.fields(recipe)
        if (spec := getattr(recipe, section.name)) is not None
        for key, value in vars(spec).items()
        if value != getattr(type(spec)(), key)
    )


def _check_ranges(spec: Any, prefix: str) -> None:
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        where = prefix + field.name
        if value is None:
            continue
        leaving = field.name.endswith(("_sparsity", "_ratio"))
        if leaving and not 0 <= value < 1:
            raise InputError(f"{where} is a fraction in [0, 1), got {value:g}{_hint(value)}")
        if field.name.startswith("target_") and not 0 < value <= 1:
            raise InputError(
                f"{where} is the fraction that stays, in (0, 1], got {value:g}{_hint(value)}"
            )
        least = 0 if field.name == "epochs" and isinstance(spec, StructureSpec) else 1
        least = 2 if field.name == "clusters" else least
        if field.name in _COUNTS and value < least:
            raise InputError(f"{where} must be at least {least}, got {value}")
        if field.name == "learning_rate" and not value > 0:
            raise InputError(f"{where} must be above 0, got {value:g}")


_COUNTS = (
    "epochs",
    "dense_epochs",
    "rounds",
    "round_to",
    "min_channels",
    "batch_size",
    "calibration_samples",
    "clusters",
)


def _hint(value: float) -> str:
    return f"; did you mean {value / 100:g}?" if 1 < value < 100 else ""


PRESETS: dict[str, Recipe] = {
    "prune": Recipe(sparsity=SparsitySpec()),
    "int8": Recipe(export=ExportSpec(quantize="int8")),
    "pqat-int8": Recipe(
        sparsity=SparsitySpec(),
        quantization=QuantizationSpec(),
        export=ExportSpec(quantize="int8"),
    ),
    "cluster-int8": Recipe(clustering=ClusteringSpec(), export=ExportSpec(quantize="int8")),
    "prune-cluster-int8": Recipe(
        sparsity=SparsitySpec(),
        clustering=ClusteringSpec(clusters=15),
        export=ExportSpec(quantize="int8"),
    ),
    "cqat-int8": Recipe(
        clustering=ClusteringSpec(),
        quantization=QuantizationSpec(),
        export=ExportSpec(quantize="int8"),
    ),
    "pcqat-int8": Recipe(
        sparsity=SparsitySpec(),
        clustering=ClusteringSpec(clusters=15),
        quantization=QuantizationSpec(),
        export=ExportSpec(quantize="int8"),
    ),
    "structured": Recipe(structure=StructureSpec(target_macs=0.5)),
    "structured-int8": Recipe(
        structure=StructureSpec(target_macs=0.5),
        quantization=QuantizationSpec(),
        export=ExportSpec(quantize="int8"),
    ),
    "structured-pqat-int8": Recipe(
        structure=StructureSpec(target_macs=0.5),
        sparsity=SparsitySpec(),
        quantization=QuantizationSpec(),
        export=ExportSpec(quantize="int8"),
    ),
}
