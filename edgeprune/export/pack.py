"""Pack .tflite files for shipping over the air, losslessly, and unpack them."""

import gzip
import json
import lzma
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import ArgumentError, EdgepruneError, InputError
from edgeprune.export.micro import all_in_tables
from edgeprune.export.packing import container
from edgeprune.export.packing.arrays import find_arrays
from edgeprune.export.tflite import read
from edgeprune.files import atomic_path, check_target
from edgeprune.report.table import format_bytes

# Unpacking takes memory for several times the file: what is longer has to be asked for.
MAX_BYTES = 1 << 30
_IDENTIFIER = slice(4, 8)


@dataclass(frozen=True)
class Packed:
    """A packed model.

    Attributes:
      path: the packed file.
      bytes_before: of the .tflite file.
      bytes_after: of the packed file.
      weights: how many the model has, as `inspect` counts them; zeros and int4 ones too.
      bits_per_weight: of the whole packed file; None without weights.
      others: what other compressors make of the .tflite file, in bytes, if that was asked for.
      notes: what should be known of this file, a sentence each.
    """

    path: Path
    bytes_before: int
    bytes_after: int
    weights: int
    bits_per_weight: float | None
    others: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {format_bytes(self.bytes_after)}, of {format_bytes(self.bytes_before)} "
            f"({self.bytes_after / self.bytes_before:.3f}x)"
        ]
        if self.bits_per_weight is not None:
            lines.append(f"{self.bits_per_weight:.3f} bits for each of {self.weights:,} weights")
        lines += [
            f"{name}: {format_bytes(size)} ({size / self.bytes_before:.3f}x)"
            for name, size in self.others.items()
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """Return the document that `edgeprune pack --json` prints."""
        return _json(self)


@dataclass(frozen=True)
class Unpacked:
    """A model as it was before it was packed.

    Attributes:
      path: the .tflite file.
      bytes_before: of the packed file.
      bytes_after: of the .tflite file.
    """

    path: Path
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        return f"{self.path}: {format_bytes(self.bytes_after)}, as it was packed"

    def to_json(self) -> str:
        """Return the document that `edgeprune unpack --json` prints."""
        return _json(self)


def _json(result: Packed | Unpacked) -> str:
    document: dict[str, Any] = {**asdict(result), "path": str(result.path)}
    return json.dumps({"output": document.pop("path"), **document}, indent=2)


def pack(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, compare: bool = False
) -> Packed:
    """Pack a .tflite file, so that `unpack` gives it back byte for byte.

    Weights are entropy-coded with tables of their own (int4 ones two at a time, as they lie in a
    byte), the rest is compressed; no TensorFlow and no interpreter is loaded. The packed file is
    unpacked again before it is kept.

    Args:
      path: a .tflite file; one whose structure cannot be read is packed too, only less.
      output: the file to write.
      compare: also measure gzip, xz and zstd on the .tflite file.

    Raises:
      InputError: no such file, not a .tflite file, or `output` cannot be written.
    """
    source, target = Path(path), Path(output)
    _check_target(source, target)
    content = _read(source)
    if content[_IDENTIFIER] != b"TFL3":
        what = "is a packed model already" if content[:3] == container.MAGIC else "is none"
        raise InputError(
            f"only .tflite files can be packed, and {source} {what}: the identifier TFL3 is missing"
        )
    notes: tuple[str, ...] = ()
    try:
        model = read(content)
        spans = find_arrays(model)
        in_tables = all_in_tables(model).values()
        weights = sum(tensor.entries for tensor in (*model.weights(), *in_tables))
    except InputError as error:
        spans, weights = [], 0
        notes = (f"its weights could not be found, so it was packed as mere bytes: {error}",)
    try:
        packed = container.write(content, spans)
        back = container.read(packed.content, container.read_header(packed.content))
    except MemoryError as error:
        raise _memory(source, len(content)) from error
    if back != content:
        raise EdgepruneError(f"{source} did not come back as it was; please report this model")
    with atomic_path(target) as temporary:
        temporary.write_bytes(packed.content)
    return Packed(
        target,
        len(content),
        len(packed.content),
        weights,
        8 * len(packed.content) / weights if weights else None,
        _others(content) if compare else {},
        notes,
    )


def unpack(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> Unpacked:
    """Unpack what `pack` has written.

    Args:
      path: the packed file.
      output: the .tflite file to write.
      max_bytes: the longest .tflite file to make; memory stays within about 10 times that,
        however the packed file is made; of most models 3 to 7 times their size.

    Raises:
      InputError: no such file, not a packed file, of another version, longer than `max_bytes`, or
        damaged in any way; or `output` cannot be written. Nothing is written then.
    """
    source, target = Path(path), Path(output)
    _check_target(source, target)
    start = _read(source, container.HEADER_BYTES)
    try:
        header = container.read_header(start)
        if header.content_bytes > max_bytes:
            raise InputError(
                f"it claims to hold {header.content_bytes} bytes, more than the {max_bytes} "
                "allowed; if you trust it, allow more with `max_bytes`"
            )
        # One byte more than the header names tells that there are too many.
        content = container.read(_read(source, header.packed_bytes + 1), header)
    except InputError as error:
        raise InputError(f"cannot unpack {source}: {error}") from error
    except MemoryError as error:
        raise _memory(source, header.content_bytes) from error
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return Unpacked(target, header.packed_bytes, len(content))


def _check_target(source: Path, target: Path) -> None:
    check_target(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise ArgumentError(f"output {target} is the input itself; name another file")


def _memory(source: Path, size: int) -> EdgepruneError:
    return EdgepruneError(f"there is not enough memory for {source}, a model of {size} bytes")


def _read(source: Path, most: int | None = None) -> bytes:
    """Read a file, or its first bytes."""
    if not source.is_file():
        what = "a directory" if source.is_dir() else "no such file"
        raise InputError(f"cannot read {source}: {what}")
    try:
        with source.open("rb") as stream:
            return stream.read(-1 if most is None else most)
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error


def _others(content: bytes) -> dict[str, int]:
    import zstandard

    return {
        "gzip -9": len(gzip.compress(content, 9, mtime=0)),
        "xz -9e": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(content)),
    }
