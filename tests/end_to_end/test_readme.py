"""What the README shows is run."""

import re
from pathlib import Path

import numpy as np

from edgeprune.export import tflite
from edgeprune.recipe import Recipe

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def block(language):
    """The first block of code of a language."""
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


def test_the_python_example(tmp_path, monkeypatch, capsys):
    import keras
    import tensorflow as tf

    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    samples = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    labels = (samples @ np.linspace(-1, 1, 18).reshape(6, 3)).argmax(-1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    original = keras.models.clone_model(model)
    train = tf.data.Dataset.from_tensor_slices((samples, labels)).batch(32)
    names = {"model": model, "original": original, "train": train, "samples": samples}

    # The same benchmark, in a second a model instead of ten.
    exec(block("python").replace("artifact]))", "artifact], quick=True))"), names)

    assert names["artifact"].verification.passed
    # Kernels of 6 x 32 and 32 x 3 weights, of which a fifth is left; dead units are gone.
    weights = tflite.read("model.tflite").weights()
    assert sum(weight.entries - weight.zeros() for weight in weights) <= 58
    assert sum(weight.entries for weight in weights) < 288
    shown = capsys.readouterr().out
    assert "baseline.tflite" in shown
    assert "FULLY_CONNECTED" in shown


def test_the_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(block("toml"))
    recipe = Recipe.load(tmp_path / "recipe.toml")
    assert recipe.sparsity.skip == ("*logits*",)
    assert recipe.export.quantize == "int8"


def test_ci_finds_the_test_command():
    command = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", README, re.DOTALL)[1]
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith("pytest")
