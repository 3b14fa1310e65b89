"""Recipes: presets, TOML in and out, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.recipe import (
    PRESETS,
    ClusteringSpec,
    ExportSpec,
    QuantizationSpec,
    Recipe,
    SparsitySpec,
    StructureSpec,
    TrainingSpec,
    load_stated,
)

FRACTION = st.floats(0, 0.999)
NAMES = st.lists(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8), max_size=3
)
STRUCTURES = st.sampled_from(["pruning_ratio", "target_macs", "target_parameters"]).flatmap(
    lambda budget: st.builds(
        StructureSpec,
        **{budget: st.floats(0.001, 0.999)},
        criterion=st.sampled_from(["l1", "taylor", "random"]),
        ranking=st.sampled_from(["group", "global"]),
        round_to=st.integers(1, 16),
        max_ratio=FRACTION,
        skip=NAMES.map(tuple),
        way=st.sampled_from(["fine-tune", "during"]),
        rounds=st.integers(1, 9),
        epochs=st.integers(9, 99),
        dense_epochs=st.integers(10, 99),
        learning_rate=st.none() | st.floats(1e-9, 1.0),
        decay=st.sampled_from(["none", "cosine"]),
    )
)
RECIPES = st.builds(
    Recipe,
    training=st.builds(
        TrainingSpec,
        batch_size=st.integers(1, 999),
        learning_rate=st.none() | st.floats(1e-9, 1.0),
        seed=st.integers(0, 2**31),
    ),
    structure=st.none() | STRUCTURES,
    sparsity=st.none()
    | st.builds(
        SparsitySpec,
        final_sparsity=FRACTION,
        initial_sparsity=FRACTION,
        epochs=st.integers(1, 99),
        pattern=st.sampled_from(["unstructured", "block 1x4", "2:4"]),
        ranking=st.sampled_from(["layer", "global"]),
        skip=NAMES.map(tuple),
        learning_rate=st.none() | st.floats(1e-9, 1.0),
        rewrite_padding=st.booleans(),
    ),
    clustering=st.none()
    | st.builds(
        ClusteringSpec,
        clusters=st.integers(2, 999),
        per_channel=st.booleans(),
        epochs=st.integers(1, 9),
        skip=NAMES.map(tuple),
        learning_rate=st.none() | st.floats(1e-9, 1.0),
    ),
    quantization=st.none() | st.builds(QuantizationSpec, epochs=st.integers(1, 9)),
    export=st.builds(ExportSpec, quantize=st.sampled_from(["int8", "int16x8"])),
)


@given(RECIPES)
def test_toml_round_trip(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe


def test_presets_say_what_their_names_say():
    assert PRESETS["prune"].sparsity == SparsitySpec(final_sparsity=0.8)
    assert PRESETS["prune"].export.quantize == "none"
    assert PRESETS["int8"].sparsity is None
    assert PRESETS["int8"].quantization is None
    assert PRESETS["int8"].export.quantize == "int8"
    assert PRESETS["pqat-int8"].sparsity is not None
    assert PRESETS["pqat-int8"].quantization is not None
    assert PRESETS["pqat-int8"].export.quantize == "int8"
    assert PRESETS["cluster-int8"].clustering == ClusteringSpec(clusters=16)
    assert PRESETS["prune-cluster-int8"].clustering == ClusteringSpec(clusters=15)
    for name, sparse in (("cluster-int8", False), ("prune-cluster-int8", True)):
        assert (PRESETS[name].sparsity is not None) == sparse
        assert PRESETS[name].quantization is None
        assert PRESETS[name].export.quantize == "int8"
    for name in ("cqat-int8", "pcqat-int8"):
        without = PRESETS[name.replace("pcqat", "prune-cluster").replace("cqat", "cluster")]
        assert PRESETS[name] == replace(without, quantization=QuantizationSpec())
    assert PRESETS["structured"] == Recipe(structure=StructureSpec(target_macs=0.5))
    for name, sparse in (("structured-int8", False), ("structured-pqat-int8", True)):
        assert PRESETS[name].structure == PRESETS["structured"].structure
        assert (PRESETS[name].sparsity is not None) == sparse
        assert PRESETS[name].quantization is not None
        assert PRESETS[name].export.quantize == "int8"


def test_unknown_preset_names_the_presets():
    with pytest.raises(
        InputError, match="unknown recipe 'pqat'; the presets are prune, int8, pqat-int8"
    ):
        Recipe.load("pqat")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[sparsity]\nfinal_sparsity = 80", "fraction in .*got 80; did you mean 0.8"),
        ("[sparsity]\nfinal_sparsity = 1", "fraction in .*got 1$"),
        (
            "[sparsity]\nfinal_sparsity = true",
            "sparsity: final_sparsity must be a number; got True",
        ),
        ("[sparsity]\nepochs = 0", "sparsity.epochs must be at least 1"),
        ("[sparsity]\nepochs = 1.5", "epochs must be a whole number; got 1.5"),
        ("[sparsity]\nskip = 'conv'", "skip must be a list of strings"),
        ("[sparsity]\nranking = 'all'", "ranking must be one of layer, global; got 'all'"),
        ("[sparsity]\nfinal = 0.5", "unknown key 'final'; the keys here are final_sparsity"),
        ("[clustering]\nclusters = 1", "clustering.clusters must be at least 2, got 1"),
        ("[clustering]\nclusters = 4.0", "clusters must be a whole number; got 4.0"),
        ("[clustering]\nepochs = 0", "clustering.epochs must be at least 1"),
        ("[clustering]\nvalues = 4", "unknown key 'values'; the keys here are clusters, per_"),
        (
            "[clustering]\n[quantization]\n[export]\nquantize = 'none'",
            "int8 grid, but .export. quantize is 'none'",
        ),
        ("[structure]\npruning_ratio = 50", r"ratio is a fraction in .*got 50; did you mean 0.5"),
        ("[structure]\npruning_ratio = 1.0", "pruning_ratio is a fraction in .*got 1$"),
        ("[structure]\npruning_ratio = -0.5", "pruning_ratio is a fraction in .*got -0.5$"),
        ("[structure]\ntarget_macs = nan", r"fraction that stays, in \(0, 1\], got nan$"),
        ("[structure]\ntarget_macs = 0", r"fraction that stays, in \(0, 1\], got 0$"),
        ("[structure]\ntarget_parameters = 40", "stays, .*got 40; did you mean 0.4"),
        (
            "[structure]\nepochs = 3",
            "structure: exactly one of pruning_ratio, .* is needed; got none",
        ),
        (
            "[structure]\ntarget_macs = 0.5\npruning_ratio = 0.5",
            "exactly one of .* got pruning_ratio and target_macs",
        ),
        ("[structure]\ncriterion = 'l3'", "criterion must be one of l1, l2, .*; got 'l3'"),
        (
            "[structure]\ntarget_macs = 0.5\nway = 'scratch'",
            "way must be one of fine-tune, during, scratch-e, scratch-b",
        ),
        (
            "[structure]\ntarget_macs = 0.5\nway = 'scratch-b'\nrounds = 2",
            "rounds is 2, but way 'scratch-b' prunes at once",
        ),
        (
            "[structure]\ntarget_macs = 0.5\nrounds = 4\nepochs = 3",
            "structure.epochs is 3, but 4 rounds .* at least 4",
        ),
        (
            "[structure]\ntarget_macs = 0.5\nrounds = 4\nway = 'during'\ndense_epochs = 4",
            "structure.dense_epochs is 4, but 4 rounds .* at least 5",
        ),
        ("[structure]\ntarget_macs = 0.5\nround_to = 0", "structure.round_to must be at least 1"),
        ("[training]\nlearning_rate = 0", "learning_rate must be above 0"),
        (
            "[quantization]\n[export]\nquantize = 'none'",
            "int8 grid, but .export. quantize is 'none'",
        ),
        ("[sparsity]\nrewrite_padding = 1", "rewrite_padding must be true or false; got 1"),
        (
            "[export]\nquantize = 'int4'\nsparse = 'on'",
            "sparse is 'on', but the weights of quantize 'int4' are never sparse-encoded",
        ),
        (
            "[export]\nlook_up_tables = true\nquantize = 'int4'",
            "look_up_tables is for int8 weights, but quantize is 'int4'; set it to 'int8', or",
        ),
        ("[export]\nlook_up_tables = 1", "look_up_tables must be true or false; got 1"),
        (
            "[quantization]\n[export]\nquantize = 'int4'",
            "trains on the int8 grid, but .export. quantize is 'int4'; set it to 'int8'",
        ),
        (
            "[export]\nquantize = 'int8'\nsparse = 'on'",
            "sparse is 'on', but the weights of quantize 'int8' are never sparse-encoded",
        ),
        ("[export]\nquantize = 'int2'", "must be one of none, float16, dynamic, int8, int16x8"),
        ("speed = 1", "unknown key 'speed'; the keys here are training, structure"),
        ("export = 1", "export must be a table"),
        ("[", "is not TOML"),
    ],
)
def test_bad_recipe_is_refused_by_name(tmp_path, toml, message):
    path = tmp_path / "recipe.toml"
    path.write_text(toml)
    with pytest.raises(InputError, match=message):
        Recipe.load(path)


def test_missing_recipe_file():
    with pytest.raises(InputError, match=r"absent\.toml does not exist"):
        Recipe.load("absent.toml")


def test_what_trains_on_the_int8_grid_is_exported_as_int8(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[quantization]\nepochs = 2\n[export]\nio = 'int8'\n")
    recipe, stated = load_stated(path)
    assert recipe.export == ExportSpec(quantize="int8", io="int8")
    assert stated == {"quantization.epochs", "export.io", "export.quantize"}
    path.write_text("[quantization]\n[export]\nquantize = 'int16x8'\n")
    assert Recipe.load(path).export.quantize == "int16x8"


def test_a_file_states_what_is_written_in_it(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[structure]\ntarget_macs = 0.5\nround_to = 8\n[export]\nquantize = "none"\n')
    recipe, stated = load_stated(path)
    assert recipe == Recipe.load(path)
    # Two of these values are the defaults: they are stated all the same.
    assert stated == {"structure.target_macs", "structure.round_to", "export.quantize"}


@pytest.mark.parametrize(
    ("recipe", "stated"),
    [
        ("prune", set()),
        ("int8", {"export.quantize"}),
        ("structured", {"structure.target_macs"}),
        (Recipe(), set()),
        (Recipe(sparsity=SparsitySpec(final_sparsity=0.9)), {"sparsity.final_sparsity"}),
    ],
)
def test_presets_and_recipes_of_python_state_what_is_no_default(recipe, stated):
    assert load_stated(recipe)[1] == stated
