"""Data from memory and from files, good and bad."""

import itertools
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data import Dataset, load_calibration, load_samples, load_training_data
from edgeprune.errors import InputError
from edgeprune.inputs import InputSpec
from edgeprune.samples import batches, evenly_spaced

IMAGE = [InputSpec("image", (None, 4, 4, 1), "float32")]
TWO = [InputSpec("image", (None, 3), "float32"), InputSpec("tokens", (None, 2), "int32")]


def image(count, dtype="float32"):
    return np.arange(count * 16).reshape(count, 4, 4, 1).astype(dtype)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder that is the current one, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("project_"):
            del sys.modules[name]


# Calibration from files of one array


def test_an_array_of_another_name_is_taken_and_told(tmp_path, caplog):
    np.savez(tmp_path / "c.npz", pictures=image(5))
    (column,) = load_calibration(tmp_path / "c.npz", IMAGE)
    assert column.shape == (5, 4, 4, 1)
    assert caplog.messages == [f"{tmp_path}/c.npz: 'pictures' is taken for input 'image'"]


@pytest.mark.parametrize("name", ["image", "x", "arr_0"])
def test_an_array_of_its_own_name_or_none_is_taken_silently(tmp_path, caplog, name):
    np.savez(tmp_path / "c.npz", **{name: image(5)})
    (column,) = load_calibration(tmp_path / "c.npz", IMAGE)
    assert len(column) == 5
    assert caplog.messages == []


def test_targets_alone_are_no_samples(tmp_path):
    np.savez(tmp_path / "c.npz", y=image(5))
    with pytest.raises(InputError, match="no array 'image' or 'x'; found: 'y'"):
        load_calibration(tmp_path / "c.npz", IMAGE)


# Calibration from memory


@pytest.mark.parametrize(
    "source",
    [
        image(6),
        image(6, "float64"),
        [image(6)],
        (image(6),),
        {"image": image(6)},
        {"x": image(6)},
        {"anything": image(6)},
        {"x": image(6), "y": np.zeros(6)},
        [image(6)[:4], image(6)[4:]],
        [(image(6)[:4], np.zeros(4)), (image(6)[4:], np.zeros(2))],
        iter([image(6)[:3], image(6)[3:]]),
        lambda: image(6),
        lambda: ([image(6)[n : n + 1]] for n in range(6)),  # as TFLite's converter takes it
    ],
    ids=str(list(range(13))).strip("[]").split(", "),
)
def test_forms_of_one_input(source):
    (column,) = load_calibration(source, IMAGE)
    assert column.dtype == np.float32
    np.testing.assert_array_equal(column, image(6))


def test_forms_of_two_inputs():
    a, b = np.ones((5, 3), np.float32), np.full((5, 2), 7)
    sources = [
        (a, b),
        [a, b],
        {"tokens": b, "image": a},
        [((a, b), np.zeros(5))],
        [({"image": a, "tokens": b}, np.zeros(5))],
        [{"image": a, "tokens": b}],
    ]
    for source in sources:
        columns = load_calibration(source, TWO)
        np.testing.assert_array_equal(columns[0], a)
        np.testing.assert_array_equal(columns[1], b)
        assert [column.dtype for column in columns] == [np.float32, np.int32]


def test_a_tf_dataset_of_samples_and_targets():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((image(7), np.arange(7))).batch(3)
    (column,) = load_calibration(dataset, IMAGE)
    np.testing.assert_array_equal(column, image(7))


def test_a_dataset_without_batches_is_told_so():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((image(7), np.arange(7)))
    message = r"single samples of input 'image', of shape \(4, 4, 1\); .*dataset\.batch\(32\)"
    for source in (dataset, list(image(2)), [(sample, 0) for sample in image(2)]):
        with pytest.raises(InputError, match=message):
            load_calibration(source, IMAGE)
    numbers = tf.data.Dataset.range(5)
    with pytest.raises(InputError, match=r"of shape \(\); give batches"):
        load_calibration(numbers, [InputSpec("n", (None,), "int64")])
    (column,) = load_calibration(dataset.batch(2), IMAGE)
    np.testing.assert_array_equal(column, image(7))


def test_a_function_that_fails_or_wants_arguments():
    def broken():
        raise OSError("no disk")

    for function, message in ((broken, "OSError: no disk"), (lambda a: a, "without arguments")):
        with pytest.raises(InputError, match=f"calibration data: calling it failed .*{message}"):
            load_calibration(function, IMAGE)


def test_an_endless_iterable_ends_at_512_samples():
    (column,) = load_calibration(itertools.repeat(image(100)), IMAGE)
    assert len(column) == 512


def test_large_arrays_are_thinned_evenly():
    (column,) = load_calibration(np.arange(2000.0)[:, None], [InputSpec("x", (None, 1), "float32")])
    assert len(column) == 512
    assert (column[0], column[-1]) == (0, 1999)
    assert set(np.diff(column[:, 0])) <= {3.0, 4.0, 5.0}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (image(6, "uint8"), r"takes float32, got uint8; .*astype\('float32'\) / 255"),
        (np.zeros((6, 4, 4)), r"samples of shape \(4, 4, 1\), got an array of shape \(6, 4, 4\)"),
        (np.zeros((6, 4, 5, 1)), r"shape \(4, 4, 1\)"),
        (np.zeros((0, 4, 4, 1)), "is empty"),
        ([], "no samples"),
        (iter(()), "no samples"),
        (np.full((2, 4, 4, 1), np.nan), "32 NaN or infinite values of 32"),
        (np.full((2, 4, 4, 1), np.inf), "NaN or infinite"),
        (np.full((2, 4, 4, 1), 1e300), r"takes float32, got values from 1e\+300"),
        (np.array([["a"]], dtype=object), "takes samples"),
        (np.full((2, 4, 4, 1), "a"), "dtype <U1; supported: numbers"),
        (np.full((2, 4, 4, 1), None), "dtype object; supported: numbers"),
        ({"a": image(2), "b": image(2)}, "no array 'image' or 'x'; found: 'a', 'b'"),
        (7, "got int; supported"),
        ([image(2), np.zeros((2, 3, 3, 1))], "differ in shape"),
    ],
)
def test_calibration_that_does_not_fit(source, message):
    with pytest.raises(InputError, match=message):
        load_calibration(source, IMAGE)


def test_a_failing_generator_is_one_line():
    def broken():
        yield image(3)
        raise RuntimeError("camera unplugged")

    with pytest.raises(InputError, match="failed after 3 samples: RuntimeError: camera unplugged"):
        load_calibration(broken(), IMAGE)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((5, 2)), "takes int32, got float64; cast them to int32"),
        (np.full((5, 2), 2**40), "got values from 1.09951e"),
        (np.zeros((4, 2), int), "5 of 'image', 4 of 'tokens'"),
    ],
)
def test_two_inputs_that_do_not_fit(tokens, message):
    with pytest.raises(InputError, match=message):
        load_calibration((np.zeros((5, 3)), tokens), TWO)


def test_one_array_for_two_inputs():
    with pytest.raises(InputError, match="give one array for each of 'image', 'tokens'"):
        load_calibration(np.zeros((5, 3)), TWO)


# Files


def test_calibration_files(tmp_path):
    np.save(tmp_path / "a.npy", image(3))
    np.savez(tmp_path / "b.npz", x=image(3), y=np.zeros(3))
    np.savez(tmp_path / "c.npz", tokens=np.full((5, 2), 7), image=np.ones((5, 3)))
    for name in ("a.npy", "b.npz"):
        np.testing.assert_array_equal(load_calibration(tmp_path / name, IMAGE)[0], image(3))
    assert load_calibration(str(tmp_path / "c.npz"), TWO)[1][0, 0] == 7


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_pickles_are_refused_and_never_run(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object))
    np.save(tmp_path / "b.npy", np.array([Bomb()], dtype=object))
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npz", "b.npy", "c.npy"):
        with pytest.raises(InputError, match=r"Python objects \(pickles\), which are never loaded"):
            load_calibration(tmp_path / name, IMAGE)
    with pytest.raises(InputError, match=r"'x' of .*a\.npz holds Python objects"):
        load_training_data(tmp_path / "a.npz")


def test_bad_files(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, x=image(50), y=np.zeros(50))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save(tmp_path / "whole.npy", image(50))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:300])
    (tmp_path / "folder.npz").mkdir()
    damaged = bytearray(whole.read_bytes())
    damaged[200] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(damaged)
    cases = {
        "cut.npz": "not a whole .npz file",
        "empty.npz": "is an empty NumPy file",
        "text.npy": "is not a NumPy file",
        "cut.npy": "cannot be read|not a whole",
        "folder.npz": "is a directory",
        "none.npz": "does not exist",
        "damaged.npz": "not a whole .npz file",
        "data.csv": "supported: .npz, .npy, module:function",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            load_calibration(str(tmp_path / name), IMAGE)


# module:function


def test_a_function_of_the_current_folder(project):
    (project / "project_data.py").write_text(
        "import numpy as np\n"
        "def samples():\n    import project_helper\n    return np.ones((3, 4, 4, 1))\n"
        "def broken():\n    raise ValueError('no disk')\n"
        "constant = 1\n"
    )
    (project / "project_helper.py").write_text("")
    path_before = list(sys.path)
    assert load_calibration("project_data:samples", IMAGE)[0].shape == (3, 4, 4, 1)
    assert sys.path == path_before
    cases = {
        "project_data:broken": "failed with ValueError: no disk",
        "project_data:constant": "has no function 'constant'",
        "project_data:none": "has no function 'none'",
        "project_none:samples": "ModuleNotFoundError",
        "project_data:": "cannot load data",
    }
    for spec, message in cases.items():
        with pytest.raises(InputError, match=message):
            load_calibration(spec, IMAGE)


def test_what_a_function_prints_stays_off_standard_output(project, capsys):
    (project / "project_loud.py").write_text(
        "import numpy as np\n"
        "print('imported')\n"
        "def samples():\n"
        "    print('called')\n"
        "    for _ in range(2):\n        print('batch')\n        yield np.ones((3, 4, 4, 1))\n"
        "def pair():\n    print('pair')\n    return np.ones((20, 2)), np.ones(20)\n"
    )
    load_calibration("project_loud:samples", IMAGE)
    load_training_data("project_loud:pair")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split() == ["imported", "called", "batch", "batch", "pair"]


# Training data


def test_every_tenth_sample_is_held_out(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(25), y=np.arange(25) * 2)
    data = load_training_data(tmp_path / "d.npz")
    assert data.x_val.tolist() == [0, 10, 20]
    assert data.y_val.tolist() == [0, 20, 40]
    assert len(data.x) == 22
    assert set(data.x.tolist()).isdisjoint({0, 10, 20})
    np.testing.assert_array_equal(data.y, 2 * data.x)
    assert data.validation == "every 10th sample (3 of 25), held out"


@pytest.mark.parametrize("kind", ["val", "test"])
def test_given_validation_data(tmp_path, kind):
    np.savez(
        tmp_path / "d.npz",
        x=np.ones(4),
        y=np.ones(4),
        **{f"x_{kind}": np.zeros(2), f"y_{kind}": np.zeros(2)},
    )
    data = load_training_data(tmp_path / "d.npz")
    assert len(data.x) == 4
    assert data.x_val.tolist() == [0, 0]
    assert data.validation == f"2 samples of 'x_{kind}'"


def test_training_data_from_a_function(project):
    (project / "project_train.py").write_text(
        "import numpy as np\n"
        "x, y = np.ones((4, 3)), [0, 1, 0, 1]\n"
        "def pair():\n    return x, y\n"
        "def four():\n    return x, y, x[:1], y[:1]\n"
        "def keras_style():\n    return (x, y), (x[:1], y[:1])\n"
        "def several():\n    return {'x': {'a': x, 'b': x[:, 0]}, 'y': y}\n"
        "def ragged():\n    return [[1, 2], [3]], y\n"
        "def wrong():\n    return 'text'\n"
    )
    assert len(load_training_data("project_train:pair").x) == 3
    for name in ("four", "keras_style"):
        assert load_training_data(f"project_train:{name}").x_val.shape == (1, 3)
    several = load_training_data("project_train:several")
    assert several.x["b"].shape == (3,)
    assert several.take(np.array([1]))["a"].shape == (1, 3)
    with pytest.raises(InputError, match="different shapes"):
        load_training_data("project_train:ragged")
    with pytest.raises(InputError, match="gives str; supported: arrays x and y"):
        load_training_data("project_train:wrong")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(3)}, "has no 'y'; found: x"),
        ({"x": np.ones(3), "y": np.ones(2)}, "'x' has 3 samples and 'y' has 2"),
        ({"x": np.ones(1), "y": np.ones(1)}, "has one sample"),
        ({"x": np.array([1, np.nan]), "y": np.ones(2)}, "'x' holds 1 NaN"),
        ({"x": np.ones(3), "y": np.ones(3), "x_val": np.ones(1)}, "'x_val' but no 'y_val'"),
        ({"x": np.ones(0), "y": np.ones(0)}, "'x' is empty"),
        ({"x": np.ones(3), "y": np.array(["a", "b", "c"])}, "'y' is of dtype <U1"),
    ],
)
def test_training_data_that_do_not_belong_together(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_training_data(tmp_path / "d.npz")


def test_for_model_casts_as_fit_would():
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    whole = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = Dataset(whole, np.zeros(2), whole[:1], np.zeros(1), "").for_model(model)
    assert data.x.dtype == np.float32
    assert data.x.tolist() == [[0, 1, 2], [3, 4, 5]]
    wide = Dataset(np.ones((2, 4)), np.zeros(2), np.ones((1, 4)), np.zeros(1), "")
    with pytest.raises(InputError, match=r"training data: .* takes samples of shape \(3,\)"):
        wide.for_model(model)


def test_fingerprint_sees_every_value():
    base = Dataset(np.ones(3), np.ones(3), np.ones(1), np.ones(1), "")
    again = Dataset(np.ones(3), np.ones(3), np.ones(1), np.ones(1), "other words")
    changed = Dataset(np.ones(3), np.ones(3), np.ones(1), np.zeros(1), "")
    assert base.fingerprint() == again.fingerprint() != changed.fingerprint()


# Laws


@given(st.integers(1, 3000), st.integers(1, 600))
def test_evenly_spaced_is_what_it_says(total, wanted):
    chosen = evenly_spaced(total, wanted)
    assert len(chosen) == min(total, wanted)
    assert chosen[0] == 0
    assert chosen[-1] == (total - 1 if wanted > 1 else 0)
    if len(chosen) > 1:
        gaps = np.diff(chosen)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


@given(st.integers(1, 50), st.integers(1, 60))
def test_batches_hold_every_sample_once_before_they_fill_up(total, size):
    column = np.arange(total)
    joined = np.concatenate([batch for (batch,) in batches([column], size)])
    assert len(joined) % size == 0
    assert len(joined) < total + size
    np.testing.assert_array_equal(joined[:total], column)


# Samples with targets or without


def samples_of(source, count=1, **options):
    inputs = [InputSpec(name, (None, 2), "float32") for name in "ab"[:count]]
    return load_samples(source, inputs, **{"integers_to_floats": True, **options})


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        {"x": X, "y": Y},
        {"a": X, "y": Y},
        lambda: (X, Y),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        lambda: iter([(X[:4], Y[:4], np.ones(4)), (X[4:], Y[4:], np.ones(2))]),
    ],
    ids=["pair", "mapping", "named", "function", "batches", "weighted batches"],
)
def test_samples_with_targets(source):
    if isinstance(source, list):
        source = iter(source)
    samples, aside = samples_of(source)
    assert aside is None
    assert len(samples) == 6
    np.testing.assert_array_equal(samples.columns[0], X)
    np.testing.assert_array_equal(samples.targets, Y)
    assert samples.columns[0].dtype == np.float32
    taken = samples.take(np.array([1, 5]))
    assert taken.targets.tolist() == [1, 5]
    assert taken.columns[0][:, 0].tolist() == [2, 10]


@pytest.mark.parametrize(
    "source", [X, {"x": X}, [X], iter([X[:3], X[3:]])], ids=["array", "x", "list", "batches"]
)
def test_samples_without_targets(source):
    samples, aside = samples_of(source)
    assert samples.targets is None
    assert aside is None
    np.testing.assert_array_equal(samples.columns[0], X)


@pytest.mark.parametrize(
    "source",
    [
        (X, Y, X[:2], Y[:2]),
        ((X, Y), (X[:2], Y[:2])),
        {"x": X, "y": Y, "x_test": X[:2], "y_test": Y[:2]},
        {"x": X, "y": Y, "x_val": X[:2], "y_val": Y[:2], "x_test": X[:3], "y_test": Y[:3]},
    ],
)
def test_samples_that_the_source_holds_out(source):
    samples, aside = samples_of(source)
    assert (len(samples), len(aside)) == (6, 2)
    assert aside.targets.tolist() == [0, 1]


def test_two_arrays_are_two_inputs_before_they_are_a_pair():
    samples, _ = samples_of((X, X + 1), count=2)
    assert samples.targets is None
    np.testing.assert_array_equal(samples.columns[1], X + 1)
    samples, _ = samples_of({"x": {"a": X, "b": X + 1}, "y": Y}, count=2)
    np.testing.assert_array_equal(samples.targets, Y)


def test_samples_that_do_not_fit():
    with pytest.raises(InputError, match="'x' has 6 samples and 'y' has 5"):
        samples_of((X, Y[:5]))
    with pytest.raises(InputError, match="'y' holds 1 NaN"):
        samples_of((X, np.where(Y == 3, np.nan, Y)))
    with pytest.raises(InputError, match="takes float32, got int64"):
        samples_of((X.astype(int), Y), integers_to_floats=False)
