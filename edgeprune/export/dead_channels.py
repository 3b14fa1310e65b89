"""Remove channels from a .tflite file that cannot change what it computes."""

import io
import zipfile
from dataclasses import asdict, dataclass
from typing import Any

from edgeprune.errors import counted
from edgeprune.export import tflite
from edgeprune.export.cleanup.channels import Channels
from edgeprune.export.cleanup.removal import Removal, find_removal
from edgeprune.export.cleanup.rewrite import without
from edgeprune.export.cleanup.rules import RULES
from edgeprune.export.graph import TfliteModel
from edgeprune.export.macs import tflite_macs
from edgeprune.report.table import format_bytes

_MAX_CHANNELS = 10_000_000


@dataclass(frozen=True)
class LayerChange:
    """A convolution, depthwise convolution or fully-connected operator, before and after.

    Attributes:
      layer: its name, as `inspect` shows it.
      op: ``CONV_2D``, ``DEPTHWISE_CONV_2D`` or ``FULLY_CONNECTED``.
      channels_before: output channels.
      channels_after: output channels that are left.
      weights_before: entries of its kernel, zeros included.
      weights_after: entries that are left.
      macs_before: multiply-accumulates; None where a free dimension leaves them unknown.
      macs_after: likewise.
    """

    layer: str
    op: str
    channels_before: int
    channels_after: int
    weights_before: int
    weights_after: int
    macs_before: int | None
    macs_after: int | None


@dataclass(frozen=True)
class Refused:
    """Constant channels that had to stay, or a file that was left as it is.

    Attributes:
      layer: name of the operator that makes them; "" for the whole file.
      channels: how many; 0 for the whole file.
      reason: what stands in the way.
    """

    layer: str
    channels: int
    reason: str


@dataclass(frozen=True)
class CleanUp:
    """What was removed from a .tflite file, and what was not.

    Attributes:
      layers: every operator with weights, in execution order; empty if the file was refused.
      refused: constant channels that stay, with the reason.
      bytes_before: size of the file.
      bytes_after: size of the result.
    """

    layers: tuple[LayerChange, ...]
    refused: tuple[Refused, ...]
    bytes_before: int
    bytes_after: int

    @property
    def channels_removed(self) -> int:
        """Output channels that left, over all operators with weights."""
        return sum(layer.channels_before - layer.channels_after for layer in self.layers)

    @property
    def weights_before(self) -> int:
        """Entries of all kernels."""
        return sum(layer.weights_before for layer in self.layers)

    @property
    def weights_after(self) -> int:
        """Entries of all kernels that are left."""
        return sum(layer.weights_after for layer in self.layers)

    @property
    def macs_before(self) -> int | None:
        """Multiply-accumulates of the operators with weights; None if unknown."""
        return _total([layer.macs_before for layer in self.layers])

    @property
    def macs_after(self) -> int | None:
        """Likewise of the result."""
        return _total([layer.macs_after for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as one JSON-ready dictionary, totals included."""
        totals = ("channels_removed", "weights_before", "weights_after", "macs_before")
        return asdict(self) | {name: getattr(self, name) for name in (*totals, "macs_after")}

    def __str__(self) -> str:
        if not self.channels_removed and not self.refused:
            return "no dead channels"
        lines = []
        if self.channels_removed or self.layers:
            lines.append(_summary(self))
        lines += [
            f"{counted(entry.channels, 'constant channel')} of '{entry.layer}' "
            f"{'stays' if entry.channels == 1 else 'stay'}: {entry.reason}"
            if entry.layer
            else f"dead channels were not looked for: {entry.reason}"
            for entry in self.refused
        ]
        return "\n".join(lines)


def _summary(cleanup: CleanUp) -> str:
    if not cleanup.channels_removed:
        return "no dead channels that can leave"
    macs = (
        ""
        if cleanup.macs_before is None or cleanup.macs_after is None
        else f", {cleanup.macs_before:,} -> {cleanup.macs_after:,} MACs"
    )
    return (
        f"{counted(cleanup.channels_removed, 'dead channel')} removed: "
        f"{cleanup.weights_before:,} -> {cleanup.weights_after:,} weights{macs}, "
        f"{format_bytes(cleanup.bytes_before)} -> {format_bytes(cleanup.bytes_after)}"
    )


def remove_dead_channels_tflite(content: bytes) -> tuple[bytes, CleanUp]:
    """Remove the channels of a .tflite file that cannot change its outputs.

    A channel is dead if it is constant whatever the input (its kernel is zero, or its sums stay
    below the zero of its ReLU for all inputs that the types allow), so that what reads it can
    take its contribution into the bias, or if nothing reads it. Integer outputs stay the same to
    the bit, in every runtime; float outputs up to the rounding of sums.

    Args:
      content: of a .tflite file, float or quantized.

    Returns:
      The new content, or the same if nothing left, and what happened. Files that cannot be
      followed as a whole come back as they are, with the reason in `refused`.

    Raises:
      InputError: the content is not a whole, consistent .tflite model.

    Source: interval arithmetic on the kernels of tensorflow/lite/kernels and XNNPACK.
    """
    model = tflite.read(content)
    if reason := _unsuited(model):
        return content, CleanUp((), (Refused("", 0, reason),), len(content), len(content))
    graph = model.subgraphs[0]
    channels = Channels(graph)
    channels.follow(RULES)
    removal = find_removal(channels)
    cleaned = without(content, graph, removal) if removal.live else content
    return cleaned, _report(model, tflite.read(cleaned), removal)


def _unsuited(model: TfliteModel) -> str | None:
    """Say why a file is left alone, if it is."""
    from ai_edge_litert import schema_py_generated as schema

    if len(model.subgraphs) > 1:
        return "it has several subgraphs"
    (graph,) = model.subgraphs
    if custom := sorted({op.name for op in graph.operators if op.custom}):
        return f"it has custom operators ({', '.join(custom)})"
    if any(tensor.sparsity is not None for tensor in graph.tensors):
        return (
            "its weights are sparsely encoded; convert the Keras model again without that, which "
            "leaves them out itself or gives a file to clean"
        )
    # Damaged files claim shapes that no memory holds.
    if sum(tensor.shape[-1] for tensor in graph.tensors if tensor.shape) > _MAX_CHANNELS:
        return f"its tensors have more than {_MAX_CHANNELS:,} channels"
    root = schema.Model.GetRootAs(model.content)
    buffers = [root.Buffers(index) for index in range(root.BuffersLength())]
    if any(buffer.Offset() > 1 for buffer in buffers):
        return "its weights lie outside the flatbuffer"
    if zipfile.is_zipfile(io.BytesIO(model.content)):
        return "it carries attached files"
    seen: set[int] = set(graph.inputs) | {t.index for t in graph.tensors if t.data is not None}
    for operator in graph.operators:
        if seen & set(operator.outputs):
            return "an operator writes a constant, an input or another's output"
        seen.update(operator.outputs)
    return None


def _report(before: TfliteModel, after: TfliteModel, removal: Removal) -> CleanUp:
    macs = [tflite_macs(model) for model in (before, after)]
    layers, refused = [], []
    for read, (rows, columns), reasons in zip(
        removal.readings, removal.masks, removal.refused, strict=True
    ):
        layer = read.layer
        counts = [None if count.total is None else count.by_layer[layer.position] for count in macs]
        taps = layer.kernel.entries // (layer.channels * (len(columns) if layer.mixing else 1))
        kept = int(rows.sum()) * (int(columns.sum()) if layer.mixing else 1)
        layers.append(
            LayerChange(
                layer=layer.name,
                op=before.subgraphs[0].operators[layer.position].name,
                channels_before=layer.channels,
                channels_after=int(rows.sum()),
                weights_before=layer.kernel.entries,
                weights_after=taps * kept,
                macs_before=counts[0],
                macs_after=counts[1],
            )
        )
        refused += [Refused(layer.name, count, reason) for reason, count in reasons.items()]
    return CleanUp(tuple(layers), tuple(refused), len(before.content), len(after.content))


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
