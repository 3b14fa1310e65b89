"""What Vela predicts of operations, brought back to operators: by hand, and by Vela itself."""

import numpy as np
import pytest

from edgeprune.devices.lookup import load_profile
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profiling_vela import cycles_by_operator
from edgeprune.devices.vela import run
from edgeprune.devices.vela_report import LayerEstimate
from edgeprune.export.graph import Operator, Subgraph, Tensor


def tensor(index, name):
    return Tensor(index, name, (1,), (1,), "int8", None, None, 0, None)


GRAPH = Subgraph(
    "",
    (tensor(0, "in"), tensor(1, "conv"), tensor(2, "soft"), tensor(3, "out")),
    (0,),
    (3,),
    (
        Operator("CONV_2D", False, (0,), (1,), {}),
        Operator("SOFTMAX", False, (1,), (2,), {}),
        Operator("DEQUANTIZE", False, (2,), (3,), {}),
    ),
)


def made(name, op, cycles, on_npu=True):
    return LayerEstimate(name, op, "", on_npu, cycles, 0, 0)


def test_operations_with_names_of_velas_own_go_with_the_operator_that_they_end_in():
    operations = [
        made("conv", "Conv2D", 100),
        made("conv", "Conv2D", 0),
        made("conv_softmax_0", "Softmax", 20),
        made("elsewhere", "Mean", 7),
        made("conv_softmax_1", "Softmax", 3),
        made("soft", "Softmax", 10),
        made("out", "Dequantize", 0, on_npu=False),
    ]
    cycles, rest = cycles_by_operator(GRAPH, operations)
    assert cycles == {0: 100, 1: 33, 2: 0}
    assert rest == [operations[3]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from edgeprune.export.convert import convert
    from edgeprune.models import import_keras

    keras = import_keras()
    layers = keras.layers
    inputs = keras.Input((16, 16, 4))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(4, activation="softmax", name="head")(x)
    samples = np.random.default_rng(0).standard_normal((4, 16, 16, 4)).astype("float32")
    path = tmp_path_factory.mktemp("vela") / "model.tflite"
    convert(keras.Model(inputs, outputs), path, quantize="int8", calibration=samples, verify=False)
    return path


def test_vela_itself(model):
    options = RunOptions(per_operator=True)
    (row,) = run([str(model)], load_profile("ethos-u55-128"), options)
    found = row.per_operator
    told = [(one["op"], one["layer"], one["runs_on"]) for one in found["operators"]]
    assert told == [
        ("QUANTIZE", "(input)", "CPU"),
        ("CONV_2D", "first", "NPU"),
        ("MEAN", "pool", "NPU"),
        ("FULLY_CONNECTED", "head", "NPU"),
        ("SOFTMAX", "head", "NPU"),
        ("DEQUANTIZE", "(output)", "CPU"),
    ]
    times = [one["ms"] for one in found["operators"]]
    assert times[0] is times[-1] is None
    assert all(time > 0 for time in times[1:-1])
    # Vela's cycles of an inference are the sum of its operations'.
    assert found["sum_ms"] == pytest.approx(row.details["inference_ms"])
    assert found["whole_ms"] == row.details["inference_ms"]
    assert "does not predict" in found["operators"][0]["reason"]
    (plain,) = run([str(model)], load_profile("ethos-u55-128"), RunOptions())
    assert plain.per_operator == {}


def test_a_model_that_stays_on_the_cpu_has_no_profile(tmp_path):
    import tensorflow as tf

    function = tf.function(tf.nn.relu, input_signature=[tf.TensorSpec((1, 4))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    path = tmp_path / "float.tflite"
    path.write_bytes(converter.convert())
    (row,) = run([str(path)], load_profile("ethos-u55-128"), RunOptions(per_operator=True))
    assert row.per_operator == {}
    assert row.unavailable["per_operator"] == "no operator of the model runs on the Ethos-U"
