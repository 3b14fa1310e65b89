"""Look-up tables for TFLite Micro: few distinct weights as indices of 1 to 7 bits.

What tflite-micro calls LUT compression: a kernel is stored as packed indices and tables of its
values, one for each output channel that has a scale of its own, and an operator TFLM_DECODE puts
it together in the arena before each operator that reads it. Only TFLite Micro runs such a file.
"""

import gzip
import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices import tflm
from edgeprune.devices.process import Ended
from edgeprune.devices.rows import ending
from edgeprune.devices.weight_bytes import MOST_VALUES, TABLE_OVERHEAD_BYTES, table_bits
from edgeprune.errors import InputError, UnsupportedError, VerificationError, counted, listed
from edgeprune.export.artifact import record_path
from edgeprune.export.graph import Subgraph, Tensor, TfliteModel
from edgeprune.export.layer_names import Layers
from edgeprune.export.micro import has_look_up_tables
from edgeprune.export.tflite import read
from edgeprune.files import atomic_paths, check_target
from edgeprune.report.table import format_bytes

SAMPLES = 8
# Those whose weights may be decoded: tensorflow/lite/micro/docs/compression.md.
_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


@dataclass(frozen=True)
class TableKernel:
    """A kernel, and how it is stored.

    Attributes:
      name: of its tensor.
      layer: that computes with it, named as `inspect` does; in a subgraph, the tensor's name.
      entries: its weights.
      values: distinct ones, zero among them; where `per_channel`, the most in any channel.
      per_channel: whether each output channel has a scale, and so a table, of its own.
      bits: of an index; None where the weights stay as they are.
      bytes: of the indices and tables, or of the weights.
    """

    name: str
    layer: str
    entries: int
    values: int
    per_channel: bool
    bits: int | None
    bytes: int


@dataclass(frozen=True)
class LookUpTables:
    """A .tflite file with look-up tables beside the plain one; outputs are equal, bit for bit.

    Attributes:
      path: the file.
      sha256: of its content.
      source: name of the plain file.
      bytes: its size.
      plain_bytes: the plain file's.
      gzip_bytes: its size after gzip, level 9.
      plain_gzip_bytes: the plain file's.
      arena_bytes: the smallest arena on this machine; kernels are decoded there.
      plain_arena_bytes: the plain file's.
      samples: random inputs that both ran on in TFLite Micro.
      runtime_version: of tflite-micro.
      kernels: all, in the order of the file.
      made_by: ``layers``, names of the Keras model's, where the plain file's record has them; by
        these `inspect` names the rows of this file, too.
    """

    path: Path
    sha256: str
    source: str
    bytes: int
    plain_bytes: int
    gzip_bytes: int
    plain_gzip_bytes: int
    arena_bytes: int
    plain_arena_bytes: int
    samples: int
    runtime_version: str
    kernels: tuple[TableKernel, ...]
    made_by: dict[str, Any]

    def to_json(self) -> str:
        """Return all of it as one JSON document."""
        return json.dumps(asdict(self) | {"path": self.path.name}, indent=2) + "\n"

    def __str__(self) -> str:
        stored = [kernel for kernel in self.kernels if kernel.bits is not None]
        many = [k.layer for k in self.kernels if k.bits is None and k.values > MOST_VALUES]
        small = [k.layer for k in self.kernels if k.bits is None and k.values <= MOST_VALUES]
        stay = (
            [f"kept as before, with more than {MOST_VALUES} values: {listed(many)}"] if many else []
        )
        stay += [f"kept as before, where a table saves no bytes: {listed(small)}"] if small else []
        return "\n".join(
            [
                f"{self.path}: {format_bytes(self.bytes)}, {self.bytes / self.plain_bytes:.2f}x of "
                f"{self.source}'s {format_bytes(self.plain_bytes)} (gzip makes "
                f"{format_bytes(self.plain_gzip_bytes)} of that); look-up tables for "
                f"{len(stored)} of {len(self.kernels)} kernels",
                *stay,
                f"arena: {self.plain_arena_bytes:,} -> {self.arena_bytes:,} bytes, where kernels "
                "are decoded (simulated)",
                "outputs equal to the plain file's, bit for bit, on "
                f"{counted(self.samples, 'sample')} in TFLite Micro, which alone runs it",
            ]
        )


def look_up_tables(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> LookUpTables:
    """Write a file for TFLite Micro whose kernels of few distinct values are in look-up tables.

    Where that saves no bytes a kernel stays as it is. Both files then run in TFLite Micro on this
    machine.

    Args:
      model: an int8 .tflite file, which stays as it is.
      output: the file to write; None for `table_path`. ``<output>.json`` beside it records it.
      samples: random inputs to compare the outputs for.
      seed: of these.

    Raises:
      InputError: no such file, no whole .tflite model, or the output cannot be written.
      UnsupportedError: tflite-micro is not installed; the model is not int8; no kernel has few
        enough values; or TFLite Micro does not run the model.
      VerificationError: outputs differ.

    Source: tflite-micro, tensorflow/lite/micro/compression.
    """
    path = Path(model)
    target = table_path(path) if output is None else Path(output)
    if target.suffix != ".tflite" or target.resolve() == path.resolve():
        raise InputError(f"output {target} must be another file than {path}, ending in .tflite")
    check_target(target)
    check_target(record_path(target))
    graph = read(path)
    chosen = _chosen(graph, path)
    installed = tflm.version()
    entries = [
        (*place, kernel.bits, _table_axis(graph.subgraphs[place[0]].tensors[place[1]]))
        for place, kernel in chosen.items()
        if kernel.bits is not None
    ]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "tables.tflite"
        arguments = [str(path.absolute()), str(scratch), json.dumps(entries)]
        said, ended = tflm.ask(
            "edgeprune.devices.look_up_tables_worker",
            [*arguments, str(samples), str(seed)],
            tflm.TIMEOUT_SECONDS,
        )
        check(said, ended, path)
        content = scratch.read_bytes()
    if len(content) >= len(graph.content):
        raise UnsupportedError(
            f"{path}: look-up tables would take {len(content):,} bytes, no fewer than its "
            f"{len(graph.content):,}; use the plain file"
        )
    found = LookUpTables(
        path=target,
        sha256=hashlib.sha256(content).hexdigest(),
        source=path.name,
        bytes=len(content),
        plain_bytes=len(graph.content),
        gzip_bytes=len(gzip.compress(content, 9)),
        plain_gzip_bytes=len(gzip.compress(graph.content, 9)),
        arena_bytes=said["arenas"][1],
        plain_arena_bytes=said["arenas"][0],
        samples=samples,
        runtime_version=installed,
        kernels=tuple(chosen.values()),
        made_by={"layers": sorted(Layers(path, graph).known)},
    )
    with atomic_paths(target, record_path(target)) as (temporary, temporary_record):
        temporary.write_bytes(content)
        temporary_record.write_text(found.to_json(), encoding="utf-8")
    return found


def check(said: dict[str, Any], ended: Ended, path: Path) -> None:
    """Refuse a model that the worker could not store so, or whose outputs changed.

    Raises:
      UnsupportedError, VerificationError: as `look_up_tables`.
    """
    if said.get("lacking"):
        raise UnsupportedError(
            f"{path}: TFLite Micro has no kernel for {', '.join(said['lacking'])}; replace the "
            "layers that need it"
        )
    for key in ("failed", "refused"):
        if key in said:
            raise UnsupportedError(
                f"{path}: TFLite Micro refuses it with look-up tables: {said[key]}"
            )
    if ended.code != 0:
        stage = said.get("stage", "starting")
        raise UnsupportedError(f"{path}: tflite-micro {ending(ended)} while {stage}")
    compared = said["comparison"]
    if compared["differing"]:
        raise VerificationError(
            f"{path}: with look-up tables {compared['differing']} of {compared['values']} outputs "
            "differ in TFLite Micro; nothing was written, use the plain file"
        )


def table_path(path: Path) -> Path:
    """Name the file with look-up tables: ``model.tflite`` -> ``model.lut.tflite``."""
    return path.with_suffix(".lut.tflite")


def _chosen(model: TfliteModel, path: Path) -> dict[tuple[int, int], TableKernel]:
    """Decide for each int8 kernel, by (subgraph, tensor), how it is stored."""
    if has_look_up_tables(model):
        raise UnsupportedError(f"{path} has look-up tables already; give the plain file")
    found: dict[tuple[int, int], TableKernel] = {}
    names = Layers(path, model)
    for number, graph in enumerate(model.subgraphs):
        for position, operator in enumerate(graph.operators):
            for kernel in graph.kernels(operator):
                if kernel.dtype == "int8" and _may_be_decoded(graph, kernel):
                    layer = kernel.name if number else names.of(position)
                    found[number, kernel.index] = _stored(kernel, layer)
    if not found:
        dtypes = sorted({weight.dtype for weight in model.weights()}) or ["no"]
        raise UnsupportedError(
            f"look-up tables are for int8 weights of {', '.join(_OPERATORS)}; {path} has "
            f"{', '.join(dtypes)} weights: convert it with --quantize int8"
        )
    if all(kernel.bits is None for kernel in found.values()):
        counts = [
            f"{kernel.layer} {kernel.values}{' a channel' if kernel.per_channel else ''}"
            for kernel in found.values()
        ]
        raise UnsupportedError(
            f"{path}: no kernel has so few distinct values that a look-up table of them, "
            f"{MOST_VALUES} at most, saves bytes: {listed(counts)}; cluster the weights first, by "
            "WeightClustering or [clustering] in a recipe"
        )
    return found


def _may_be_decoded(graph: Subgraph, kernel: Tensor) -> bool:
    readers = [operator for operator in graph.operators if kernel.index in operator.inputs]
    return all(operator.name in _OPERATORS for operator in readers)


def _table_axis(kernel: Tensor) -> int | None:
    """Return the axis along which tables change; None for a single table.

    TFLite Micro's kernel goes by the scales: there are as many tables as there are of these.
    """
    quantization = kernel.quantization
    return None if quantization is None or quantization.scale.size == 1 else quantization.axis


def _stored(kernel: Tensor, layer: str) -> TableKernel:
    weights, axis = kernel.values(), _table_axis(kernel)
    channels = weights.reshape(1, -1)
    if axis is not None:
        channels = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    values = max(np.unique(channel).size for channel in channels)
    # All tables are as long as the longest.
    size = math.ceil(weights.size * table_bits(values) / 8) + values * len(channels)
    pays = values <= MOST_VALUES and size + TABLE_OVERHEAD_BYTES < weights.size
    return TableKernel(
        name=kernel.name,
        layer=layer,
        entries=weights.size,
        values=values,
        per_channel=axis is not None,
        bits=table_bits(values) if pays else None,
        bytes=size if pays else weights.size,
    )
