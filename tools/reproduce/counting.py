"""How many bytes a model takes at each stage of deep compression, counted to the last.

- dense: 4 bytes for each parameter, as in the paper. The float32 .tflite file is larger.
- pruned: each kernel as its kept weights, 32 bits each, in the order of the array, and with each
  the distance from the one before, in 5 bits (dense layers) or 8 (convolutions) as in the paper.
  Where a distance is too long for them, a zero is stored in between, in full. Biases are 4 bytes
  a number.
- shared: the same, but each weight is an index into its kernel's table of values, of as few bits
  as tell them apart; the table takes 4 bytes a value. Zero is a value where one has to be stored.
- coded: the length of the packed file, which holds the whole model: codes and tables, biases,
  scales, the graph, its names, and the container with its checksum.

Source: Han 2016, arXiv:1510.00149, sections 2, 3 and table 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.packing.arrays import find_arrays, start_of
from edgeprune.export.packing.coder import Encoder
from edgeprune.export.packing.numbers import code_numbers
from edgeprune.export.tflite import read

Array = npt.NDArray[Any]

FLOAT_BITS = 32
DENSE_INDEX_BITS, CONVOLUTION_INDEX_BITS = 5, 8


@dataclass(frozen=True)
class KernelBits:
    """What a kernel takes in the paper's sparse form.

    Attributes:
      weights: of the kernel, zeros included.
      kept: those that are not zero.
      entries: what is stored: those kept, and zeros where a distance is too long.
      index_bits: of each entry's distance from the one before.
      values: distinct ones among the entries.
    """

    weights: int
    kept: int
    entries: int
    index_bits: int
    values: int

    @property
    def value_bits(self) -> int:
        """Bits that tell the values apart."""
        return (self.values - 1).bit_length() if self.values else 0

    @property
    def pruned_bits(self) -> int:
        """Bits with each value in full."""
        return self.entries * (FLOAT_BITS + self.index_bits)

    @property
    def shared_bits(self) -> int:
        """Bits with each value as an index into a table, and the table."""
        return self.entries * (self.value_bits + self.index_bits) + self.values * FLOAT_BITS


def kernel_bits(kernel: Array) -> KernelBits:
    """Count a kernel of a dense layer (2 axes) or of a convolution."""
    flat = kernel.reshape(-1)
    index_bits = DENSE_INDEX_BITS if kernel.ndim == 2 else CONVOLUTION_INDEX_BITS
    places = np.flatnonzero(flat)
    distances = np.diff(places, prepend=-1)
    # A field of n bits tells distances from 1 to 2**n.
    fillers = int(((distances - 1) >> index_bits).sum())
    values = np.unique(flat[places]).size + (fillers > 0)
    return KernelBits(flat.size, places.size, places.size + fillers, index_bits, values)


def pruned_bytes(kernels: Iterable[Array], biases: Iterable[Array]) -> int:
    """Return the bytes of a pruned model; each kernel ends with a whole byte."""
    return _bytes([kernel_bits(kernel).pruned_bits for kernel in kernels], biases)


def shared_bytes(kernels: Iterable[Array], biases: Iterable[Array]) -> int:
    """Return the bytes of a pruned model whose weights share values."""
    return _bytes([kernel_bits(kernel).shared_bits for kernel in kernels], biases)


def _bytes(bits: list[int], biases: Iterable[Array]) -> int:
    return sum(-(-number // 8) for number in bits) + 4 * sum(bias.size for bias in biases)


@dataclass(frozen=True)
class CodedKernel:
    """What a kernel takes in a packed file.

    Attributes:
      weights: in the .tflite file, which dead channels have left.
      kept: those that are not zero there.
      bits: of its codes and tables.
    """

    weights: int
    kept: int
    bits: float


def coded_kernels(content: bytes) -> list[CodedKernel]:
    """Say what each kernel of a .tflite file takes once packed, in the order of the operators."""
    model = read(content)
    spans = {span.start: span for span in find_arrays(model)}
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            for tensor in graph.kernels(operator):
                assert tensor.data is not None
                span = spans[start_of(model, tensor.data)]
                encoder = Encoder()
                bits = np.frombuffer(model.content, span.kind.bits, span.number, span.start)
                code_numbers(encoder, span.kind, span.number, bits, span.channels)
                kept = tensor.entries - tensor.zeros()
                found.append(CodedKernel(tensor.entries, kept, encoder.bits))
    return found
