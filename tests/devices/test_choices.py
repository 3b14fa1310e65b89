"""What devices choose: for each choice the devices, models and recipes that turn it."""

import pytest

from edgeprune.devices.choices import choose
from edgeprune.devices.run import load_profiles
from edgeprune.devices.subject import subject_of
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.models import import_keras
from edgeprune.recipe import PRESETS, Recipe, load_stated

keras = import_keras()
layers = keras.layers
PI, ARM, M4, NPU = "raspberry-pi-4", "emulated-arm64", "cortex-m4", "ethos-u55-128"


def mobile(padding):
    """A small net that is eligible for sparse inference if its stem pads one on every side."""
    inputs = keras.Input((16, 16, 3))
    x = inputs if padding == "same" else layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(16, 3, strides=2, padding=padding, name="stem")(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(64, 1, activation="relu")(x)
    x = layers.Conv2D(128, 1)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def recurrent(unroll):
    return keras.Sequential(
        [keras.Input((8, 16)), layers.LSTM(32, unroll=unroll, name="lstm"), layers.Dense(3)]
    )


MODELS = {
    "eligible": lambda: mobile("valid"),
    "can be eligible": lambda: mobile("same"),
    "never eligible": lambda: keras.Sequential([keras.Input((64,)), layers.Dense(64)]),
    "loops": lambda: recurrent(False),
    "tf_keras": lambda: tf_keras_model(),
}


def tf_keras_model():
    import tf_keras

    own = tf_keras.layers
    return tf_keras.Sequential([own.Input((64,)), own.Dense(64), own.Dense(3)])


@pytest.fixture(scope="module")
def models():
    """Name -> (model, subject), made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            model = MODELS[name]()
            made[name] = model, subject_of(model)
        return made[name]

    return get


@pytest.fixture
def chosen(models, tmp_path):
    """A function (model, text of a recipe, devices) -> (recipe, choices by name)."""

    def decide(name, text, *devices):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        recipe, stated = load_stated(path)
        recipe, found = choose(*models(name), recipe, stated, load_profiles(devices))
        return recipe, {choice.name: choice for choice in found}

    return decide


PRUNE = "[sparsity]\nfinal_sparsity = "
HALF = "[structure]\ntarget_macs = 0.5\n"


@pytest.mark.parametrize(
    ("devices", "multiple"),
    [
        ((M4,), 4),
        ((NPU,), 16),
        ((M4, NPU), 16),
        ((PI, M4), 8),
        (("wide", M4), 32),
    ],
)
def test_channels_come_in_multiples_that_suit_all(chosen, tmp_path, devices, multiple):
    own = tmp_path / "wide.toml"
    own.write_text('extends = "cortex-m4"\nchannel_multiple = 32\n')
    devices = [own if name == "wide" else name for name in devices]
    recipe, choices = chosen("never eligible", HALF, *devices)
    assert recipe.structure.round_to == choices["round_to"].value == multiple
    for profile in load_profiles(devices):
        assert f"{profile.name} (multiples of {profile.channel_multiple})" in (
            choices["round_to"].reason
        )


def test_multiples_without_a_common_factor(chosen, tmp_path):
    for number in (6, 4):
        own = tmp_path / f"in-{number}.toml"
        own.write_text(f'extends = "cortex-m4"\nchannel_multiple = {number}\n')
    recipe, _ = chosen("never eligible", HALF, tmp_path / "in-6.toml", tmp_path / "in-4.toml")
    assert recipe.structure.round_to == 12


def test_nothing_to_round_without_structure(chosen):
    recipe, choices = chosen("never eligible", "", M4)
    assert recipe.structure is None
    assert choices["round_to"].value is None
    assert choices["round_to"].reason == "the recipe removes no channels"


@pytest.mark.parametrize(
    ("model", "text", "devices", "quantize", "reason"),
    [
        ("eligible", "", (M4,), "int8", "faster on cortex-m4"),
        ("eligible", "", (NPU,), "int8", "faster on ethos-u55-128"),
        ("eligible", "", (PI,), "int8", "faster on raspberry-pi-4"),
        ("eligible", "", (PI, M4), "int8", "faster on raspberry-pi-4, cortex-m4"),
        # On 64-bit Arm many zeros in float are as fast, and smaller, but only in eligible models.
        ("eligible", PRUNE + "0.9", (ARM,), "none", "zeros run sparse on emulated-arm64, as fast"),
        ("eligible", PRUNE + "0.8", (ARM,), "int8", "faster on emulated-arm64"),
        ("can be eligible", PRUNE + "0.9", (ARM,), "none", "once padding is rewritten in stem"),
        ("never eligible", PRUNE + "0.95", (ARM,), "int8", "faster on emulated-arm64"),
        # Zeros that the recipe keeps from being encoded make nothing faster.
        ("eligible", PRUNE + "0.9\n[export]\nsparse = 'off'", (ARM,), "int8", "faster on emu"),
        # The microcontroller has no use for zeros.
        ("eligible", PRUNE + "0.9", (ARM, M4), "int8", "faster on emulated-arm64, cortex-m4"),
        # Calibration does not take loops.
        ("loops", "", (PI,), "float16", "lstm runs as a loop"),
        ("tf_keras", PRUNE + "0.9", (PI,), "int8", "faster on raspberry-pi-4"),
        (
            "never eligible",
            '[export]\nsparse = "on"',
            (PI,),
            "float16",
            "'on' is for float weights",
        ),
    ],
)
def test_quantization_follows_the_devices(chosen, model, text, devices, quantize, reason):
    recipe, choices = chosen(model, text, *devices)
    assert recipe.export.quantize == choices["quantize"].value == quantize
    assert reason in choices["quantize"].reason


def test_where_int8_is_no_faster_float_stays(chosen, tmp_path):
    desktop = tmp_path / "desktop.toml"
    desktop.write_text(
        'description = "a desktop"\nbackend = "local"\n[rewards]\nint8 = "size"\nfloat16 = "size"\n'
    )
    recipe, choices = chosen("eligible", "", desktop)
    assert recipe.export.quantize == "float16"
    assert choices["quantize"].source == {"desktop": "no source is given for rewards.float16"}
    # A microcontroller beside it runs no float16, and is faster in int8, which both run.
    recipe, choices = chosen("eligible", "", desktop, M4)
    assert recipe.export.quantize == "int8"
    assert choices["quantize"].reason.endswith("faster on cortex-m4; desktop can run it too")
    silent = tmp_path / "silent.toml"
    silent.write_text('description = "a board"\nbackend = "local"\n')
    assert chosen("eligible", "", silent)[0].export.quantize == "none"


@pytest.mark.parametrize(
    ("model", "text", "devices", "sparse", "rewrites", "reason"),
    [
        ("eligible", PRUNE + "0.9", (M4,), "off", False, "TFLite Micro would misread"),
        ("eligible", PRUNE + "0.9", (NPU, M4), "off", False, "Vela and TFLite Micro would misread"),
        ("eligible", PRUNE + "0.9", (ARM, NPU), "off", False, "Vela would misread"),
        ("eligible", PRUNE + "0.8", (ARM,), "off", False, "no runtime runs int8 weights that are"),
        ("eligible", PRUNE + "0.9", (ARM,), "auto", False, "zeros run sparse on emulated-arm64"),
        ("can be eligible", PRUNE + "0.9", (ARM,), "auto", True, "padding is rewritten in stem"),
    ],
)
def test_sparse_encoding_follows_the_devices(
    chosen, model, text, devices, sparse, rewrites, reason
):
    recipe, choices = chosen(model, text, *devices)
    assert recipe.export.sparse == choices["sparse"].value == sparse
    assert reason in choices["sparse"].reason
    assert recipe.sparsity.rewrite_padding is choices["rewrite_padding"].value is rewrites


@pytest.mark.parametrize(
    ("model", "text", "why"),
    [
        ("eligible", "0.8", "zeros run sparse on emulated-arm64"),
        ("eligible", "0.6", "no faster: XNNPACK runs zeros sparse only above a sparsity of 2/3"),
        ("never eligible", "0.9", "no faster: no spatial MEAN"),
        ("can be eligible", "0.9\nrewrite_padding = false", "no faster: stem pads"),
    ],
)
def test_float_models_say_whether_zeros_run_sparse(chosen, model, text, why):
    _, choices = chosen(model, f'{PRUNE}{text}\n[export]\nquantize = "none"', ARM)
    assert choices["sparse"].value == "auto"
    assert why in choices["sparse"].reason


@pytest.mark.parametrize(
    ("text", "name", "value", "reason"),
    [
        (HALF + "round_to = 6", "round_to", 6, "recipe; cortex-m4 would take 4"),
        (HALF + "round_to = 8", "round_to", 8, "recipe; cortex-m4 would take 4"),  # the default
        (HALF + "round_to = 4", "round_to", 4, "recipe"),
        ('[export]\nquantize = "none"', "quantize", "none", "recipe; cortex-m4 would take int8"),
        ('[export]\nquantize = "int16x8"', "quantize", "int16x8", "recipe; cortex-m4 would take"),
        ('[export]\nsparse = "off"', "sparse", "off", "recipe"),
        ('[export]\nsparse = "auto"', "sparse", "off", "recipe leaves it open ('auto'): TFLite"),
        (PRUNE + "0.9\nrewrite_padding = true", "rewrite_padding", True, "recipe; cortex-m4"),
    ],
)
def test_the_recipe_wins(chosen, text, name, value, reason):
    recipe, choices = chosen("never eligible", text, M4)
    assert choices[name].value == value
    assert choices[name].reason.startswith(reason)
    kept = {
        "round_to": lambda: recipe.structure.round_to,
        "quantize": lambda: recipe.export.quantize,
        "sparse": lambda: recipe.export.sparse,
        "rewrite_padding": lambda: recipe.sparsity.rewrite_padding,
    }
    assert kept[name]() == value


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        ('sparse = "on"', (M4,), "sparse is 'on', but cortex-m4 cannot take it: TFLite Micro"),
        ('sparse = "on"', (PI, NPU), "sparse is 'on', but ethos-u55-128 cannot take it: Vela"),
        ('quantize = "float16"', (M4,), "quantize is 'float16', but cortex-m4 cannot take it"),
        ('quantize = "dynamic"', (PI, NPU), "quantize is 'dynamic', but ethos-u55-128 cannot"),
        ('quantize = "int4"', (M4,), "'int4', but cortex-m4 cannot take it: TFLite Micro has no"),
        ('quantize = "int4"', (PI, NPU), "but ethos-u55-128 cannot take it: the Ethos-U computes"),
        ('quantize = "int4"', ("older",), "older cannot take it: tflite-runtime has no kernels"),
        ('quantize = "none"', (M4, NPU), "but ethos-u55-128 cannot take it: the Ethos-U computes"),
    ],
)
def test_contradictions_are_refused_by_name(chosen, tmp_path, text, devices, message):
    own = tmp_path / "older.toml"
    own.write_text('extends = "emulated-arm64"\nruntime = "tflite-runtime"\n')
    devices = [own if name == "older" else name for name in devices]
    with pytest.raises(InputError, match=message):
        chosen("never eligible", f"[export]\n{text}", *devices)


def test_int4_goes_where_litert_runs(chosen):
    recipe, choices = chosen("never eligible", '[export]\nquantize = "int4"', PI)
    assert recipe.export.quantize == "int4"
    assert choices["quantize"].reason == "recipe; raspberry-pi-4 would take int8"
    assert choices["sparse"].value == "off"
    assert "no runtime runs int4 weights that are sparse" in choices["sparse"].reason


def test_a_model_that_int8_does_not_take_has_no_use_for_an_accelerator(chosen):
    message = "ethos-u55-128 cannot run the model: .* integers alone, and lstm runs as a loop"
    with pytest.raises(UnsupportedError, match=message):
        chosen("loops", "", NPU)


def test_this_machine_decides_by_its_own_processor(chosen):
    (local,) = load_profiles("local")
    expected = "int8" if "int8" in local.rewards.faster else "float16"
    assert chosen("eligible", "", "local")[0].export.quantize == expected


def test_without_clustering_look_up_tables_are_said_to_be_left_out(chosen):
    # 64 x 64 weights: a byte each in int8; in tables 4 bits each and 16 bytes a channel.
    recipe, choices = chosen("never eligible", "", M4)
    why = choices["look_up_tables"].reason
    before, after = (int(word.replace(",", "")) for word in why.split() if word[0].isdigit())
    assert before - after == 64 * 64 - (64 * 64 // 2 + 64 * 16)
    assert choices["look_up_tables"].value is recipe.export.look_up_tables is False
    assert why.endswith("once [clustering] in the recipe shares weights")
    _, choices = chosen("never eligible", "", NPU)
    assert choices["look_up_tables"].reason == "only TFLite Micro reads them"


@pytest.mark.parametrize(
    ("text", "devices", "value", "reason"),
    [
        ("", (M4,), True, "take the int8 model from about "),
        ("", (PI, M4), True, "bytes on cortex-m4; kernels are decoded in the arena, which"),
        ("[sparsity]\n", (M4,), True, "take the int8 model from"),
        ("", (NPU,), False, "only TFLite Micro reads them"),
        ('[export]\nquantize = "int16x8"\n', (M4,), False, "are for int8 weights"),
        ("[export]\nlook_up_tables = false\n", (M4,), False, "recipe; cortex-m4 would take True"),
        ('[export]\nlook_up_tables = true\nquantize = "int8"', (PI,), True, "recipe; raspberry"),
    ],
)
def test_with_clustering_look_up_tables_are_chosen(chosen, text, devices, value, reason):
    recipe, choices = chosen("never eligible", f"{text}\n[clustering]\nclusters = 3\n", *devices)
    assert recipe.export.look_up_tables is choices["look_up_tables"].value is value
    assert reason in choices["look_up_tables"].reason


@pytest.mark.parametrize(
    "preset", ["cluster-int8", "prune-cluster-int8", "cqat-int8", "pcqat-int8"]
)
def test_every_preset_that_clusters_takes_look_up_tables(models, preset):
    recipe, stated = load_stated(preset)
    recipe, choices = choose(*models("never eligible"), recipe, stated, load_profiles((M4,)))
    (tables,) = (choice for choice in choices if choice.name == "look_up_tables")
    assert recipe.export.look_up_tables is tables.value is True
    # 16 values, zero among them where it prunes: 4 bits each, and where it does not 17 at most.
    assert "take the int8 model from" in tables.reason


@pytest.mark.parametrize(("clusters", "bits"), [(3, 2), (4, 2), (15, 4), (16, 4), (17, 5)])
def test_indices_are_as_long_as_the_values_need(chosen, clusters, bits):
    why = chosen("never eligible", f"[clustering]\nclusters = {clusters}", M4)[1]
    words = why["look_up_tables"].reason.split()
    before, after, arena = (int(word.replace(",", "")) for word in words if word[0].isdigit())
    assert arena == 64 * 64  # of the largest kernel, decoded
    assert before - after == 64 * 64 - (64 * 64 * bits // 8 + 64 * clusters)


def test_a_value_for_zero_comes_on_top_of_the_clusters(chosen):
    pruned = chosen("never eligible", "[sparsity]\n[clustering]\nclusters = 128", M4)[1]
    assert pruned["look_up_tables"].reason == "hold 128 values, zero among them, not 129"
    assert not pruned["look_up_tables"].value


def test_each_choice_has_the_profiles_source(chosen):
    _, choices = chosen("never eligible", HALF, M4, NPU)
    profiles = load_profiles((M4, NPU))
    for name, key in (("round_to", "channel_multiple"), ("quantize", "rewards.int8")):
        assert choices[name].source == {p.name: p.sources[key] for p in profiles}


def test_presets_state_what_they_set(models):
    model, subject = models("never eligible")
    profiles = load_profiles((M4,))
    for name, quantize, reason in (("int8", "int8", "recipe"), ("prune", "int8", "smaller, and")):
        recipe, stated = load_stated(name)
        recipe, found = choose(model, subject, recipe, stated, profiles)
        assert recipe.export.quantize == quantize
        assert next(c for c in found if c.name == "quantize").reason.startswith(reason)
    recipe, _ = choose(model, subject, *load_stated("structured"), profiles)
    assert recipe.structure.round_to == 4
    assert recipe.structure.target_macs == PRESETS["structured"].structure.target_macs


def test_the_model_and_the_recipe_given_stay_as_they_are(models):
    model, subject = models("can be eligible")
    recipe = Recipe.from_dict({"sparsity": {"final_sparsity": 0.9}})
    before = recipe.to_toml()
    changed, _ = choose(model, subject, recipe, frozenset(), load_profiles((ARM,)))
    assert changed.sparsity.rewrite_padding
    assert recipe.to_toml() == before
    assert model.get_layer("stem").padding == "same"
