"""What devices refuse before training: operators, weights, activations, a file's own trouble."""

import numpy as np
import pytest

from edgeprune.devices.refusals import check_file, check_operators, check_size, over_flash
from edgeprune.devices.run import load_profiles
from edgeprune.devices.subject import subject_of
from edgeprune.errors import UnsupportedError
from edgeprune.export.convert import convert
from edgeprune.models import import_keras
from edgeprune.recipe import (
    ExportSpec,
    QuantizationSpec,
    Recipe,
    SparsitySpec,
    StructureSpec,
)

keras = import_keras()
layers = keras.layers
M4, NPU, PI = "cortex-m4", "ethos-u55-128", "raspberry-pi-4"
TABLES = Recipe(export=ExportSpec(quantize="int8", sparse="off", look_up_tables=True))
INT8 = Recipe(quantization=QuantizationSpec(), export=ExportSpec(quantize="int8", sparse="off"))


@keras.saving.register_keras_serializable("refusals")
class TopTwo(layers.Layer):
    """Keeps the two largest of its inputs: an operator of TFLite that TFLite Micro lacks."""

    def call(self, x):
        return keras.ops.top_k(x, 2)[0]


@keras.saving.register_keras_serializable("refusals")
class Sign(layers.Layer):
    """-1, 0 or 1."""

    def call(self, x):
        return keras.ops.sign(x)


def dense(*units, last=None):
    model = keras.Sequential([keras.Input((16,)), *(layers.Dense(n, "relu") for n in units)])
    if last is not None:
        model.add(last)
    return model


def board(folder, limits="", base=M4, name="board"):
    path = folder / f"{name}.toml"
    path.write_text(f'extends = "{base}"\n[limits]\n{limits}\n')
    return load_profiles(path)


def never():
    raise AssertionError("the model fits as it is")


def test_operators_are_named_with_their_layers():
    subject = subject_of(dense(8, last=TopTwo(name="best")))
    message = r"cortex-m4 cannot run the model: best \(TOPK_V2\) has no kernel in TFLite Micro"
    with pytest.raises(UnsupportedError, match=message):
        check_operators(subject, load_profiles((PI, M4)))
    check_operators(subject, load_profiles(PI))


def test_operators_that_neither_an_accelerator_nor_its_processor_runs():
    top, sign = (
        subject_of(dense(8, last=last)) for last in (TopTwo(name="best"), Sign(name="sign"))
    )
    for device in (NPU, "ethos-u85-256"):
        for subject, operator in ((top, r"best \(TOPK_V2\)"), (sign, r".*\(SIGN\)")):
            message = rf"{device} cannot run the model: {operator} runs neither on the Ethos-U nor"
            with pytest.raises(UnsupportedError, match=message):
                check_operators(subject, load_profiles(device))
    # TFLite Micro has no GELU, but Vela puts it on the accelerator.
    gelu = subject_of(dense(8, last=layers.Activation("gelu", name="gelu")))
    check_operators(gelu, load_profiles(NPU))
    with pytest.raises(UnsupportedError, match="GELU"):
        check_operators(gelu, load_profiles(M4))


def test_operators_of_tensorflow_are_refused_wherever_there_is_no_tensorflow():
    model = keras.Sequential([keras.Input((8,)), layers.Lambda(lambda x: keras.ops.erf(x))])
    with pytest.raises(UnsupportedError, match=r"raspberry-pi-4 cannot run .*FlexErf\) needs"):
        check_operators(subject_of(model), load_profiles(PI))


def test_many_reasons_are_cut_short():
    inputs = keras.Input((8,))
    outputs = [TopTwo(name=f"best{n}")(layers.Dense(8)(inputs)) for n in range(5)]
    with pytest.raises(UnsupportedError, match=r"; and 2 more\. Replace these layers"):
        check_operators(subject_of(keras.Model(inputs, outputs)), load_profiles(M4))


# 16 x 64 + 64 x 32 weights.
WEIGHTS = 16 * 64 + 64 * 32


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        (INT8, WEIGHTS),
        (Recipe(export=ExportSpec(sparse="off")), 4 * WEIGHTS),
        (Recipe(export=ExportSpec(quantize="float16", sparse="off")), 2 * WEIGHTS),
        (Recipe(export=ExportSpec(quantize="int4", sparse="off")), WEIGHTS // 2),
        # Zeros take room in int8, and none where they are sparse-encoded.
        (
            Recipe(
                sparsity=SparsitySpec(final_sparsity=0.5),
                export=ExportSpec(quantize="int8", sparse="off"),
            ),
            WEIGHTS,
        ),
        (Recipe(sparsity=SparsitySpec(final_sparsity=0.75)), WEIGHTS),
    ],
)
def test_weights_beyond_the_flash(tmp_path, recipe, needed):
    subject = subject_of(dense(64, 32))
    check_size(subject, recipe, board(tmp_path, f"flash_bytes = {needed}"), never)
    small = board(tmp_path, f"flash_bytes = {needed - 1}")
    message = f"board cannot hold the model, .* weights alone take {needed:,} bytes"
    with pytest.raises(UnsupportedError, match=message):
        check_size(subject, recipe, small, lambda: subject)


def test_look_up_tables_may_take_an_eighth_of_the_weights(tmp_path):
    subject = subject_of(dense(64, 32))
    check_size(subject, TABLES, board(tmp_path, f"flash_bytes = {WEIGHTS // 8}"), never)
    small = board(tmp_path, f"flash_bytes = {WEIGHTS // 8 - 1}")
    with pytest.raises(UnsupportedError, match=f"take {WEIGHTS // 8} bytes .indices of one bit"):
        check_size(subject, TABLES, small, lambda: subject)


def test_what_fits_once_channels_left_is_not_refused(tmp_path):
    subject, smaller = subject_of(dense(64, 32)), subject_of(dense(32, 32))
    recipe = Recipe(
        structure=StructureSpec(pruning_ratio=0.5),
        export=ExportSpec(quantize="int8", sparse="off"),
    )
    check_size(
        subject,
        recipe,
        board(tmp_path, f"flash_bytes = {16 * 32 + 32 * 32}"),
        lambda: smaller,
    )


def test_activations_beyond_the_arena(tmp_path):
    # 12 x 12 x 2 in, 12 x 12 x 8 out: at once in memory.
    model = keras.Sequential([keras.Input((12, 12, 2)), layers.Conv2D(8, 1, name="wide")])
    subject, most = subject_of(model), 12 * 12 * (2 + 8)
    for recipe, size in ((INT8, 1), (Recipe(export=ExportSpec(sparse="off")), 4)):
        check_size(subject, recipe, board(tmp_path, f"arena_bytes = {size * most}"), never)
        small = board(tmp_path, f"arena_bytes = {size * most - 1}")
        message = f"wide reads and writes {size * most:,} bytes at once .* largest arena is"
        with pytest.raises(UnsupportedError, match=message):
            check_size(subject, recipe, small, lambda: subject)
    # Vela may compute it in stripes.
    check_size(subject, INT8, board(tmp_path, "arena_bytes = 9", base=NPU), never)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    samples = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")

    def write(name, model, quantize):
        calibration = samples if quantize == "int8" else None
        return convert(model, folder / name, quantize=quantize, calibration=calibration).path

    top = write("top.tflite", dense(64, last=TopTwo()), "int8")
    return {
        "top": top,
        "plain": write("plain.tflite", dense(64, 32), "int8"),
        "dynamic": write("dynamic.tflite", dense(64, 32), "dynamic"),
    }


@pytest.mark.parametrize(
    ("file", "device", "message"),
    [
        ("top", M4, "cortex-m4, for the model .*: TFLite Micro has no kernel for TOPK_V2"),
        ("top", NPU, "neither the Ethos-U nor TFLite Micro beside it runs TOPK_V2"),
        # What only the interpreter itself says.
        ("dynamic", M4, "TFLite Micro refuses it"),
    ],
)
def test_what_shows_in_a_file(files, file, device, message):
    with pytest.raises(UnsupportedError, match=message):
        check_file(files[file], INT8, load_profiles(device))


def test_a_file_that_runs_passes(files):
    check_file(files["plain"], INT8, load_profiles((M4, NPU, PI)))
    check_file(files["top"], INT8, load_profiles(PI))


def test_the_size_of_a_file_counts_where_nothing_will_leave_it(files, tmp_path):
    size = files["plain"].stat().st_size
    exact = board(tmp_path, f"flash_bytes = {size}")
    small = board(tmp_path, f"flash_bytes = {size - 1}", name="small")
    check_file(files["plain"], INT8, exact)
    with pytest.raises(UnsupportedError, match=f"its file takes {size:,} bytes, more than"):
        check_file(files["plain"], INT8, small)
    shrinking = Recipe(structure=StructureSpec(target_macs=0.5), export=INT8.export)
    check_file(files["plain"], shrinking, small)
    check_file(files["plain"], TABLES, small)
    assert over_flash(files["plain"], exact[0]) is None
    assert over_flash(files["plain"], small[0]) is not None


def test_the_measured_arena_counts_too(files, tmp_path):
    # The two activations alone, 64 + 32 bytes, fit; TFLite Micro keeps more there.
    small = board(tmp_path, "arena_bytes = 512")
    check_size(subject_of(dense(64, 32)), INT8, small, never)
    for recipe in (INT8, TABLES):  # which take more of it
        with pytest.raises(UnsupportedError, match=r"needs an arena of [\d,]+ bytes, and the larg"):
            check_file(files["plain"], recipe, small)
