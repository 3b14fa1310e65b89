"""The tasks of tools/tasks: what they are made of, that they can be learned, what they refuse."""

import dataclasses
from functools import partial

import keras
import numpy as np
import pytest
import tf_keras
from PIL import Image
from tasks import (
    accuracy,
    build_cnn1d,
    build_ds_cnn,
    build_keyword_transformer,
    build_lenet5,
    build_lenet300,
    build_mlp,
    build_mobilenet_v1,
    build_resnet8,
    digits,
    glyphs,
    keywords,
    mfcc,
    mnist1d,
    mnist_1d,
    rendering,
    speech,
    train,
)

import edgeprune
from edgeprune.errors import InputError, UnsupportedError

SMALL = {"n_train": 60, "n_val": 24, "n_test": 36}
TASKS = {
    "digits": (digits, (8, 8, 1), 10),
    "glyphs28": (partial(glyphs, 28, **SMALL), (28, 28, 1), 10),
    "glyphs32": (partial(glyphs, 32, "ABCD", **SMALL), (32, 32, 3), 4),
    "mnist1d": (partial(mnist1d, **SMALL), (40, 1), 10),
    "keywords": (partial(keywords, n_train=24, n_val=12, n_test=12), (49, 10, 1), 12),
}


@pytest.fixture(scope="module", params=TASKS)
def made(request):
    make, shape, classes = TASKS[request.param]
    return make, make(seed=3), shape, classes


def arrays(task):
    return {
        field.name: getattr(task, field.name)
        for field in dataclasses.fields(task)
        if field.name[:2] in ("x_", "y_")
    }


def test_shapes_and_types(made):
    _, task, shape, classes = made
    assert len(task.classes) == len(set(task.classes)) == classes
    for split in ("train", "val", "test"):
        x, y = arrays(task)[f"x_{split}"], arrays(task)[f"y_{split}"]
        assert x.shape == (len(y), *shape)
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert np.isfinite(x).all()
        assert np.abs(x).max() <= 12


def test_every_class_is_as_frequent_as_any_other(made):
    _, task, _, classes = made
    for name, y in arrays(task).items():
        if name.startswith("y_"):
            counts = np.bincount(y, minlength=classes)
            # UCI's own counts differ: 174 eights, 183 threes.
            spread = 0.06 * counts.max() if task.name == "digits" else 1
            assert counts.max() - counts.min() <= spread, name
            assert not (np.diff(y) >= 0).all(), "in order"


def test_same_seed_same_bytes_other_seed_other_bytes(made):
    make, task, _, _ = made
    again, other = arrays(make(seed=3)), arrays(make(seed=4))
    for name, values in arrays(task).items():
        assert values.tobytes() == again[name].tobytes()
        assert values.tobytes() != other[name].tobytes()


def test_no_sample_is_in_two_splits(made):
    _, task, _, _ = made
    samples = [
        x.tobytes() for name, values in arrays(task).items() if name[0] == "x" for x in values
    ]
    assert len(set(samples)) == len(samples)


@pytest.mark.parametrize("make", [partial(glyphs, 28), mnist1d])
def test_test_samples_do_not_hang_on_how_many_are_trained_on(make):
    few, many = make(n_train=20, n_val=10, n_test=30), make(n_train=50, n_val=20, n_test=30)
    assert few.y_test.tobytes() == many.y_test.tobytes()


def test_digits_are_all_of_the_1797():
    task = digits()
    assert sum(len(y) for name, y in arrays(task).items() if name[0] == "y") == 1797
    assert (len(task.y_val), len(task.y_test)) == (179, 359)
    assert task.x_train.min() == 0
    assert task.x_train.max() == 1


# Glyphs


def test_characters_differ_in_every_font_and_lie_within_the_mask():
    masks = np.stack([rendering.glyph_masks(c) for c in "0123456789"])
    assert masks.shape == (10, 22, 64, 64)
    assert not masks[..., [0, -1], :].any()
    assert not masks[..., [0, -1]].any()
    for font in masks.swapaxes(0, 1):
        assert len({mask.tobytes() for mask in font}) == 10
    for character in masks:
        assert len({mask.tobytes() for mask in character}) == 22


def test_distorted_characters_are_still_most_like_themselves():
    # Reduced by other code than the distortion: a transposed or mirrored image would be unlike.
    side, middle = round(64 * 25.5 / 40), slice(6, 34)
    plain = [
        [np.asarray(Image.fromarray(mask).resize((side, side)))[middle, middle] for mask in font]
        for font in map(rendering.glyph_masks, "0123456789")
    ]
    known = np.reshape(plain, (220, -1))
    task = glyphs(28, n_train=10, n_val=10, n_test=500)
    seen = task.x_test.reshape(500, -1)
    known, seen = (a - a.mean(axis=1, keepdims=True) for a in (known, seen))
    likeness = (seen @ known.T) / np.linalg.norm(known, axis=1)
    assert np.mean(likeness.argmax(axis=1) // 22 == task.y_test) > 0.4


@pytest.mark.parametrize("size", [28, 32])
def test_elastic_displacement_is_as_large_as_simards(size):
    # Uniform noise of standard deviation 1/sqrt(3), averaged by a Gaussian of sigma 4 whose
    # squares sum to 1 / (4 pi sigma^2), times alpha 34: 34 * 0.57735 * 0.070524 = 1.3844 pixels.
    field = rendering.elastic(np.random.default_rng(0), 3000, size)
    assert field.shape == (3000, 2, size, size)
    middle = field[:, :, size // 2, size // 2]
    assert middle.std() == pytest.approx(1.3844 * size / 28, rel=0.04)
    # At distance d the displacements have a correlation of exp(-d^2 / (4 sigma^2)): 1/e at 2 sigma.
    apart = field[:, :, size // 2, size // 2 - size * 2 // 7]
    assert np.corrcoef(middle.ravel(), apart.ravel())[0, 1] == pytest.approx(np.exp(-1), abs=0.05)


def test_ink_can_be_told_from_the_background():
    # Noise aside, the ink's colour is at least 0.35 from both ends of the background.
    front, back = np.random.default_rng(0).random((2, 5000, 3))
    apart = rendering.told_apart(back, front)
    assert np.linalg.norm(apart - front, axis=1).min() >= 0.35
    far = np.linalg.norm(back - front, axis=1) >= 0.35
    assert (apart[far] == back[far]).all()
    assert ((apart >= 0) & (apart <= 1)).all()


# MNIST-1D


def test_templates_are_the_papers():
    templates = mnist_1d.templates()
    assert templates.shape == (10, 12)
    assert (templates[:, [0, -1]] == 0).all()
    assert templates.std(axis=1) == pytest.approx(np.full(10, 1 / 6))
    # 8 is drawn 5 4 3.5 3.5 4 5 5 4 3.5 3.5 4 5: the mean of squares 213/12 less that of the mean,
    # (50/12)^2, is 0.38889, whose root is 0.62361; (3.5 - 5) / 0.62361 / 6 = -0.40089.
    assert templates[8, 2] == pytest.approx(-0.40089, abs=1e-5)


def test_a_template_is_stretched_and_scaled_and_never_wraps(monkeypatch):
    for noise in ("CORRELATED_NOISE", "IID_NOISE", "SHEAR"):
        monkeypatch.setattr(mnist_1d, noise, 0.0)
    x = mnist_1d.distorted(np.random.default_rng(0), np.zeros(4000, int))
    # 0 is flat on top for 3 of 11 intervals, so a sample always falls there: (7 - 5) / 0.70341 / 6,
    # times a scale from 0.8 to 1.2.
    peaks = x.max(axis=1)
    assert peaks.min() == pytest.approx(0.8 * 0.47388, rel=1e-3)
    assert peaks.max() == pytest.approx(1.2 * 0.47388, rel=1e-3)
    assert peaks.mean() == pytest.approx(0.47388, rel=0.01)
    # Stretched templates are 12 to 19 of 72 samples long and start, with a zero, at 0 to 47: the
    # last that they reach is 65, and of the 40 samples kept number 36 lies at 36 * 71 / 39 = 65.5.
    seen = (x != 0).any(axis=0)
    assert seen[1:36].all()
    assert not seen[0]
    assert not seen[37:].any()


def test_noise_and_shear_are_the_papers():
    # The last sample never sees a template. Its variance: correlated noise 0.25^2 times the sum
    # of squares of a Gaussian of sigma 2 mirrored at the edge, (1 + exp(-1/16)) / (4 sqrt(pi)) =
    # 0.27355; iid noise 0.02^2; shear 0.75^2 / 12 / 4. In all 0.017097 + 0.0004 + 0.011719.
    x = mnist_1d.distorted(np.random.default_rng(0), np.zeros(20000, int))
    assert x[:, -1].var() == pytest.approx(0.029216, rel=0.05)
    assert x[:, -1].mean() == pytest.approx(0, abs=0.005)


def test_mnist1d_is_standardized_by_the_training_samples():
    task = mnist1d(n_train=1000, n_val=10, n_test=1000)
    assert task.x_train.mean() == pytest.approx(0, abs=1e-5)
    assert task.x_train.std() == pytest.approx(1, abs=1e-5)
    assert task.x_test.std() == pytest.approx(1, abs=0.05)
    assert task.x_test.std() != pytest.approx(1, abs=1e-6)


# Speech and its features


def tone(hertz, amplitude, samples=16000):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / 16000))[None]


def test_silence_and_gain_move_the_first_coefficient_alone():
    silence = mfcc.mfcc(np.zeros((1, 16000)))
    assert silence.shape == (1, 49, 10)
    # 40 bands of ln(1e-6) each: sqrt(40) * -13.8155.
    assert silence[..., 0] == pytest.approx(-87.377, abs=1e-3)
    assert silence[..., 1:] == pytest.approx(0, abs=1e-4)
    noise = np.random.default_rng(0).standard_normal((1, 16000)) / 10
    louder = mfcc.mfcc(2 * noise) - mfcc.mfcc(noise)
    # Twice the amplitude is four times the energy in every band: sqrt(40) * ln 4.
    assert louder[..., 0] == pytest.approx(8.7677, abs=1e-3)
    assert louder[..., 1:] == pytest.approx(0, abs=1e-3)


def test_energies_of_a_pure_tone():
    energies = mfcc.mel_energies(tone(1000, 0.5))
    assert energies.shape == (1, 49, 40)
    # 20 ms are 20 whole periods: all windows see the same.
    assert energies == pytest.approx(np.broadcast_to(energies[:, :1], energies.shape))
    # Parseval, half of the 1024 bins: 512 * the sum of the squares of the window, 640 * 3 / 8,
    # * A^2 / 2.
    assert energies[0, 0].sum() == pytest.approx(512 * 240 * 0.125, rel=1e-3)
    # Edges on the mel scale are 31.75 and 2146.07 and 41 steps of 51.569; 1000 Hz is 999.99 mel,
    # 18.776 steps up: of bin 64 band 18 takes 0.776 and band 17 (whose middle is step 18) 0.224.
    bands = mfcc.mel_bands()
    assert np.flatnonzero(bands[64]).tolist() == [17, 18]
    assert bands[64, 17:19] == pytest.approx([0.224, 0.776], abs=1e-3)
    assert energies[0, 0].argmax() == 18
    assert energies[0, 0, 18] / energies[0, 0, 17] > 2


def test_bands_share_out_every_bin_between_their_middles():
    bands = mfcc.mel_bands()
    hertz = np.arange(513) * 16000 / 1024
    middles = 700 * np.expm1((31.7485 + 51.5687 * np.array([1, 40])) / 1127)
    inside = (hertz > middles[0]) & (hertz < middles[1])
    assert bands[inside].sum(axis=1) == pytest.approx(1)
    assert not bands[(hertz <= 20) | (hertz >= 4000)].any()


def test_windows_are_40_ms_every_20_ms():
    half = np.concatenate([np.zeros((1, 8000)), tone(500, 0.5, 8000)], axis=1)
    # Window i covers samples 320 i to 320 i + 639, so the first to see the tone is number 24.
    loud = mfcc.mel_energies(half)[0].sum(axis=1) > 0
    assert loud.tolist() == [False] * 24 + [True] * 25


def test_espeak_says_each_word_in_less_than_a_second():
    words = [speech.Utterance(word, "en-gb+m3", 50, 175) for word in speech.WORDS]
    sounds = [speech.speak(word) for word in words]
    for sound in sounds:
        assert sound.dtype == np.float32
        assert 0.05 * 16000 < len(sound) < 16000
        assert 0.1 < np.abs(sound).max() <= 1
    assert len({sound.tobytes() for sound in sounds}) == len(sounds)
    assert len(speech.speak(dataclasses.replace(words[0], words_per_minute=130))) > len(sounds[0])


def test_no_voice_speaks_in_two_splits():
    train_, val, test = (speech.VOICES[split] for split in ("train", "val", "test"))
    assert len({*train_, *val, *test}) == len(train_) + len(val) + len(test) == 63


def test_keywords_are_unlike_each_other():
    task = keywords(n_train=180, n_val=12, n_test=60)
    assert task.x_train.mean(axis=(0, 1, 3)) == pytest.approx(0, abs=1e-4)
    assert task.x_train.std(axis=(0, 1, 3)) == pytest.approx(1, abs=1e-4)
    means = np.stack([task.x_train[task.y_train == label].mean(axis=0) for label in range(12)])
    distance = np.square(task.x_test[:, None] - means).sum(axis=(2, 3, 4))
    assert np.mean(distance.argmin(axis=1) == task.y_test) > 3 / 12


def test_espeak_missing_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"^espeak-ng.*apt-get install espeak-ng$"):
        keywords(**SMALL)


def test_voices_that_espeak_lacks_are_named(monkeypatch):
    monkeypatch.setitem(speech.VOICES, "val", ("m6", "nobody"))
    with pytest.raises(UnsupportedError, match=r"^espeak-ng lacks the voices nobody; use .*1\.51"):
        keywords(**SMALL)
    with pytest.raises(UnsupportedError, match=r"^espeak-ng .*-v nosuch.* failed: .*exist"):
        speech.speak(speech.Utterance("yes", "nosuch", 50, 175))
    with pytest.raises(UnsupportedError, match="said nothing for ' '"):
        speech.speak(speech.Utterance(" ", "en-us", 50, 175))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(glyphs, 30), "size=30"),
        (partial(glyphs, characters="AA"), "'AA'"),
        (partial(glyphs, characters="A漢"), "no '漢'"),
        (partial(glyphs, n_val=9), "n_val=9 for 10 classes"),
        (partial(mnist1d, n_test=9), "n_test=9 for 10 classes"),
        (partial(keywords, n_train=11), "n_train=11 for 12 classes"),
        (partial(digits, seed=-1), "seed -1"),
        (partial(mnist1d, seed=-1), "seed -1"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Models and training


@pytest.mark.parametrize(
    ("build", "parameters", "shape", "classes"),
    [
        # 784*300+300 + 300*100+100 + 100*10+10, and 20*26 + 50*501 + 500*801 + 10*501.
        (build_lenet300, 266_610, (28, 28, 1), 10),
        (build_lenet5, 431_080, (28, 28, 1), 10),
        # 25*6 + 2 * 25*76 + 126*10; 41*100 + 101*100 + 101*10.
        (build_cnn1d, 5_210, (40, 1), 10),
        (partial(build_mlp, (40, 1)), 15_210, (40, 1), 10),
        # 10*64 + 49*64; four times 2*128 + 4*65*64 + 65*128 + 129*64; 128 + 65*12.
        (build_keyword_transformer, 138_572, (49, 10, 1), 12),
        (build_resnet8, 78_666, (32, 32, 3), 10),
        (build_ds_cnn, 24_908, (49, 10, 1), 12),
    ],
)
def test_models_have_the_published_sizes_and_fit_their_task(build, parameters, shape, classes):
    model = build()
    assert model.count_params() == parameters
    outputs = model(np.zeros((2, *shape), np.float32)).numpy()
    assert outputs.shape == (2, classes)
    assert outputs.sum(axis=1) == pytest.approx(1)
    assert not model.compiled


def test_models_come_in_other_sizes():
    assert build_resnet8(classes=26).output_shape == (None, 26)
    assert build_ds_cnn(tf_keras, classes=4).output_shape == (None, 4)
    assert build_mobilenet_v1().output_shape == (None, 2)
    small = build_keyword_transformer(3, shape=(20, 8), width=12, heads=3, blocks=2, hidden=5)
    assert small.input_shape == (None, 20, 8, 1)
    assert small.output_shape == (None, 3)
    attention = [layer for layer in small.layers if "MultiHead" in type(layer).__name__]
    assert [(layer.num_heads, layer.key_dim) for layer in attention] == [(3, 4)] * 2


def test_keyword_transformer_knows_the_order_of_frames_by_its_embedding_alone():
    model = build_keyword_transformer(blocks=1)
    x = np.random.default_rng(0).standard_normal((4, 49, 10, 1)).astype(np.float32)
    assert np.abs(model(x) - model(x[:, ::-1])).max() > 1e-4
    kernel, positions = model.get_layer("embedding").get_weights()
    assert positions.shape == (49, 64)
    model.get_layer("embedding").set_weights([kernel, 0 * positions])
    assert np.abs(model(x) - model(x[:, ::-1])).max() < 1e-5


def test_keyword_transformer_saves_loads_and_converts(tmp_path):
    model = build_keyword_transformer(blocks=1)
    x = np.random.default_rng(0).standard_normal((4, 49, 10, 1)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded(x).numpy() == model(x).numpy()).all()
    assert edgeprune.convert(model, tmp_path / "model.tflite").verification.passed


def test_training_learns_and_ends_at_a_learning_rate_of_zero():
    task, seen = digits(), []
    keras.utils.set_random_seed(0)
    model = build_mlp((8, 8, 1))
    before = accuracy(model, task.x_test, task.y_test)
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    after = train(model, task, epochs=10, batch_size=32, callbacks=[count])
    assert before < 0.3
    assert after > 0.9
    assert after == accuracy(model, task.x_test, task.y_test)
    steps = 10 * -(-len(task.y_train) // 32)
    assert len(seen) == steps == int(model.optimizer.iterations)
    rate = model.optimizer._learning_rate
    assert float(rate(steps)) == pytest.approx(0, abs=1e-8)
    assert max(float(rate(step)) for step in range(steps)) == pytest.approx(2e-3, rel=0.01)


def test_training_takes_models_of_tf_keras():
    inputs = tf_keras.Input((8, 8, 1))
    outputs = tf_keras.layers.Dense(10, "softmax")(tf_keras.layers.Flatten()(inputs))
    assert train(tf_keras.Model(inputs, outputs), digits(), epochs=4, learning_rate=1e-2) > 0.85


def test_accuracy_is_the_fraction_that_is_right():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("softmax")])
    x = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    assert accuracy(model, x, np.array([0, 1, 0, 0])) == 0.75
