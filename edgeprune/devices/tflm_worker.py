"""Run one model in TFLite Micro's interpreter: a process of its own, since native code may crash.

`python -m edgeprune.devices.tflm_worker MODEL SAMPLES SECONDS SEED` prints JSON objects, one a
line, as it learns things; `edgeprune.devices.tflm` starts it and puts them together.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.native import captured_stderr
from edgeprune.export.tflite import TfliteModel, read

Array = npt.NDArray[Any]

MOST_ARENA_BYTES = 2**30
_FIRST_ARENA_BYTES = 2**20
_ALIGNMENT = 16
_TOO_SMALL = re.compile(r"missing: \d+|Failed to allocate|Arena size is too small")
_ALLOCATION = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
# A builtin operator that stands for delegates and never has a kernel.
_NEVER_THERE = "DELEGATE"


class RefusedError(Exception):
    """TFLite Micro does not run the model; the text is what it said."""


def operator_names(model: TfliteModel) -> list[tuple[str, bool]]:
    """List the operators of all subgraphs, each once: (name, whether it is a custom one)."""
    found = {(op.name, op.custom): None for graph in model.subgraphs for op in graph.operators}
    return list(found)


def lacking(operators: Iterable[tuple[str, bool]]) -> list[str]:
    """Ask the installed package which operators it has no kernel for, by name.

    It gives no list, so it is offered models of two operators: the one in question, and one that
    it cannot have. It looks both up before it runs anything, and complains of the first missing.

    Args:
      operators: (name, whether it is a custom one).
    """
    from tflite_micro.python.tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    missing = []
    for name, custom in operators:
        code = (
            schema.BuiltinOperator.CUSTOM if custom else getattr(schema.BuiltinOperator, name, None)
        )
        if code is None or name == _NEVER_THERE:
            missing.append(name)
            continue
        content = _two_operators(schema, code, name if custom else None)
        with captured_stderr() as log:
            try:
                runtime.Interpreter.from_bytes(content, arena_size=2**16)
            except RuntimeError:
                pass
            else:
                raise AssertionError(f"TFLite Micro took a model with {_NEVER_THERE}")
        if f"'{_NEVER_THERE}'" not in log.text:
            missing.append(name)
    return sorted(missing)


def _two_operators(schema: Any, code: int, custom: str | None) -> bytes:
    import flatbuffers

    tensor = schema.TensorT()
    tensor.shape, tensor.name, tensor.buffer = [1], "x", 0
    codes, operators = [], []
    for number, builtin in enumerate((code, getattr(schema.BuiltinOperator, _NEVER_THERE))):
        operator_code = schema.OperatorCodeT()
        operator_code.builtinCode, operator_code.version = builtin, 1
        operator_code.deprecatedBuiltinCode = min(builtin, 127)
        operator_code.customCode = custom if number == 0 else None
        codes.append(operator_code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = number, [0], [0]
        # The package's Python reads these of VAR_HANDLE; every other operator ignores them.
        operator.builtinOptionsType = schema.BuiltinOptions.VarHandleOptions
        operator.builtinOptions = schema.VarHandleOptionsT()
        operators.append(operator)
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [tensor], operators, [0], [0]
    model = schema.ModelT()
    model.version, model.operatorCodes = 3, codes
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def start(content: bytes) -> tuple[Any, int]:
    """Return an interpreter of TFLite Micro, and an arena that was large enough, in bytes.

    Raises:
      RefusedError: the model does not run, or needs more than `MOST_ARENA_BYTES`.
    """
    from tflite_micro.python.tflite_micro import runtime

    size = _FIRST_ARENA_BYTES
    while size <= MOST_ARENA_BYTES:
        with captured_stderr() as log:
            try:
                return runtime.Interpreter.from_bytes(content, arena_size=size), size
            except RuntimeError as error:
                failure = error
        if not _TOO_SMALL.search(log.text):
            raise RefusedError(_said(log.text, failure)) from failure
        size *= 4
    raise RefusedError(f"it needs an arena of more than {MOST_ARENA_BYTES} bytes")


def smallest_arena(content: bytes, used: int, enough: int) -> int:
    """Return the smallest arena that the model starts in, in bytes: a multiple of 16.

    It is what is used in the end, unless preparing the kernels needs more for a while.

    Args:
      content: of the model.
      used: bytes of the arena.
      enough: an arena that it started in, in bytes.
    """
    low, high = -(-used // _ALIGNMENT), enough // _ALIGNMENT
    if _starts(content, low * _ALIGNMENT):
        return low * _ALIGNMENT
    while high - low > 1:
        middle = (low + high) // 2
        if _starts(content, middle * _ALIGNMENT):
            high = middle
        else:
            low = middle
    return high * _ALIGNMENT


def _starts(content: bytes, size: int) -> bool:
    """Try an arena in a process of its own: kernels crash where they get no memory."""
    from tflite_micro.python.tflite_micro import runtime

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            runtime.Interpreter.from_bytes(content, arena_size=size)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _said(text: str, error: Exception) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-2:]) or str(error)


def allocations(interpreter: Any) -> dict[str, int]:
    """Return the bytes of the arena that are used: total, head (reused) and tail (kept)."""
    with captured_stderr() as log:
        interpreter.print_allocations()
    found = {name: int(size) for name, size in _ALLOCATION.findall(log.text)}
    if set(found) != {"total", "head", "tail"}:
        raise RefusedError(f"it did not say what it allocated: {log.text.strip()[:200]}")
    return found


def random_inputs(details: Sequence[dict[str, Any]], seed: int) -> Iterator[list[Array]]:
    """Yield random values for all inputs, without end.

    Floats are standard normal; integers of 8 and 16 bits cover their whole range; wider ones are
    0 or 1, since they are mostly indices, and those two are valid in any table.

    Raises:
      RefusedError: an input is neither of numbers nor of booleans.
    """
    generator = np.random.default_rng(seed)
    while True:
        values: list[Array] = []
        for detail in details:
            dtype, shape = np.dtype(detail["dtype"]), tuple(int(size) for size in detail["shape"])
            if dtype.kind == "f":
                values.append(generator.standard_normal(shape).astype(dtype))
            elif dtype.kind in "iu" and dtype.itemsize <= 2:
                limits = np.iinfo(dtype)
                values.append(
                    generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
                )
            elif dtype.kind in "iub":
                values.append(generator.integers(0, 2, shape).astype(dtype))
            else:
                raise RefusedError(f"its inputs of type {dtype.name} cannot be made up")
        yield values


def invoke(interpreter: Any, values: Sequence[Array], outputs: int) -> list[Array]:
    """Run TFLite Micro once.

    Raises:
      RefusedError: it fails, which it may do on what a kernel checks only then.
    """
    with captured_stderr() as log:
        try:
            for index, value in enumerate(values):
                interpreter.set_input(value, index)
            interpreter.invoke()
            return [np.array(interpreter.get_output(index)) for index in range(outputs)]
        except (RuntimeError, ValueError) as error:
            failure = error
    raise RefusedError(_said(log.text, failure)) from failure


class Difference:
    """How far two runtimes' outputs are apart, over all samples."""

    def __init__(self, quanta: Sequence[float | None]) -> None:
        """Take the step between neighbouring values of each output; None where it is float."""
        self.quanta = quanta
        self.values = self.differing = 0
        self.largest = 0.0
        self.largest_quanta = 0.0

    def add(self, ours: Sequence[Array], theirs: Sequence[Array]) -> None:
        """Compare one sample's outputs, bit for bit."""
        for mine, other, quantum in zip(ours, theirs, self.quanta, strict=True):
            if (mine.shape, mine.dtype) != (other.shape, other.dtype):
                raise RefusedError(
                    f"an output is {mine.dtype}{list(mine.shape)} in TFLite Micro and "
                    f"{other.dtype}{list(other.shape)} in LiteRT"
                )
            self.values += mine.size
            width = f"V{mine.dtype.itemsize}"
            differs = np.ascontiguousarray(mine).view(width) != np.ascontiguousarray(other).view(
                width
            )
            self.differing += int(np.count_nonzero(differs))
            if differs.any():
                apart = np.abs(mine[differs].astype(np.float64) - other[differs].astype(np.float64))
                most = float(apart.max()) if np.isfinite(apart).all() else float("inf")
                self.largest = max(self.largest, most)
                if quantum is not None:
                    self.largest_quanta = max(self.largest_quanta, most / quantum)

    def record(self, samples: int) -> dict[str, Any]:
        """Return the findings as JSON has them; what is not finite is None."""
        integral = None not in self.quanta and np.isfinite(self.largest_quanta)
        return {
            "samples": samples,
            "values": self.values,
            "differing": self.differing,
            "max_difference": self.largest if np.isfinite(self.largest) else None,
            "max_difference_quanta": round(self.largest_quanta) if integral else None,
        }


def quanta(model: TfliteModel) -> list[float | None]:
    """Return the step between neighbouring values of each output; None where it is float.

    Integers step by 1; a float that is dequantized last steps by its scale.
    """
    graph = model.subgraphs[0]
    steps: list[float | None] = []
    for index in graph.outputs:
        tensor, producer = graph.tensors[index], graph.producers.get(index)
        if not tensor.dtype.startswith("float"):
            steps.append(1.0)
        elif producer is not None and producer.name == "DEQUANTIZE":
            quantization = graph.tensors[producer.inputs[0]].quantization
            steps.append(None if quantization is None else float(quantization.scale[0]))
        else:
            steps.append(None)
    return steps


def compare(
    model: TfliteModel, interpreter: Any, samples: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Run both runtimes on the same random inputs; both keep their state between samples.

    LiteRT's reference kernels are those that TFLite Micro's were made from: its optimized ones
    sum floats in another order.

    Args:
      model: to run.
      interpreter: of TFLite Micro.
      samples: at most.
      seconds: after which no further sample is begun.
      seed: of the inputs.

    Raises:
      RefusedError: either runtime does not run the model.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with captured_stderr():
        try:
            litert = Interpreter(
                model_content=model.content,
                experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
                num_threads=1,
            )
            litert.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            failure = str(error).splitlines()[0]
            raise RefusedError(f"LiteRT does not run the model: {failure}") from error
    inputs, outputs = litert.get_input_details(), litert.get_output_details()
    difference = Difference(quanta(model))
    end = time.monotonic() + seconds
    done = 0
    for values in random_inputs(inputs, seed):
        ours = invoke(interpreter, values, len(outputs))
        with captured_stderr():
            try:
                for detail, value in zip(inputs, values, strict=True):
                    litert.set_tensor(detail["index"], value)
                litert.invoke()
                theirs = [litert.get_tensor(detail["index"]) for detail in outputs]
            except (RuntimeError, ValueError) as error:
                raise RefusedError(f"LiteRT fails: {str(error).splitlines()[0]}") from error
        difference.add(ours, theirs)
        done += 1
        if done >= samples or time.monotonic() > end:
            break
    return difference.record(done)


def main(arguments: Sequence[str]) -> None:
    """Say, a line at a time: stage, lacking, refused, arena, comparison, incomparable."""
    path, samples, seconds, seed = arguments
    model = read(Path(path))
    say("stage", "loading TFLite Micro")
    try:
        from tflite_micro.python.tflite_micro import runtime  # noqa: F401  # is it whole?
    except ImportError as error:
        say("broken", str(error).splitlines()[0])
        return
    try:
        say("stage", "looking up its operators")
        missing = lacking(operator_names(model))
        say("lacking", missing)
        if missing:
            return
        say("stage", "allocating its tensors")
        interpreter, enough = start(model.content)
        used = allocations(interpreter)
        smallest = smallest_arena(model.content, used["total"], enough)
        say("arena", {"smallest": smallest, **used})
        say("stage", "running it")
        graph = model.subgraphs[0]
        details = [interpreter.get_input_details(index) for index in range(len(graph.inputs))]
        invoke(interpreter, next(random_inputs(details, int(seed))), len(graph.outputs))
        # A kernel may have asked for more when it ran.
        used = allocations(interpreter)
        say("arena", {"smallest": max(smallest, used["total"]), **used})
    except RefusedError as refusal:
        say("refused", str(refusal))
        return
    try:
        fresh, _ = start(model.content)  # without what the first run left in its state
        say("comparison", compare(model, fresh, int(samples), float(seconds), int(seed)))
    except RefusedError as refusal:
        say("incomparable", str(refusal))


def say(key: str, value: Any) -> None:
    """Print a finding as a JSON object on a line of its own."""
    print(json.dumps({key: value}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
