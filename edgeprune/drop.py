"""How much worse a changed model is than the one it was: one figure, 0 for no worse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.scoring import score

Array = npt.NDArray[Any]

ACCURACY = "accuracy"
R2 = "R2"
AGREEMENT = "arg max agreement"
ERROR = "output error"
# On fewer samples than this, one of them alone is a drop of 0.01.
_FEW = 100
_SCORES = {"accuracy": ACCURACY, "mean squared error": R2}


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What a model gave on some samples before it was changed, to hold later outputs against.

    With targets, of a model with one output, the drop is the accuracy that is lost; of a
    regression the fraction of the targets' variance that is explained no longer (R2). Without,
    it is the fraction of samples whose arg max changed, of a classifier; of any other model the
    root mean square of the change in standard deviations of the output, the worst one's if there
    are several.

    Args:
      reference: (n, ...) outputs before the change, in a fixed order.
      targets: (n, ...), or None.
      sample_shapes: of the inputs, without the batch: an output of an input's shape is no
        classifier's, but an autoencoder's.

    Raises:
      InputError: the targets do not fit the output.
    """

    reference: Sequence[Array]
    targets: Array | None
    sample_shapes: Sequence[tuple[int | None, ...]] = ()

    def __post_init__(self) -> None:
        _ = self.score  # targets that do not fit are refused here

    @property
    def name(self) -> str:
        """What drops: ``accuracy``, ``R2``, ``arg max agreement``, or rises: ``output error``."""
        first = self.reference[0]
        if self.targets is not None and len(self.reference) == 1:
            return _SCORES[score(self.targets, first).name]
        classes = len(self.reference) == 1 and first.ndim == 2 and first.shape[1] > 1
        return AGREEMENT if classes and first.shape[1:] not in self.sample_shapes else ERROR

    @property
    def score(self) -> float:
        """The model's own figure: its accuracy or R2; 1 for agreement, 0 for the error."""
        return self._figure(self.reference)

    def drop(self, outputs: Sequence[Array]) -> float:
        """Return how much worse these outputs are, (n, ...) as the reference; inf where NaN."""
        if not all(np.isfinite(output).all() for output in outputs):
            return float("inf")
        after = self._figure(outputs)
        return after if self.name == ERROR else self.score - after

    def error(self, outputs: Sequence[Array]) -> float:
        """Return the output error whatever `name` is, since a few samples' accuracy is coarse."""
        worst = 0.0
        for got, want in zip(outputs, self.reference, strict=True):
            change = float(np.sqrt(np.mean((got.astype(np.float64) - want) ** 2)))
            spread = float(np.std(want.astype(np.float64)))
            relative = change / spread if spread else (0.0 if change == 0 else float("inf"))
            worst = relative if not relative <= worst else worst
        return worst

    def _figure(self, outputs: Sequence[Array]) -> float:
        if self.name == ERROR:
            return self.error(outputs)
        if self.name == AGREEMENT:
            return float(np.mean(outputs[0].argmax(-1) == self.reference[0].argmax(-1)))
        assert self.targets is not None
        figure = score(self.targets, outputs[0]).value
        if self.name == ACCURACY:
            return figure
        spread = float(np.var(self.targets.astype(np.float64)))
        return 1 - figure / spread if spread else -figure


def few_samples(drop_of: str, samples: int) -> list[str]:
    """Return a note, if what was measured on so many samples is coarse.

    Args:
      drop_of: what drops: `Yardstick.name`.
      samples: that it was measured on.
    """
    if drop_of not in (ACCURACY, AGREEMENT) or samples >= _FEW:
        return []
    return [f"note: one sample is a drop of {1 / samples:.3f}; more tell more"]
