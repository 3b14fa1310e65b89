"""Mel-frequency cepstral coefficients: 49 frames of 10 for a second of sound."""

from functools import cache

import numpy as np
from scipy.fft import dct

from tasks.task import Array

RATE = 16000
WINDOW = RATE * 40 // 1000
STRIDE = RATE * 20 // 1000
FFT_LENGTH = 1024
BANDS = 40
BAND_EDGES_HZ = (20.0, 4000.0)
COEFFICIENTS = 10
_FLOOR = 1e-6  # added to the energies, whose logarithm is taken


def mfcc(waves: Array) -> Array:
    """Turn sound into features.

    Windows of 40 ms every 20 ms (Hann), power spectra, 40 mel bands from 20 Hz to 4 kHz,
    logarithms, the first 10 coefficients of the orthonormal DCT-II.

    Args:
      waves: (n, samples) at 16 kHz in [-1, 1]; a second is 16000 samples.

    Returns:
      (n, frames, 10) float32; a second has 49 frames.

    Source: window, stride, bands and coefficients as MLPerf Tiny's keyword spotting.
    """
    cepstra = dct(np.log(mel_energies(waves) + _FLOOR), norm="ortho")
    return cepstra[..., :COEFFICIENTS].astype(np.float32)


def mel_energies(waves: Array) -> Array:
    """Return the energy of each window in each mel band: (n, frames, 40)."""
    frames = np.lib.stride_tricks.sliding_window_view(waves, WINDOW, axis=1)[:, ::STRIDE]
    # One period of a raised cosine, whose first sample is zero.
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    spectra = np.fft.rfft(frames * window.astype(np.float32), FFT_LENGTH)
    return np.square(np.abs(spectra)) @ mel_bands()


@cache
def mel_bands() -> Array:
    """Return the triangular bands, (513, 40): how much of each FFT bin a band takes.

    Their middles are equally spaced on the mel scale, 1127 ln(1 + f / 700 Hz), and each reaches
    from the middle of the one before to the middle of the one after.
    """
    low, high = _mel(np.array(BAND_EDGES_HZ))
    edges = np.linspace(low, high, BANDS + 2)
    bins = _mel(np.arange(FFT_LENGTH // 2 + 1) * RATE / FFT_LENGTH)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _mel(hertz: Array) -> Array:
    return 1127 * np.log1p(hertz / 700)
