"""`compress` for the emulated device: to the Arm kernels and back, with real aarch64 wheels."""

import numpy as np
import pytest

from edgeprune.errors import UnsupportedError
from edgeprune.models import import_keras
from edgeprune.pipeline import compress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A small classifier of three noisy classes in 12 features, and its data."""
    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.normal(size=(3, 12))[y] + 0.3 * rng.normal(size=(240, 12))).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((12,)), layers.Dense(64, activation="relu"), layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, epochs=3, verbose=0)
    return model, folder / "data.npz"


@pytest.fixture
def device(arm64_sandbox, tmp_path):
    """A function (runtime) -> profile of the emulated device with it."""

    def write(runtime):
        path = tmp_path / f"{runtime}.toml"
        path.write_text(
            f'extends = "emulated-arm64"\nruntime = "{runtime}"\n[reach]\n'
            f'sandbox = "{arm64_sandbox.folder}"\n'
        )
        return path

    return write


def test_the_result_runs_on_emulated_arm(task, device, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[sparsity]\nfinal_sparsity = 0.5\nepochs = 1\n")
    report = compress(*task, recipe, tmp_path / "out", device=device("ai-edge-litert"))
    chosen = {choice.name: choice.value for choice in report.device_choices}
    assert (chosen["quantize"], chosen["look_up_tables"]) == ("int8", False)
    (arm,) = report.devices
    assert (arm.kind, arm.reason) == ("simulated", None)
    assert [row.model for row in arm.results] == [
        *("baseline.tflite", "baseline-int8.tflite", "model.tflite")
    ]
    for row in arm.results:
        assert (row.runtime, row.details["failure"]) == ("ai-edge-litert", None)
        assert row.latency_ms is None
        assert row.relative_latency > 0
    # With 3 outputs, on which tflite-runtime crashes.
    assert arm.results[-1].details["outputs_equal"] is True


def test_what_would_crash_there_is_refused_or_chosen_otherwise(task, device, tmp_path):
    recipe, older = tmp_path / "recipe.toml", device("tflite-runtime")
    recipe.write_text('[sparsity]\n[export]\nquantize = "int8"\n')
    with pytest.raises(UnsupportedError, match=r"and 3 outputs, int8\) crashes tflite-runtime"):
        compress(*task, recipe, tmp_path / "refused", device=older)
    recipe.write_text("[sparsity]\nfinal_sparsity = 0.5\nepochs = 1\n")
    report = compress(*task, recipe, tmp_path / "out", device=older)
    (quantize,) = (choice for choice in report.device_choices if choice.name == "quantize")
    assert quantize.value == "float16"
    assert "crashes tflite-runtime 2.14" in quantize.reason
    assert report.devices[0].results[-1].details["failure"] is None
