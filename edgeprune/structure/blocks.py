"""What can leave a model whole, and how callers name it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.structure.graph import Refusal

_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a model that keeps the shape of what it is given, and so can leave.

    Attributes:
      name: path of the call that ends it, through nested models: that of its last addition, or
        of the normalization behind it. A layer's second call is ``name#2``.
      entry: the `keras.KerasTensor` that stands for its output once it is gone.
      exit: the node of the graph whose one output is its output.
      operations: path -> layer or `keras.ops` operation inside it, nested models as a whole.
      attention: whether attention is computed in it.
    """

    name: str
    entry: Any
    exit: Any
    operations: dict[str, Any]
    attention: bool

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield (path, layer or operation) of all that is inside, nested layers included."""
        for path, operation in self.operations.items():
            yield path, operation
            if isinstance(operation, models.import_keras().layers.Layer):
                yield from ((f"{path}/{inner}", layer) for inner, layer in models.layers(operation))

    @property
    def label(self) -> str:
        """The path of its first layer that someone gave a name; its own where there is none."""
        from keras.src.utils.naming import to_snake_case

        for path, operation in self.operations.items():
            own = path.rpartition("/")[2].partition("#")[0]
            automatic = to_snake_case(type(operation).__name__)
            if not re.fullmatch(rf"{automatic}(_\d+)?", own):
                return path
        return self.name

    def answers_to(self, pattern: str) -> bool:
        """Tell whether a pattern is of its name, or of the path or name of a layer inside."""
        inside = (name for path, _ in self.layers() for name in (path, path.rpartition("/")[2]))
        return any(fnmatchcase(name, pattern) for name in (self.name, *inside))


@dataclass(frozen=True)
class Blocks:
    """What can leave a model, and which additions look like it but cannot.

    Attributes:
      found: in the order in which they are computed.
      refused: the addition and the reason.
    """

    found: tuple[Block, ...]
    refused: tuple[Refusal, ...]

    def named(self, names: Sequence[str], argument: str) -> set[int]:
        """Return the positions of the blocks that some names or patterns stand for.

        Raises:
          InputError: one of them matches no block.
        """
        chosen: set[int] = set()
        for pattern in [names] if isinstance(names, str) else names:
            matches = {at for at, block in enumerate(self.found) if block.answers_to(pattern)}
            if not matches:
                raise InputError(f"`{argument}={pattern!r}` {self._missed(pattern)}")
            chosen |= matches
        return chosen

    def _missed(self, pattern: str) -> str:
        for refusal in self.refused:
            if fnmatchcase(refusal.layer, pattern):
                return f"names '{refusal.layer}', which cannot leave: {refusal.reason}"
        known = [block.name for block in self.found]
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        listed = ", ".join(known[:_SHOWN]) or "none"
        return f"matches no block of the model; its blocks are {listed}{more}"
