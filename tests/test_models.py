"""Model files of both Keras flavours: good, foreign, damaged and hostile."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

from edgeprune import models
from edgeprune.errors import InputError, UnsupportedError


@pytest.fixture(scope="module")
def flavours():
    import keras
    import tf_keras

    return {"keras": keras, "tf_keras": tf_keras}


def small(keras, *extra):
    return keras.Sequential([keras.Input((4,)), *extra, keras.layers.Dense(2, name="last")])


@pytest.fixture(scope="module")
def saved(flavours, tmp_path_factory):
    """A folder with small.keras and small.h5 of both flavours: keras.keras, tf_keras.h5, ..."""
    folder = tmp_path_factory.mktemp("saved")
    for name, keras in flavours.items():
        for suffix in ("keras", "h5", "hdf5"):
            model = small(keras)
            model.save(folder / f"{name}.{suffix}")
            np.save(folder / f"{name}.{suffix}.npy", model.get_layer("last").get_weights()[0])
    return folder


@pytest.mark.parametrize("suffix", ["keras", "h5", "hdf5"])
@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_each_file_loads_with_the_flavour_that_wrote_it(saved, name, suffix):
    model = models.load_model(saved / f"{name}.{suffix}")
    assert models.flavour(model) == name
    np.testing.assert_array_equal(
        model.get_layer("last").get_weights()[0], np.load(saved / f"{name}.{suffix}.npy")
    )


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_a_read_only_file_loads(saved, tmp_path, name):
    path = tmp_path / "a.keras"
    shutil.copy(saved / f"{name}.keras", path)
    path.chmod(0o400)
    assert models.flavour(models.load_model(path)) == name
    assert path.stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_saving_and_loading_gives_the_same_model(flavours, tmp_path, name, suffix):
    model = small(flavours[name])
    model.compile("adam", "mse")
    path = tmp_path / f"model.{suffix}"
    models.save_model(model, path)
    again = models.load_model(path)
    assert getattr(models.load_model(path, compile=False), "optimizer", None) is None
    assert models.fingerprint(again) == models.fingerprint(model)
    again.get_layer("last").set_weights([np.ones((4, 2)), np.zeros(2)])
    assert models.fingerprint(again) != models.fingerprint(model)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_a_compiled_model_comes_back_compiled(flavours, tmp_path, name):
    model = small(flavours[name])
    model.compile("adam", "mse")
    models.save_model(model, tmp_path / "model.keras")
    again = models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer).__name__ == "Adam"


def test_an_unknown_loss_leaves_the_model_uncompiled_and_says_so(flavours, tmp_path):
    def mine(targets, outputs):
        return outputs

    model = small(flavours["keras"])
    model.compile("adam", mine)
    models.save_model(model, tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="loss and optimizer could not be restored .*mine"):
        again = models.load_model(tmp_path / "model.keras")
    assert models.fingerprint(again) == models.fingerprint(model)


def test_saving_to_another_kind_of_file(flavours, tmp_path):
    with pytest.raises(InputError, match=r"supported: \.keras, \.h5"):
        models.save_model(small(flavours["keras"]), tmp_path / "model.pb")


# Files that are no model


def test_bad_files(saved, tmp_path):
    whole = (saved / "keras.keras").read_bytes()
    h5 = (saved / "keras.h5").read_bytes()
    (tmp_path / "text.h5").write_text("weights: 1 2 3")
    (tmp_path / "text.keras").write_text("a model")
    (tmp_path / "empty.keras").write_bytes(b"")
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.h5").write_bytes(h5[: len(h5) // 2])
    (tmp_path / "h5.keras").write_bytes(h5)
    (tmp_path / "zip.h5").write_bytes(whole)
    (tmp_path / "model.keras").write_bytes(b"\x1c\0\0\0TFL3" + bytes(40))
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "garbage.keras", "w") as archive:
        archive.writestr("config.json", b"\xff\xfe{")
        archive.writestr("metadata.json", "[]")
    with zipfile.ZipFile(tmp_path / "deep.keras", "w") as archive:
        archive.writestr("config.json", "[" * 100_000)
        archive.writestr("metadata.json", '{"keras_version": "3.0"}')
    cases = {
        "none.keras": "does not exist; supported",
        "text.h5": "not a Keras model file",
        "text.keras": "not a Keras model file",
        "empty.keras": "is empty; save the model again",
        "cut.keras": "damaged or truncated",
        "cut.h5": "damaged or truncated",
        "h5.keras": r"is an HDF5 file, but is not named \.h5",
        "zip.h5": r"is a zip archive, but is not named \.keras",
        "model.keras": r"is already a \.tflite file",
        "folder": r"is a directory without a saved_model\.pb",
        "other.keras": r"not a Keras model: it has no config\.json",
        "garbage.keras": "damaged or truncated",
        "deep.keras": "damaged or truncated",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            models.load_model(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_weights_alone_are_no_model(flavours, tmp_path):
    for name, keras in flavours.items():
        path = tmp_path / f"{name}.weights.h5"
        small(keras).save_weights(path)
        with pytest.raises(InputError, match="no model; save the whole model"):
            models.load_model(path)


def test_a_saved_model_directory_is_for_convert(flavours, tmp_path):
    small(flavours["keras"]).export(tmp_path / "exported", verbose=False)
    with pytest.raises(InputError, match="`convert` takes it"):
        models.load_model(tmp_path / "exported")


def test_damage_anywhere_is_an_error_of_ours_or_harmless(saved, tmp_path):
    for name in ("keras.keras", "keras.h5", "tf_keras.keras", "tf_keras.h5"):
        whole = (saved / name).read_bytes()
        path = tmp_path / name
        for place in range(0, len(whole), max(1, len(whole) // 25)):
            damaged = bytearray(whole)
            damaged[place : place + 8] = b"\xff" * 8
            path.write_bytes(damaged)
            with contextlib.suppress(InputError, UnsupportedError):
                models.load_model(path)


# Files that would run code


def rewrite(source, target, change, extra=None):
    """Copy a .keras file with its configuration changed and members added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
        for name, content in (extra or {}).items():
            new.writestr(name, content)
    return target


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "a/../../b", "..\\c"])
def test_names_that_point_outside_the_archive(saved, tmp_path, name):
    path = rewrite(saved / "keras.keras", tmp_path / "a.keras", lambda config: None, {name: "x"})
    with pytest.raises(InputError, match="points outside the archive"):
        models.load_model(path)


def test_a_zip_bomb(saved, tmp_path):
    path = tmp_path / "bomb.keras"
    shutil.copy(saved / "keras.keras", path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(250 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"would unpack to .* far more"):
        models.load_model(path)


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_lambda_layers_need_unsafe(flavours, tmp_path, name, suffix):
    keras = flavours[name]
    model = small(keras, keras.layers.Lambda(lambda x: x * 2, name="twice"))
    path = tmp_path / f"lambda.{suffix}"
    model.save(path)
    with pytest.raises(InputError, match=r"has a Lambda layer.*pass `unsafe=True`"):
        models.load_model(path)
    loaded = models.load_model(path, unsafe=True)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(np.asarray(loaded(x)), np.asarray(model(x)), rtol=1e-6)


@pytest.mark.parametrize("target", ["os:system", "builtins:exec", "subprocess:getoutput"])
@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_functions_from_outside_keras_are_not_imported(saved, tmp_path, name, target):
    module, _, function = target.partition(":")

    def poison(config):
        dense = next(x for x in config["config"]["layers"] if x["class_name"] == "Dense")
        dense["config"]["activation"] = {
            "module": module,
            "class_name": "function",
            "config": function,
            "registered_name": function,
        }

    path = rewrite(saved / f"{name}.keras", tmp_path / "poison.keras", poison)
    with pytest.raises((InputError, UnsupportedError)) as caught:
        models.load_model(path)
    assert "\n" not in str(caught.value)
    if name == "tf_keras":  # which would import the module and call the function
        assert f"names '{module}.{function}', code that is not part of Keras" in str(caught.value)


@pytest.mark.parametrize("class_name", ["Popen", "os.system", "tf_utils.tf"])
def test_classes_from_outside_keras_are_not_imported(saved, tmp_path, class_name):
    def poison(config):
        module = "subprocess" if class_name == "Popen" else "tf_keras.src.utils.io_utils"
        config["config"]["layers"][-1] |= {"module": module, "class_name": class_name}

    path = rewrite(saved / "tf_keras.keras", tmp_path / "poison.keras", poison)
    with pytest.raises(InputError, match="code that is not part of Keras"):
        models.load_model(path)


UNKNOWN = """
import keras, tf_keras, sys
for name, k in (("keras", keras), ("tf_keras", tf_keras)):
    class Mine(k.layers.Layer):
        def call(self, x):
            return x
    model = k.Sequential([k.Input((4,)), Mine(), k.layers.Dense(2)])
    for suffix in ("keras", "h5"):
        model.save(f"{sys.argv[1]}/{name}.{suffix}")
"""


def test_unknown_layers_are_named(tmp_path):
    subprocess.run([sys.executable, "-c", UNKNOWN, str(tmp_path)], check=True, capture_output=True)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    for path in files:
        with pytest.raises((UnsupportedError, InputError), match="Mine"):
            models.load_model(path)


# What training leaves


def test_tfmot_wrapped_files_load(flavours, tmp_path):
    import tensorflow_model_optimization as tfmot

    model = small(flavours["tf_keras"])
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model)
    quantized = tfmot.quantization.keras.quantize_model(small(flavours["tf_keras"]))
    for wrapped, suffixes in ((pruned, ("h5", "keras")), (quantized, ("h5",))):
        for suffix in suffixes:
            path = tmp_path / f"wrapped.{suffix}"
            wrapped.save(path)
            loaded = models.load_model(path, compile=False)
            types = {type(layer).__name__ for layer in loaded.layers}
            assert types & {"PruneLowMagnitude", "QuantizeWrapperV2"}


def test_tfmot_quantized_keras_files_are_explained(flavours, tmp_path):
    import tensorflow_model_optimization as tfmot

    path = tmp_path / "quantized.keras"
    tfmot.quantization.keras.quantize_model(small(flavours["tf_keras"])).save(path)
    with pytest.raises(UnsupportedError, match=r"cannot load from \.keras files; save it as \.h5"):
        models.load_model(path)


def test_quantize_aware_files_load_without_an_import(flavours, tmp_path):
    from edgeprune.quantization.qat import quantize_aware

    path = tmp_path / "aware.keras"
    models.save_model(quantize_aware(small(flavours["keras"])), path)
    program = "import sys; from edgeprune import models; print(models.load_model(sys.argv[1]).name)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("file", ["keras.keras", "tf_keras.h5"])
def test_another_backend_is_named_with_the_way_out(saved, file):
    program = textwrap.dedent("""
        import sys
        from edgeprune import models
        from edgeprune.errors import UnsupportedError
        try:
            models.load_model(sys.argv[1])
        except UnsupportedError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved / file)],
        env=os.environ | {"KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Keras is set to the torch backend" in done.stdout
    assert "KERAS_BACKEND=tensorflow" in done.stdout
