"""What is left of a file without its weights, by zstd with a dictionary of .tflite files.

A small model's names, tables and offsets are much like any other's: the dictionary, taken from
models of `tools/make_pack_dictionary.py`, holds what they have in common. It is part of the format.
"""

from functools import cache
from pathlib import Path

import zstandard

from edgeprune.errors import InputError

_LEVEL = 19
_MAX_WINDOW = 1 << 27


@cache
def _dictionary() -> zstandard.ZstdCompressionDict:
    content = Path(__file__).with_name("dictionary.bin").read_bytes()
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def compress(content: bytes) -> bytes:
    """Compress bytes; their number has to be kept elsewhere."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(content),
        dict_size=len(_dictionary()),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    compressor = zstandard.ZstdCompressor(dict_data=_dictionary(), compression_params=parameters)
    return compressor.compress(content)


def decompress(content: bytes | memoryview, size: int) -> bytes:
    """Return the `size` bytes that were compressed, and take no more memory than they do.

    Raises:
      InputError: there are more or fewer, or `content` is damaged.
    """
    decompressor = zstandard.ZstdDecompressor(
        dict_data=_dictionary(),
        max_window_size=_MAX_WINDOW,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
    )
    try:
        found = decompressor.decompress(
            content, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except (zstandard.ZstdError, MemoryError) as error:
        raise InputError("its compressed part is damaged") from error
    if len(found) != size:
        raise InputError("its compressed part is damaged")
    return found
