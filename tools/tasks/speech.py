"""Words spoken by espeak-ng, as the features that keyword spotters of microcontrollers take."""

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.signal import resample_poly

from edgeprune.errors import UnsupportedError
from tasks.mfcc import RATE, mfcc
from tasks.task import SPLITS, Array, Task, balanced_labels, generators, sizes

# The ten words of MLPerf Tiny, and some of the others of Speech Commands (Warden 2018).
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
OTHERS = (
    *("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)
CLASSES = (*WORDS, "silence", "unknown")

_ACCENTS = (
    *("en-gb", "en-us", "en-029", "en-gb-scotland"),
    *("en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd"),
)
# Variants of espeak-ng's speaker. Nobody speaks in two splits.
VOICES = {
    "test": ("m3", "f2", "klatt2", "Andy", "Marco", "linda", "rob", "steph"),
    "val": ("m6", "f4", "paul", "belinda"),
    "train": (
        *("m1", "m2", "m4", "m5", "m7", "m8", "f1", "f3", "f5", "klatt", "klatt3", "croak"),
        *("Annie", "Denis", "Gene", "Hugo", "Lee", "Mario", "Michael", "adam", "antonio"),
        *("david", "max", "quincy", "robert", "sandro", "travis", "zac"),
        *("Alicia", "Andrea", "AnxiousAndy", "Diogo", "Henrique", "Jacky", "anika", "aunty"),
        *("boris", "ed", "edward", "grandma", "grandpa", "gustave", "iven", "john", "michel"),
        *("miguel", "norbert", "pablo", "pedro", "shelby", "victor"),
    ),
}
_PITCH = (25, 76)  # espeak-ng's scale, 0 to 99
_WORDS_PER_MINUTE = (120, 230)
_SHIFT = RATE // 10  # samples by which a word lies before or after the middle, at most
_GAIN_DB = (-15.0, 0.0)  # of the word's peak, below full scale
_SNR_DB = (5.0, 30.0)
_NOISE_COLOUR = (0.0, 2.0)  # power falls as 1 / frequency to this: white to brown
_BLOCK = 256
_THREADS = 2
_RIGHT_ONE = "use espeak-ng 1.51 or later: apt-get install espeak-ng"


@dataclass(frozen=True)
class Utterance:
    """What espeak-ng is asked to say."""

    text: str
    voice: str  # accent+variant
    pitch: int
    words_per_minute: int


def keywords(n_train: int = 7200, n_val: int = 600, n_test: int = 1200, seed: int = 0) -> Task:
    """Make a second of noisy speech for each sample, and turn it into features.

    The voices of the three splits differ, accents are shared. A word lies near the middle, at a
    level, in noise of a colour and loudness that are all drawn. `silence` is noise alone,
    `unknown` any of 20 other words. The same seed gives the same bytes with the same espeak-ng.

    Args:
      n_train: samples to train on.
      n_val: samples to choose by.
      n_test: samples to report on.
      seed: of everything that is drawn.

    Returns:
      x of shape (n, 49, 10, 1), float32: `mfcc` of 16 kHz sound, each coefficient shifted and
      scaled to mean 0 and standard deviation 1 over the training samples; 12 classes.

    Raises:
      UnsupportedError: espeak-ng is not installed, or lacks a voice.
      InputError: a split has fewer than 12 samples, or the seed is negative.

    Source: features and classes as MLPerf Tiny's keyword spotting (Banbury 2021,
    arXiv:2106.07597), words as Speech Commands (Warden 2018, arXiv:1804.03209).
    """
    wanted = sizes(n_train, n_val, n_test, len(CLASSES))
    arrays: dict[str, Array] = {}
    rngs = generators(seed)
    _check_voices()
    for split, number in wanted.items():
        rng = rngs[split]
        y = balanced_labels(rng, number, len(CLASSES))
        asked = [_drawn(rng, CLASSES[label], split) for label in y]
        blocks = [asked[start : start + _BLOCK] for start in range(0, number, _BLOCK)]
        arrays[f"x_{split}"] = np.concatenate([mfcc(_seconds(rng, block)) for block in blocks])
        arrays[f"y_{split}"] = y
    mean = arrays["x_train"].mean(axis=(0, 1))
    std = arrays["x_train"].std(axis=(0, 1))
    for split in SPLITS:
        x = (arrays[f"x_{split}"] - mean) / std
        arrays[f"x_{split}"] = x.astype(np.float32)[..., None]
    return Task("keywords", **arrays, classes=CLASSES)


def speak(utterance: Utterance) -> Array:
    """Let espeak-ng say something: float32 at 16 kHz in [-1, 1], silence at both ends cut off.

    Raises:
      UnsupportedError: espeak-ng is not installed, does not know the accent, or says nothing.
    """
    pitch, speed = str(utterance.pitch), str(utterance.words_per_minute)
    wav = _espeak("--stdout", "-v", utterance.voice, "-p", pitch, "-s", speed, utterance.text)
    # A canonical WAV header is 44 bytes; the lengths in it are not filled in on a pipe.
    rate = int.from_bytes(wav[24:28], "little")
    sound = np.frombuffer(wav[44 : len(wav) // 2 * 2], "<i2") / np.float32(32768)
    if not sound.any():
        raise UnsupportedError(
            f"espeak-ng said nothing for '{utterance.text}' as {utterance.voice}; give it a word"
        )
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    common = np.gcd(RATE, rate)
    sound = resample_poly(sound[loud[0] : loud[-1] + 1], RATE // common, rate // common)
    return np.clip(sound, -1, 1).astype(np.float32)


def _espeak(*arguments: str) -> bytes:
    program = shutil.which("espeak-ng")
    if program is None:
        raise UnsupportedError(
            "espeak-ng, which speaks the keywords, is not installed; apt-get install espeak-ng"
        )
    ran = subprocess.run([program, *arguments], capture_output=True, check=False)
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise UnsupportedError(f"espeak-ng {' '.join(arguments)} failed: {said}; {_RIGHT_ONE}")
    return ran.stdout


def _check_voices() -> None:
    # espeak-ng speaks with another voice where it does not know a variant.
    known = _espeak("--voices=variant").decode()
    missing = [
        voice for voices in VOICES.values() for voice in voices if f"!v/{voice} " not in known
    ]
    if missing:
        raise UnsupportedError(f"espeak-ng lacks the voices {', '.join(missing)}; {_RIGHT_ONE}")


def _drawn(rng: np.random.Generator, label: str, split: str) -> Utterance | None:
    """Draw what is said for a label; nothing for silence."""
    voice = f"{rng.choice(_ACCENTS)}+{rng.choice(VOICES[split])}"
    pitch, speed = int(rng.integers(*_PITCH)), int(rng.integers(*_WORDS_PER_MINUTE))
    other = str(rng.choice(OTHERS))
    if label == "silence":
        return None
    return Utterance(other if label == "unknown" else label, voice, pitch, speed)


def _seconds(rng: np.random.Generator, asked: Sequence[Utterance | None]) -> Array:
    """Return a second of sound for each utterance, noise included: (n, 16000) float32."""
    with ThreadPoolExecutor(_THREADS) as pool:
        spoken = list(pool.map(lambda one: None if one is None else speak(one), asked))
    n = len(spoken)
    waves = np.zeros((n, RATE), np.float32)
    middle = (RATE + rng.integers(-2 * _SHIFT, 2 * _SHIFT + 1, n)) // 2
    for wave, sound, at in zip(waves, spoken, middle, strict=True):
        if sound is not None:
            sound = sound[:RATE] / np.abs(sound).max()
            start = int(np.clip(at - len(sound) // 2, 0, RATE - len(sound)))
            wave[start : start + len(sound)] = sound
    # Silence keeps the noise that a word of full scale would have had.
    power = np.where([one is None for one in spoken], 0.05, np.square(waves).mean(axis=1))
    ratio = 10 ** (rng.uniform(*_SNR_DB, n) / 10)
    gain = 10 ** (rng.uniform(*_GAIN_DB, n) / 20)
    noise = _noise(rng, n) * np.sqrt(power / ratio)[:, None]
    return (gain[:, None] * (waves + noise)).astype(np.float32)


def _noise(rng: np.random.Generator, n: int) -> Array:
    """Return noise of power 1 and a colour drawn for each row, (n, 16000)."""
    spectrum = np.fft.rfft(rng.standard_normal((n, RATE)), axis=1)
    frequency = np.maximum(np.arange(spectrum.shape[1]), 20)  # below 20 Hz nothing more is added
    colour = rng.uniform(*_NOISE_COLOUR, (n, 1))
    noise = np.fft.irfft(spectrum * frequency ** (-colour / 2), axis=1)
    return noise / noise.std(axis=1, keepdims=True)
