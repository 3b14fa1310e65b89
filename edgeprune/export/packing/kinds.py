"""The types of numbers that a .tflite file's arrays have."""

from dataclasses import dataclass

import numpy as np

Channels = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Kind:
    """A type of numbers.

    Attributes:
      dtypes: TFLite's names of the types that are coded so.
      itemsize: bytes of a number.
      exponent: bits of a float's exponent; 0 of integers.
    """

    dtypes: tuple[str, ...]
    itemsize: int
    exponent: int = 0

    @property
    def float(self) -> np.dtype[np.floating] | None:
        """NumPy's type, if it has one and the numbers are floats."""
        return np.dtype(f"<f{self.itemsize}") if self.dtypes[0] in ("float16", "float32") else None

    @property
    def bits(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned integers that hold the numbers' bits, little-endian."""
        return np.dtype(f"<u{self.itemsize}")


# The place in this list is part of the file format.
KINDS = (
    Kind(("int8",), 1),
    Kind(("uint8", "bool", "int4", "uint4", "int2"), 1),
    Kind(("int16", "uint16"), 2),
    Kind(("int32", "uint32"), 4),
    Kind(("int64", "uint64"), 8),
    Kind(("float16",), 2, 5),
    Kind(("bfloat16",), 2, 8),
    Kind(("float32",), 4, 8),
)
SCALES = KINDS[-1]  # what quantization scales are
SIGNED_BYTES = KINDS[0]
