"""What an inspection found, as data and as text."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprune.export.sparse_inference import SparseInference
from edgeprune.report.table import Column, format_bytes, render

LAYER_COLUMNS = (
    Column("layer"),
    Column("op"),
    Column("shape"),
    Column("dtype"),
    Column("params", "count"),
    Column("MACs", "count"),
    Column("sparsity", "fraction"),
    Column("distinct", "count"),
    Column("in a channel", "count"),
)
_LEGEND = (
    "distinct: values in the kernel; in a channel: the most in any output channel",
    "sparse-encoded: with TFLite's encoding of zeros where that is smaller (convert --sparse); "
    "entropy: with each kernel's values coded by how often they occur, as edgeprune pack does",
)


@dataclass(frozen=True)
class Layer:
    """One operator of a .tflite file, or one Keras layer, that has parameters or products.

    Attributes:
      name: of the layer: its path through nested models, or the operator's output tensor.
      op: operator (`CONV_2D`) or layer class (`Conv2D`).
      shape: of its largest kernel; without one, of its largest parameter, else of its output.
      dtype: of that tensor.
      parameters: entries of its kernels, biases and other constants; a shared one in each layer.
      macs: multiply-accumulates; None where the model's are unknown.
      sparsity: fraction of its kernels' entries that are zero; None without a kernel.
      distinct_values: in its kernel; the most in any of them if there are several.
      distinct_in_channel: the most in any of its kernel's output channels, of a .tflite file; None
        where that has none, or floats differ nearly all.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    macs: int | None
    sparsity: float | None
    distinct_values: int | None
    distinct_in_channel: int | None = None


@dataclass(frozen=True)
class Micro:
    """What keeps a model off TensorFlow Lite Micro.

    Attributes:
      unsupported_ops: operators without a kernel there; None where it cannot be told.
      notes: dtypes that its kernels refuse.
    """

    unsupported_ops: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
      parameters: entries of all weights, biases and other learned constants, shared ones once.
      macs: multiply-accumulates of one inference at batch 1; None with a reason in `unavailable`.
      bytes: of the file; of a Keras model in memory, of its weights.
      gzip_bytes: those bytes after gzip, level 9.
      sparse_encoded_bytes: what they would be with each kernel in TFLite's sparse encoding
        where that is smaller (`edgeprune.export.sizes.sparse_bytes`).
      entropy_bytes: what they would be with each kernel at its order-0 entropy, its table of
        distinct values included (`edgeprune.export.sizes.entropy_bytes`).
      sparsity: fraction of the kernels' entries that are zero. This and the two figures above are
        None where kernels are in look-up tables, with the reason in `unavailable`.
      layers: in order of execution, those with parameters or products.
      sparse_inference: whether XNNPACK would skip the zeros.
      mcu: what keeps it off microcontrollers.
      notes: what the figures rest on.
      unavailable: figure -> why it is None.
    """

    parameters: int
    macs: int | None
    bytes: int
    gzip_bytes: int
    sparse_encoded_bytes: int | None
    entropy_bytes: int | None
    sparsity: float | None
    layers: tuple[Layer, ...]
    sparse_inference: SparseInference
    mcu: Micro
    notes: tuple[str, ...] = ()
    unavailable: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, keyed as the attributes."""
        plain: dict[str, Any] = json.loads(self.to_json())
        return plain

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def rows(self) -> list[tuple[str | float | None, ...]]:
        """Return the values of `LAYER_COLUMNS`, a row a layer."""
        return [
            (
                layer.name,
                layer.op,
                "x".join(map(str, layer.shape)),
                layer.dtype,
                layer.parameters,
                layer.macs,
                layer.sparsity,
                layer.distinct_values,
                layer.distinct_in_channel,
            )
            for layer in self.layers
        ]

    def summary(self) -> str:
        """Return the totals in words, a line each."""
        macs = f"unknown ({self.unavailable['macs']})" if self.macs is None else f"{self.macs:,}"
        sparsity = (
            f"unknown ({self.unavailable['sparsity']})"
            if self.sparsity is None
            else f"{self.sparsity:.3f}"
        )
        sizes = (
            ("gzip", self.gzip_bytes),
            ("sparse-encoded", self.sparse_encoded_bytes),
            ("entropy", self.entropy_bytes),
        )
        lines = [
            f"parameters  {self.parameters:,}",
            f"MACs        {macs}",
            f"sparsity    {sparsity}",
            f"size        {format_bytes(self.bytes)}"
            + "".join(f", {name} {format_bytes(size)}" for name, size in sizes if size is not None),
        ]
        if self.mcu.unsupported_ops is not None:  # else it is no .tflite model yet
            lines.append(f"XNNPACK skips zeros (64-bit Arm)  {self._sparse_verdict}")
            missing = ", ".join(self.mcu.unsupported_ops)
            verdict = f"lacks {missing}" if missing else "has every operator"
            if self.mcu.notes:
                verdict += f", {'and' if missing else 'but'} refuses the weights: see the notes"
            lines.append(f"TFLite Micro {verdict}")
        lines += _LEGEND if self.entropy_bytes is not None else _LEGEND[:1]
        lines += [f"note: {note}" for note in (*self.mcu.notes, *self.notes)]
        return "\n".join(lines)

    @property
    def _sparse_verdict(self) -> str:
        sparse = self.sparse_inference
        if sparse.eligible:
            return "yes"
        how = "no" if sparse.eligible is False else "perhaps"
        return f"{how}: {'; '.join(sparse.reasons)}"

    def __str__(self) -> str:
        return f"{render(LAYER_COLUMNS, self.rows())}\n\n{self.summary()}"
