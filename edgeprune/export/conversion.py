"""One model converted in any mode: the .tflite content, checked against the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune import models
from edgeprune.errors import EdgepruneError, VerificationError
from edgeprune.export.artifact import Verification
from edgeprune.export.converter import to_tflite
from edgeprune.export.encode import Sparse, encode_sparse
from edgeprune.export.post_training import (
    Quantize,
    is_by_operator,
    modes_of,
    quantize_operators,
)
from edgeprune.export.program import Program
from edgeprune.export.tflite_cleanup import clean_converted
from edgeprune.export.verify import (
    Interpreter,
    coarsest,
    reference,
    run_columns,
    verification_samples,
    verify,
)

Array = npt.NDArray[Any]

# Random token ids stay below every vocabulary; a model without one gets zeros and ones.
_FEW_TOKENS = 2
# An encoded file may round differently from a dense one, in other kernels.
_SAME = 1e-4


@dataclass(frozen=True, eq=False)
class Converted:
    """What a conversion gave.

    Attributes:
      content: of the .tflite file.
      encoding: of its weights, in words; see `edgeprune.export.encode`.
      dead_in_file: the dead channels that left an int8 file; None where none were looked for.
      verification: passed; None when it was switched off.
    """

    content: bytes
    encoding: str
    dead_in_file: dict[str, Any] | None
    verification: Verification | None


@dataclass(frozen=True, eq=False)
class Conversion:
    """A model and how to convert it, whatever the mode.

    Attributes:
      program: the model as it was given, which every file is held against.
      smaller: the same without its dead channels, which is what is converted.
      channels_removed: how many those were.
      columns: one array (n, ...) of calibration samples an input, or None.
      integer_io: whether an int8 model takes and gives int8.
      sparse, clean, verify, tolerance, allow_select_ops: as in `edgeprune.convert`.
    """

    program: Program
    smaller: Program
    channels_removed: int
    columns: Sequence[Array] | None
    integer_io: bool
    sparse: Sparse
    clean: bool
    verify: bool
    tolerance: float | None
    allow_select_ops: bool

    def run(self, quantize: Quantize, tell: Callable[[str], None]) -> Converted:
        """Convert in one mode, or in modes by layer, and verify.

        Args:
          quantize: a mode or modes by layer, not ``auto``.
          tell: called with the name of what comes after the conversion.

        Raises:
          InputError, UnsupportedError: it cannot be converted like this.
          VerificationError: the file computes something else than the model, or cannot be run.
        """
        content, dead = self._content(quantize), None
        if self.clean and quantize == "int8":
            content, dead = clean_converted(content, self.verify)
        tell("verify" if self.verify else "encode")
        content, encoding = encode_sparse(
            content, self.sparse, lambda encoded: self._same(content, encoded)
        )
        verification = None
        if self.verify:
            verification = verify(
                self.program,
                Interpreter(content),
                self._samples,
                self._expected,
                coarsest(modes_of(quantize)),
                self.tolerance,
                random=self.columns is None,
            )
            if not verification.passed:
                raise VerificationError(_failed(verification, self.channels_removed))
        return Converted(content, encoding, dead, verification)

    def _content(self, quantize: Quantize) -> bytes:
        if is_by_operator(quantize):
            return quantize_operators(self._float_content, quantize, self.smaller, self.columns)
        return self._float_content if quantize == "none" else self._converted(str(quantize))

    @cached_property
    def _float_content(self) -> bytes:
        return self._converted("none")

    def _converted(self, mode: str) -> bytes:
        return to_tflite(
            self.smaller,
            mode,
            self.columns,
            integer_io=self.integer_io,
            allow_select_ops=self.allow_select_ops,
        )

    @cached_property
    def _samples(self) -> list[Array]:
        return verification_samples(self.program, self.columns, _token_limit(self.program))

    @cached_property
    def _expected(self) -> dict[str, Array]:
        return reference(self.program, self._samples)

    def _same(self, dense: bytes, encoded: bytes) -> bool:
        """Tell whether an encoded file runs, and gives what the dense one gives."""
        few = [column[:8] for column in self._samples]
        try:
            expected = run_columns(Interpreter(dense), self.program.inputs, few)
            got = run_columns(Interpreter(encoded), self.program.inputs, few)
        except (EdgepruneError, RuntimeError, ValueError):
            return False
        return all(
            float(np.abs(got[name] - want.astype(np.float64)).max(initial=0.0))
            <= _SAME * float(np.abs(want).max(initial=0.0))
            for name, want in expected.items()
        )


def _token_limit(program: Program) -> int:
    """Return the smallest vocabulary among a Keras model's embeddings."""
    if not hasattr(program.owner, "layers"):
        return _FEW_TOKENS
    sizes = [
        int(layer.input_dim)
        for _, layer in models.layers(program.owner)
        if isinstance(getattr(layer, "input_dim", None), int)
    ]
    return min(sizes, default=_FEW_TOKENS)


def _failed(verification: Verification, removed: int) -> str:
    agreement = verification.argmax_agreement
    return (
        f"the converted model does not compute what the Keras model computes: max abs error "
        f"{verification.max_abs_error:.3g} on {verification.on}"
        + ("" if agreement is None else f", arg max the same on {agreement:.1%}")
        + f" (tolerance: {verification.tolerance}); no file was written. Try a finer quantization "
        "or more typical calibration data; `tolerance` or `verify=False` accepts it"
        + (f"; `clean=False` keeps the {removed:,} dead channels that were removed" * bool(removed))
    )
