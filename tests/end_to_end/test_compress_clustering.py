"""`compress` with stages that cluster weights and train them on: values counted in the files."""

from dataclasses import replace

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.export import tflite
from edgeprune.models import import_keras, kernels, load_model
from edgeprune.pipeline import compress
from edgeprune.recipe import QuantizationSpec, Recipe

pytestmark = pytest.mark.slow

keras = import_keras()
layers = keras.layers
CLUSTERS = 4
RECIPE = Recipe.from_dict(
    {
        "training": {"batch_size": 16, "seed": 3, "learning_rate": 0.01},
        "sparsity": {"final_sparsity": 0.5, "epochs": 1, "skip": ["stem"]},
        "clustering": {"clusters": CLUSTERS, "epochs": 2, "skip": ["depth"]},
        "export": {"quantize": "int8"},
    }
)


class KilledError(Exception):
    """Stands for the kill of a process: nothing after it runs."""


def small(name="small"):
    """Two convolutions whose batch normalization is folded into them, and a dense layer."""
    keras.utils.set_random_seed(1)
    stack = [keras.Input((6, 6, 2)), layers.Conv2D(8, 3, use_bias=False, name="stem")]
    stack += [layers.BatchNormalization(), layers.ReLU(), layers.DepthwiseConv2D(3, name="depth")]
    stack += [layers.Conv2D(8, 1, use_bias=False, name="point"), layers.BatchNormalization()]
    stack += [layers.ReLU(), layers.Flatten(), layers.Dense(3, name="head")]
    model = keras.Sequential(stack, name=name)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Path of three noisy classes of small images."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    centres = rng.normal(size=(3, 6, 6, 2))
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=(centres[y] + 0.3 * rng.normal(size=(120, 6, 6, 2))).astype("float32"), y=y)
    return path


@pytest.fixture(scope="module")
def model(data):
    model, arrays = small(), np.load(data)
    model.fit(arrays["x"], arrays["y"], epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def told():
    """Names of the stages that the resumed run told of."""
    return set()


@pytest.fixture(scope="module")
def whole(model, data, told, tmp_path_factory):
    """The report of a run that was killed in the middle of its clustering, and resumed."""
    output = tmp_path_factory.mktemp("whole") / "out"

    def kill(stage, fraction, note):
        if stage == "clustering" and fraction >= 0.5:
            raise KilledError

    with pytest.raises(KilledError):
        compress(model, data, RECIPE, output, progress=kill)
    assert not (output / "clustered.keras").exists()
    return compress(model, data, RECIPE, output, progress=lambda stage, *_: told.add(stage))


def arrays(folder, file):
    return {
        kernel.name: np.asarray(kernel.variable) for kernel in kernels(load_model(folder / file))
    }


def values(array):
    """Count the values that are not zero."""
    return np.unique(array[array != 0]).size


def test_the_stage_comes_after_pruning_and_leaves_its_model(whole, told):
    assert told == {"clustering", "export", "benchmark"}
    names = [stage["stage"] for stage in whole.stages]
    assert names == ["baseline", "sparsity", "clustering", "export", "benchmark"]
    assert [row.name for row in whole.rows] == [
        "Keras baseline",
        "float baseline",
        "int8 baseline",
        "pruned (Keras)",
        "clustered (Keras)",
        "pruned clustered int8",
    ]
    assert whole.rows[-1].score > 0.8
    told = {kernel["name"]: kernel for kernel in whole.stages[2]["kernels"]}
    assert set(told) == {"stem/kernel", "point/kernel", "head/kernel"}
    assert {kernel["distinct"] for kernel in told.values()} == {CLUSTERS}
    assert told["point/kernel"]["zeros"] == 32  # of 8 x 8


def test_kernels_have_few_values_and_the_zeros_that_they_had(whole):
    before, after = (arrays(whole.output, name) for name in ("sparse.keras", "clustered.keras"))
    for name in ("stem/kernel", "point/kernel", "head/kernel"):
        assert values(after[name]) == CLUSTERS
        np.testing.assert_array_equal(after[name] == 0, before[name] == 0)
    assert values(after["depth/kernel"]) > CLUSTERS
    np.testing.assert_array_equal(after["depth/kernel"] == 0, before["depth/kernel"] == 0)


def check_few_values(path):
    """Each channel of the three clustered int8 kernels has no more values than clusters."""
    graph, most = tflite.read(path).subgraphs[0], {}
    for operator in graph.operators:
        for kernel in graph.kernels(operator):
            assert kernel.dtype == "int8"
            if operator.name != "DEPTHWISE_CONV_2D":
                channels = kernel.data.reshape(kernel.shape[0], -1)
                most[kernel.shape] = max(map(values, channels))
    assert len(most) == 3
    assert max(most.values()) <= CLUSTERS


def test_the_int8_file_has_as_few_values_in_each_channel(whole):
    """Batch normalization is folded in: each channel of a convolution has a factor of its own."""
    check_few_values(whole.output / "model.tflite")
    told = whole.stages[3]["distinct_in_channel"]
    assert set(told) == {"stem", "depth", "point", "head"}
    # Zero is a value there.
    assert max(told[name] for name in ("stem", "point", "head")) <= CLUSTERS + 1 < told["depth"]
    control = tflite.read(whole.output / "baseline-int8.tflite").subgraphs[0]
    (stem, *_) = (k for op in control.operators for k in control.kernels(op))
    assert max(map(values, stem.data.reshape(8, -1))) > CLUSTERS


@pytest.fixture(scope="module")
def aware(whole, model, data, tmp_path_factory):
    """The report of a run that trains the same clusters on the int8 grid."""
    recipe = replace(RECIPE, quantization=QuantizationSpec(epochs=2))
    return compress(model, data, recipe, tmp_path_factory.mktemp("aware") / "out")


def test_training_on_the_grid_keeps_clusters_and_zeros(aware):
    names = [stage["stage"] for stage in aware.stages]
    assert names == ["baseline", "sparsity", "clustering", "quantization", "export", "benchmark"]
    assert aware.rows[-1].score > 0.8
    before, after = (arrays(aware.output, f) for f in ("clustered.keras", "quantized.keras"))
    told = {kernel["name"]: kernel for kernel in aware.stages[3]["kernel_values"]}
    assert set(told) == set(after)
    moved = False
    for name, weights in after.items():
        assert not weights[before[name] == 0].any()
        channels = weights.reshape(-1, weights.shape[-1]).T
        if name != "depth/kernel":
            assert max(map(values, channels)) <= CLUSTERS
            assert told[name]["distinct_in_channel"] == max(map(values, channels))
            moved |= not np.allclose(weights, before[name], atol=np.abs(weights).max() / 100)
    assert moved
    assert told["depth/kernel"]["distinct_in_channel"] > CLUSTERS
    assert told["point/kernel"]["zeros"] >= 32


def test_the_file_of_training_on_the_grid_has_as_few_values_in_each_channel(aware):
    check_few_values(aware.output / "model.tflite")


def test_more_clusters_than_a_kernel_shares_are_no_error(model, data, tmp_path):
    """Where each of 64 weights has a cluster of its own, there is nothing for the grid to keep."""
    sections = {"clustering": {"clusters": 64, "epochs": 1, "skip": ["stem", "head", "depth"]}}
    recipe = Recipe.from_dict({**sections, "quantization": {"epochs": 1}})
    report = compress(model, data, recipe, tmp_path / "out")
    assert report.rows[-1].name == "clustered int8"


def broken():
    model = small("broken")
    model.get_layer("stem").kernel.assign(np.full((3, 3, 2, 8), np.nan))
    return model


@pytest.mark.parametrize(
    ("make", "section", "message"),
    [
        (
            small,
            {"clusters": 100},
            r"fewer weights than clusters: point/kernel \(64 weights\), head/kernel \(",
        ),
        (small, {"per_channel": True}, r"point/kernel \(8 weights a channel\); skip them"),
        (small, {"skip": ["no such"]}, "skip='no such' matches no kernel of model 'small'"),
        (broken, {"clusters": 4}, "stem/kernel has NaN or infinite weights"),
    ],
)
def test_what_cannot_be_clustered_is_refused_before_anything_is_written(
    data, tmp_path, make, section, message
):
    recipe = Recipe.from_dict({"sparsity": {}, "clustering": section})
    with pytest.raises(InputError, match=message):
        compress(make(), data, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
