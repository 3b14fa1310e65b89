"""Real converted models, and every kind of interpreter to run them in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeprune.export.converter import to_tflite
from edgeprune.export.program import program_of
from edgeprune.models import import_keras

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def keras() -> Any:
    return import_keras()


@pytest.fixture(scope="session")
def lite() -> Callable[..., bytes]:
    """Convert a Keras model: `lite(model, quantize="int8", samples=None, batch=1)`."""

    def convert(model: Any, quantize: str = "int8", samples: Array = None, batch: Any = 1) -> bytes:
        program = program_of(model).fixed(batch, None)
        if samples is None:
            rng = np.random.default_rng(0)
            samples = rng.uniform(-1, 1, (16, *model.inputs[0].shape[1:])).astype(np.float32)
        columns = [samples] if quantize in ("int8", "int16x8") else None
        return to_tflite(
            program, quantize, columns, integer_io=quantize == "int8", allow_select_ops=False
        )

    return convert


@pytest.fixture(scope="session")
def run_everywhere() -> Callable[[bytes, Array], list[Array]]:
    """Run samples one by one in XNNPACK, in TFLite's optimized and in its reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = (
        OpResolverType.AUTO,
        OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        OpResolverType.BUILTIN_REF,
    )

    def run(content: bytes, samples: Array) -> list[Array]:
        results: list[Array] = []
        for kind in kinds:
            interpreter = Interpreter(
                model_content=content, num_threads=1, experimental_op_resolver_type=kind
            )
            interpreter.allocate_tensors()
            (given,) = interpreter.get_input_details()
            outputs = interpreter.get_output_details()
            rows = []
            for sample in samples:
                interpreter.set_tensor(given["index"], sample[None])
                interpreter.invoke()
                rows.append(
                    np.concatenate(
                        [interpreter.get_tensor(one["index"]).reshape(-1) for one in outputs]
                    )
                )
            results.append(np.array(rows))
        return results

    return run
