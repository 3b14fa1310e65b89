"""Characters rendered from the fonts that matplotlib ships, distorted like handwriting.

Affine and elastic distortions are those of Simard, Steinkraus & Platt 2003, "Best practices for
convolutional neural networks applied to visual document analysis".
"""

from functools import cache
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from edgeprune.errors import InputError
from tasks.task import Array, Task, balanced_labels, generators, sizes

_STYLES = {
    "DejaVuSans": ("", "-Bold", "-BoldOblique", "-Oblique"),
    "DejaVuSansMono": ("", "-Bold", "-BoldOblique", "-Oblique"),
    "DejaVuSerif": ("", "-Bold", "-BoldItalic", "-Italic"),
    "STIXGeneral": ("", "Bol", "BolIta", "Italic"),
    "cm": ("b10", "mi10", "r10", "ss10", "ti10", "tt10"),
}
# Named one by one: other files in the folder have signs in place of the letters.
FONTS = tuple(family + style for family, styles in _STYLES.items() for style in styles)

_MASK = 64  # pixels of a side of a rendered mask
_EM = 40  # pixels of the em square in it: up to twice what is drawn, so strokes stay whole
_BASELINE = 46  # row that a capital of this em stands on when it is in the middle
_BLOCK = 2000  # images distorted at once

# Of an image of 28 pixels; all but the angles grow with the image.
_EM_PIXELS = (23.0, 28.0)
_ANGLE = np.radians(10)
_SHEAR = 0.2
_ASPECT = 0.1
_SHIFT = 1.0
_ELASTIC_SIGMA = 4.0  # Simard's best: sigma 4, alpha 34
_ELASTIC_ALPHA = 34.0
_NOISE = (0.0, 0.1)  # standard deviation, of images in [0, 1]
_CONTRAST = 0.35  # least distance of two colours, in RGB of [0, 1]


def glyphs(
    size: int = 28,
    characters: str = "0123456789",
    n_train: int = 12000,
    n_val: int = 2000,
    n_test: int = 4000,
    seed: int = 0,
) -> Task:
    """Make images of characters in 22 fonts, each distorted on its own.

    All splits are drawn from the same fonts and distortions, each on its own: test images are new
    images, not new fonts.

    Args:
      size: 28 makes grey images, light on dark, for the LeNets; 32 makes coloured ones, for
        ResNet-8.
      characters: one class each.
      n_train: images to train on.
      n_val: images to choose by.
      n_test: images to report on.
      seed: of everything that is drawn.

    Returns:
      x of shape (n, 28, 28, 1) or (n, 32, 32, 3), float32 in [0, 1].

    Raises:
      InputError: another size, a character that is there twice or that a font lacks, a split
        with fewer samples than classes, or a negative seed.
    """
    if size not in (28, 32):
        raise InputError(f"got size={size}; supported: 28 (grey) and 32 (coloured)")
    if len(set(characters)) != len(characters) or len(characters) < 2:
        raise InputError(f"got characters={characters!r}; give two or more, each once")
    masks = np.stack([glyph_masks(character) for character in characters])
    arrays: dict[str, Array] = {}
    rngs = generators(seed)
    for split, number in sizes(n_train, n_val, n_test, len(characters)).items():
        rng = rngs[split]
        y = balanced_labels(rng, number, len(characters))
        finish = _in_grey if size == 28 else _in_colour
        blocks = [y[start : start + _BLOCK] for start in range(0, number, _BLOCK)]
        arrays[f"x_{split}"] = np.concatenate(
            [finish(rng, distorted(rng, masks, block, size)) for block in blocks]
        )
        arrays[f"y_{split}"] = y
    return Task(f"glyphs{size}", **arrays, classes=tuple(characters))


@cache
def glyph_masks(character: str) -> Array:
    """Render one character in every font: (22, 64, 64) float32, 1 where there is ink.

    Raises:
      InputError: a font lacks the character.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks = []
    for font in FONTS:
        path = folder / f"{font}.ttf"
        if not FT2Font(path).get_char_index(ord(character)):
            raise InputError(
                f"the font {font} has no {character!r}; supported: digits and the letters A to Z"
            )
        image = Image.new("L", (_MASK, _MASK))
        ImageDraw.Draw(image).text(
            (_MASK // 2, _BASELINE),
            character,
            fill=255,
            font=ImageFont.truetype(path, _EM),
            anchor="ms",  # the middle of its width, on the baseline
        )
        masks.append(np.asarray(image, np.float32) / 255)
    return np.stack(masks)


def distorted(rng: np.random.Generator, masks: Array, y: Array, size: int) -> Array:
    """Draw a font for each label, and distort its mask.

    Args:
      rng: where the draws come from.
      masks: (classes, fonts, 64, 64) of `glyph_masks`.
      y: (n,) labels.
      size: of the images.

    Returns:
      (n, size, size) float32 in [0, 1], 1 where there is ink.
    """
    n, unit = len(y), size / 28
    font = rng.integers(masks.shape[1], size=n)
    # Pixels of the image are carried to where they come from in the mask: first the elastic
    # displacement, then the inverse of rotation, shear and scale, each about the middle.
    middle = (size - 1) / 2
    grid = np.stack(np.meshgrid(*[np.arange(size) - middle] * 2, indexing="ij")).astype(np.float32)
    shift = unit * rng.uniform(-_SHIFT, _SHIFT, (n, 2, 1, 1)).astype(np.float32)
    points = grid + elastic(rng, n, size) - shift

    angle = rng.uniform(-_ANGLE, _ANGLE, n)
    scale = _EM / (unit * rng.uniform(*_EM_PIXELS, n))
    aspect = np.exp(rng.uniform(-_ASPECT, _ASPECT, n))
    lean = rng.uniform(-_SHEAR, _SHEAR, n)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    stretch = np.array([[scale * aspect, 0 * lean], [scale * lean, scale / aspect]])
    affine = np.einsum("ijn,jkn->nik", stretch, turn).astype(np.float32)
    points = np.einsum("nij,njhw->nihw", affine, points) + (_MASK - 1) / 2
    return _sampled(masks[y, font], points)


def elastic(rng: np.random.Generator, n: int, size: int) -> Array:
    """Return random displacements in pixels, smooth over the image: (n, 2, size, size) float32."""
    unit = size / 28
    rough = rng.uniform(-1, 1, (n, 2, size, size)).astype(np.float32)
    sigma = _ELASTIC_SIGMA * unit
    # A wider Gaussian averages more of the noise away, in proportion to sigma.
    alpha = _ELASTIC_ALPHA * unit * unit
    return alpha * gaussian_filter(rough, (0, 0, sigma, sigma), mode="constant")


def _sampled(masks: Array, points: Array) -> Array:
    """Read masks (n, h, w) at points (n, 2, size, size) between pixels, linearly."""
    points = np.clip(points, 0, _MASK - 1.001)
    corner = np.floor(points)
    down, right = np.moveaxis(points - corner, 1, 0)
    row, column = np.moveaxis(corner.astype(np.int32), 1, 0)
    sample = np.arange(len(masks))[:, None, None]
    upper = (1 - right) * masks[sample, row, column] + right * masks[sample, row, column + 1]
    row = row + 1
    lower = (1 - right) * masks[sample, row, column] + right * masks[sample, row, column + 1]
    return (1 - down) * upper + down * lower


def _in_grey(rng: np.random.Generator, ink: Array) -> Array:
    return _noisy(rng, ink[..., None])


def _in_colour(rng: np.random.Generator, ink: Array) -> Array:
    """Paint the ink in one colour on a background that goes from a second to a third."""
    n, size = len(ink), ink.shape[1]
    front, start, end = np.moveaxis(rng.random((n, 3, 3)), 1, 0)
    start, end = told_apart(start, front), told_apart(end, front)
    across = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    back = start[:, None, None] * (1 - across) + end[:, None, None] * across
    picture = ink[..., None] * front[:, None, None] + (1 - ink[..., None]) * back
    return _noisy(rng, picture.astype(np.float32))


def told_apart(colour: Array, front: Array) -> Array:
    """Put the opposite of `front` in place of colours too close to it, (n, 3) each."""
    close = np.linalg.norm(colour - front, axis=-1, keepdims=True) < _CONTRAST
    return np.where(close, (front + 0.5) % 1, colour)


def _noisy(rng: np.random.Generator, images: Array) -> Array:
    level = rng.uniform(*_NOISE, (len(images), 1, 1, 1)).astype(np.float32)
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + level * noise, 0, 1)
