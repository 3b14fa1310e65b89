"""Ordinary int8 post-training conversion, and reading the file that comes out of it."""

import tempfile
from dataclasses import dataclass

import numpy as np
import pytest
from small_models import cnn, compiled, data, k  # noqa: F401 - fixtures

# The operand that holds the weights, by operator.
_WEIGHTS = {
    "FULLY_CONNECTED": 1,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "TRANSPOSE_CONV": 1,
    "CONV_3D": 1,
    "CONV_3D_TRANSPOSE": 1,
    "BATCH_MATMUL": 1,
}


@dataclass(frozen=True)
class Operator:
    """One operator of a .tflite file: its name, and the tensors it reads and writes."""

    name: str
    inputs: list[dict]
    outputs: list[dict]


class TfliteFile:
    """A .tflite file in memory, run and read by the real interpreter."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
        self.interpreter.allocate_tensors()
        details = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}
        self.operators = [
            Operator(
                operator["op_name"],
                [details[index] for index in operator["inputs"] if index >= 0],
                [details[index] for index in operator["outputs"]],
            )
            for operator in self.interpreter._get_ops_details()
            if operator["op_name"] != "DELEGATE"
        ]

    def weights(self, name: str) -> list[np.ndarray]:
        """Return the constant weight tensors of every operator of that name, in order."""
        return [
            self.interpreter.get_tensor(operator.inputs[_WEIGHTS[name]]["index"])
            for operator in self.operators
            if operator.name == name
        ]

    def run(self, samples: np.ndarray) -> np.ndarray:
        """Return the first output for samples that are run one by one."""
        (feed, *_), (fetch, *_) = (
            self.interpreter.get_input_details(),
            self.interpreter.get_output_details(),
        )
        outputs = []
        for sample in samples:
            self.interpreter.set_tensor(feed["index"], sample[None])
            self.interpreter.invoke()
            outputs.append(self.interpreter.get_tensor(fetch["index"])[0])
        return np.stack(outputs)


@pytest.fixture(scope="session")
def to_int8():
    """Return a function (plain model, samples) -> TfliteFile, converted as any model is."""
    import tensorflow as tf

    def convert(model, samples: np.ndarray) -> TfliteFile:
        signature = tf.TensorSpec((1, *samples.shape[1:]), tf.float32)
        with tempfile.TemporaryDirectory() as folder:
            if type(model).__module__.startswith("tf_keras"):
                run = tf.function(lambda x: model(x, training=False))
                module = tf.Module()
                module.model = model
                tf.saved_model.save(module, folder, signatures=run.get_concrete_function(signature))
            else:
                import keras

                archive = keras.export.ExportArchive()
                archive.track(model)
                archive.add_endpoint(
                    "serve", lambda x: model(x, training=False), input_signature=[signature]
                )
                archive.write_out(folder, verbose=False)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
            return TfliteFile(converter.convert())

    return convert
