"""Run a .tflite file beside the Keras model that it was made from, and compare."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError, UnsupportedError, VerificationError
from edgeprune.export import tflite
from edgeprune.export.artifact import Verification
from edgeprune.export.finite import in_words, not_finite
from edgeprune.export.native import captured_stderr
from edgeprune.export.program import Program
from edgeprune.inputs import InputSpec
from edgeprune.modelfiles import first_line
from edgeprune.samples import batches, collect, evenly_spaced, fit_inputs

Array = npt.NDArray[Any]

_MAX_SAMPLES = 256
_MIN_SAMPLES = 8
# Samples are few where they are large: a 224x224x3 image costs what 256 small rows do.
_MAX_ENTRIES = 2**20
_SEED = 0


class Interpreter:
    """A .tflite file in the interpreter, on one thread, called by input names.

    Inputs and outputs are real values: an int8 file's are quantized and dequantized here.
    """

    def __init__(self, content: bytes) -> None:
        """Load a file.

        Raises:
          UnsupportedError: it has select operators, which no interpreter on this machine runs.
          VerificationError: the interpreter refuses it.
        """
        from ai_edge_litert.interpreter import Interpreter as LiteInterpreter

        self._graph = tflite.read(content).subgraphs[0]
        if flex := sorted({op.name for op in self._graph.operators if op.name.startswith("Flex")}):
            # TensorFlow's own packages have left the Flex delegate out since 2.20.
            raise UnsupportedError(
                f"the model uses select operators ({', '.join(flex)}), which the interpreters of "
                "TensorFlow and LiteRT for Python cannot run, so it cannot be compared here; "
                "pass `verify=False` to write it all the same"
            )
        with captured_stderr():
            try:
                self._interpreter = LiteInterpreter(model_content=content, num_threads=1)
                # The runner would allocate when first called, where errors are harder to tell.
                self._interpreter.allocate_tensors()
                self._runner = self._interpreter.get_signature_runner()
            except (RuntimeError, ValueError) as error:
                raise VerificationError(
                    f"the interpreter refuses the converted model ({first_line(error)}); "
                    "try another quantization"
                ) from error
        self._inputs = self._runner.get_input_details()
        self._outputs = self._runner.get_output_details()

    @property
    def inputs(self) -> list[InputSpec]:
        """What it takes, in the file's own order; integers stand for floats if quantized."""
        order = {
            detail["name"]: n for n, detail in enumerate(self._interpreter.get_input_details())
        }
        names = sorted(self._inputs, key=lambda name: order[self._inputs[name]["name"]])
        return [
            InputSpec(
                name,
                tuple(None if size < 0 else int(size) for size in detail["shape_signature"]),
                "float32" if detail["quantization"][0] else np.dtype(detail["dtype"]).name,
            )
            for name in names
            for detail in [self._inputs[name]]
        ]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return list(self._outputs)

    def steps(self) -> dict[str, float]:
        """Return every output's quantization step, also behind a last DEQUANTIZE; else 0.0."""
        graph = self._graph
        producers = {index: op for op in graph.operators for index in op.outputs}
        steps = {}
        for name, detail in self._outputs.items():
            index = detail["index"]
            producer = producers.get(index)
            if producer is not None and producer.name == "DEQUANTIZE":
                index = producer.inputs[0]
            quantization = graph.tensors[index].quantization
            steps[name] = 0.0 if quantization is None else float(quantization.scale.max())
        return steps

    def __call__(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; a free batch dimension takes any size.

        Raises:
          VerificationError: an operator fails on it.
        """
        given = {name: _quantized(samples[name], self._inputs[name]) for name in self._inputs}
        try:
            results = self._runner(**given)
        except RuntimeError as error:
            raise VerificationError(
                f"the interpreter fails while it runs the converted model ({first_line(error)}); "
                "try another quantization"
            ) from error
        return {name: _dequantized(results[name], self._outputs[name]) for name in self._outputs}


def _quantized(values: Array, detail: dict[str, Any]) -> Array:
    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    if not scale or values.dtype.kind != "f":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    integers: Array = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
    return integers.astype(dtype)


def _dequantized(values: Array, detail: dict[str, Any]) -> Array:
    scale, zero_point = detail["quantization"]
    if not scale:
        return values
    real: Array = (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return real


def run_tflite(model: str | os.PathLike[str] | bytes, x: Any) -> Array:
    """Run a .tflite file of one output on samples, on this machine.

    Args:
      model: the file, or its content; it has a signature, as every converted file has.
      x: (n, ...) samples of the one input, or a mapping by name or a sequence of them. Integers
        become floats where the file takes floats.

    Returns:
      (n, ...) outputs, real values also where the file is quantized.

    Raises:
      InputError: the samples do not fit, or there are several outputs.
      VerificationError: the interpreter refuses the file.
    """
    interpreter = Interpreter(model if isinstance(model, bytes) else Path(model).read_bytes())
    if len(interpreter.outputs) != 1:
        raise InputError(
            f"the model has {len(interpreter.outputs)} outputs "
            f"({', '.join(interpreter.outputs)}); one is supported here"
        )
    inputs = interpreter.inputs
    columns = fit_inputs(collect(x, inputs, "samples"), inputs, "samples", integers_to_floats=True)
    return run_columns(interpreter, inputs, columns)[interpreter.outputs[0]]


def run_columns(
    run: Interpreter, inputs: Sequence[InputSpec], columns: Sequence[Array]
) -> dict[str, Array]:
    """Run samples batch by batch, and join the outputs.

    Args:
      run: the interpreter.
      inputs: names and shapes; a fixed first dimension is the batch.
      columns: one array (n, ...) an input.
    """
    total = len(columns[0])
    size = _batch(inputs) or total
    names = [spec.name for spec in inputs]
    return _joined(
        (run(dict(zip(names, batch, strict=True))) for batch in batches(columns, size)),
        size,
        total,
    )


def _batch(inputs: Sequence[InputSpec]) -> int | None:
    return inputs[0].shape[0] if inputs[0].shape else 1


def _joined(results: Any, size: int, total: int) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {}
    for result in results:
        for name, values in result.items():
            # An output that has no batch dimension counts as one row a batch.
            rows = values if values.ndim and len(values) == size else values[None]
            parts.setdefault(name, []).append(rows)
    return {name: np.concatenate(rows)[:total] for name, rows in parts.items()}


def verification_samples(
    program: Program, calibration: Sequence[Array] | None, token_limit: int
) -> list[Array]:
    """Choose what to verify on: calibration samples, or else seeded random inputs.

    Random floats are standard normal, random integers lie in [0, token_limit), or in the dtype's
    range for 8 bits.

    Returns:
      One array (n, ...) an input, n between 8 and 256; as few as there are of calibration samples.
    """
    entries = max(int(np.prod([size or 1 for size in s.shape[1:]])) for s in program.inputs)
    wanted = min(_MAX_SAMPLES, max(_MIN_SAMPLES, _MAX_ENTRIES // max(entries, 1)))
    if calibration is not None:
        chosen = evenly_spaced(len(calibration[0]), wanted)
        return [column[chosen] for column in calibration]
    rng = np.random.default_rng(_SEED)
    return [_random(rng, spec, wanted, token_limit) for spec in program.inputs]


def _random(rng: np.random.Generator, spec: InputSpec, count: int, limit: int) -> Array:
    shape = (count, *(size or 1 for size in spec.shape[1:]))
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    high = np.iinfo(dtype).max + 1 if dtype.itemsize == 1 else limit
    return rng.integers(0, high, shape).astype(dtype)


# Root mean square error allowed, as a fraction of the standard deviation of the Keras outputs.
# Ordinary models stay below a third of this, models with a damaged kernel lie above.
_BOUND = {
    "none": 1e-3,
    "float16": 1e-2,
    "dynamic": 0.1,
    "int8": 0.3,
    "int16x8": 0.1,
    "int4": 0.6,
}
# Outputs that hardly vary (untrained models) drown in rounding: an error below this fraction of
# the largest output, or of two output steps where the file's outputs are quantized, is none.
_ROUNDING = {
    "none": 1e-5,
    "float16": 1e-3,
    "dynamic": 1e-3,
    "int8": 1e-3,
    "int16x8": 1e-3,
    "int4": 1e-3,
}
_STEPS = 2
# Below this a classifier's agreement is worth a note; below the other one it fails, if as many
# samples are decided by more than the errors that the tolerance lets pass.
_GOOD_AGREEMENT = 0.9
_LEAST_AGREEMENT = 0.5
_MIN_DECIDED = 8
# Relative to the largest output: less than this from sample to sample is float32 arithmetic.
_CONSTANT = 1e-6


def coarsest(modes: Sequence[str]) -> str:
    """Return the mode of the widest tolerance, which that of a mixed file is."""
    return max(modes, key=_BOUND.__getitem__)


def verify(
    program: Program,
    interpreter: Interpreter,
    samples: Sequence[Array],
    expected: Mapping[str, Array],
    quantize: str,
    tolerance: float | None = None,
    *,
    random: bool = False,
) -> Verification:
    """Run a converted model on samples, and compare it with what the Keras model gave.

    Args:
      program: what was converted; its inputs name and shape the samples.
      interpreter: the converted model.
      samples: one array (n, ...) an input.
      expected: the Keras model's outputs (n, ...) by name, from `reference`.
      quantize: how it was converted, which decides the tolerance.
      tolerance: root mean square error allowed, as a fraction of the standard deviation of the
        Keras model's outputs; None takes the mode's own: 0.001 of none, 0.01 of float16, 0.1 of
        dynamic and int16x8, 0.3 of int8, 0.6 of int4. With a mode's own tolerance, errors that
        are mere rounding pass too: up to two quantization steps of the output, or 1e-5 (none) or
        1e-3 of the largest output. A classifier fails where the arg max differs on more than half
        of the samples whose two largest outputs are further apart than the errors that pass. A
        tolerance that is given is applied alone.
      random: whether the samples were made up, which the result says.

    Returns:
      The figures, passed or not, and in `notes` why a pass proves little, if it does. The arg max
      is compared in models of one output of shape (n, classes), classes > 1, unless that is also
      the shape of the input (an autoencoder).
    """
    got = run_columns(interpreter, program.inputs, samples)
    bound = _BOUND[quantize] if tolerance is None else tolerance
    steps = interpreter.steps()
    worst = 0.0
    passed = True
    limits: list[str] = []
    notes: list[str] = []
    allowed = 0.0
    for name, want in expected.items():
        error = got[name].astype(np.float64) - want
        largest = float(np.abs(error).max(initial=0.0))
        rms = float(np.sqrt(np.mean(error**2)))
        spread = float(np.std(want.astype(np.float64)))
        limit = f"{name}: rms {rms:.3g} <= {bound:g} x spread {spread:.3g}"
        # NaN fails every comparison.
        within = rms <= bound * spread
        good = within
        if tolerance is None:
            rounding = max(
                _STEPS * steps[name], _ROUNDING[quantize] * float(np.abs(want).max(initial=0.0))
            )
            good = within or largest <= rounding
            limit += f", or max <= {rounding:.3g}"
            allowed = max(bound * spread, rounding)
        passed &= good
        worst = largest if not largest <= worst else worst
        limits.append(limit)
        notes += _notes(name, want, within, largest, steps[name])
    agreement = _agreement(program, expected, got)
    if agreement is not None and agreement < _GOOD_AGREEMENT:
        notes.append(f"the arg max is the same on only {agreement:.1%} of the samples")
    if agreement is not None and tolerance is None:
        (name,) = expected
        decided, same = _decided(expected[name], got[name], allowed)
        if decided >= _MIN_DECIDED and same < _LEAST_AGREEMENT:
            passed = False
            limits.append(
                f"arg max the same on {_LEAST_AGREEMENT:.0%} of the {decided} samples decided by "
                f"more than {allowed:.3g}: {same:.1%}"
            )
    return Verification(
        samples=len(samples[0]),
        max_abs_error=worst,
        argmax_agreement=agreement,
        tolerance="; ".join(limits),
        passed=bool(passed),
        notes=tuple(notes),
        random=random,
    )


def _notes(name: str, want: Array, within: bool, largest: float, step: float) -> list[str]:
    """Say why one output's pass proves little, if it does."""
    if len(want) == 1:
        return [f"output '{name}' was compared on one sample only"]
    varies = float(np.ptp(want.astype(np.float64), axis=0).max(initial=0.0))
    if varies <= _CONSTANT * float(np.abs(want).max(initial=0.0)):
        return [
            f"output '{name}': the model gives the same values for every sample, so this proves "
            "little; typical inputs, as calibration data, prove more"
        ]
    few_steps = varies <= _STEPS * step
    if within and not few_steps:
        return []
    verdict = "this proves little" if within else "it is the same only within rounding"
    if not step:
        return [
            f"output '{name}' varies by {varies:.2g} from sample to sample, and is off by up to "
            f"{largest:.2g}: {verdict}"
        ]
    return [
        f"output '{name}' varies by less than {varies // step + 1:.0f} quantization steps from "
        f"sample to sample, and is off by up to {largest / step:.1f}: {verdict}"
    ]


def reference(program: Program, samples: Sequence[Array]) -> dict[str, Array]:
    """Compute the Keras model's outputs (n, ...) by name, in one batch where it takes one.

    Raises:
      InputError: it cannot compute them, as of token ids that it does not know.
      VerificationError: an output is NaN or infinite, so that nothing can be compared.
    """
    import tensorflow as tf

    total = len(samples[0])
    # A model built for one batch size computes only that.
    size = _batch(program.inputs) if program.fixed_batch else None
    results = (
        dict(zip(program.outputs, program.run(batch), strict=True))
        for batch in batches(samples, size or total)
    )
    try:
        outputs = _joined(results, size or total, total)
    except tf.errors.OpError as error:
        index = re.search(r"indices\[[\d, ]*\] = -?\d+ is not in \[[\d, ]*\)", str(error))
        raise InputError(
            f"the Keras model cannot be run on the samples to verify on "
            f"({index.group() if index else first_line(error)}); give typical inputs as "
            "calibration data, with token ids below the embedding's vocabulary"
        ) from error
    for name, values in outputs.items():
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise VerificationError(
                f"the Keras model itself gives {bad} NaN or infinite values of {values.size} in "
                f"output '{name}', so nothing can be compared{_why(program)}; mend the model, or "
                "pass `verify=False`"
            )
    return outputs


def _why(program: Program) -> str:
    broken = not_finite(program.owner) if hasattr(program.owner, "layers") else ()
    return f": {in_words(broken)}" if broken else ""


def _agreement(
    program: Program, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> float | None:
    """Return the fraction of samples with the same arg max; None if not a classifier."""
    (name, want), *others = expected.items()
    shapes = [spec.shape[1:] for spec in program.inputs]
    if others or want.ndim != 2 or want.shape[1] < 2 or want.shape[1:] in shapes:
        return None
    return float(np.mean(want.argmax(-1) == got[name].argmax(-1)))


def _decided(want: Array, got: Array, margin: float) -> tuple[int, float]:
    """Count the samples whose largest output leads by more than `margin`, and their agreement."""
    ordered = np.sort(want.astype(np.float64), axis=-1)
    clear = ordered[:, -1] - ordered[:, -2] > margin
    if not clear.any():
        return 0, 1.0
    return int(clear.sum()), float(np.mean(want[clear].argmax(-1) == got[clear].argmax(-1)))
