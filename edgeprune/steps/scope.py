"""Choose which kernels of a model a callback acts on."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from edgeprune import models
from edgeprune.errors import InputError, listed

# A kernel name or pattern, a layer path or name, a layer class name, or a layer class.
Selector = str | type
T = TypeVar("T")


@dataclass(frozen=True)
class Scope(Generic[T]):
    """What to act on of a model.

    Attributes:
      verb: what is done to it, for messages: ``prune``.
      skip: kernels left alone; wins over `only`.
      only: if given, the only ones taken.
      layers: (selector, target) pairs; the first that matches gives a kernel its own target.
      include_embeddings: also take Embedding tables.
      include_depthwise: also take depthwise kernels.
    """

    verb: str
    skip: Sequence[Selector] = ()
    only: Sequence[Selector] = ()
    layers: Sequence[tuple[Selector, T]] = ()
    include_embeddings: bool = False
    include_depthwise: bool = False

    def select(self, model: Any) -> list[tuple[models.Kernel, T | None]]:
        """List the kernels to act on, each with its own target or None for that of all.

        Frozen weights are left out.

        Raises:
          InputError: a selector matches no kernel, or nothing is left.
        """
        kernels = models.kernels(model)
        holders = dict(models.layers(model))
        names = {kernel.name: _names(kernel, holders) for kernel in kernels}
        types = {kernel.name: _holders(kernel, holders) for kernel in kernels}

        def matches(kernel: models.Kernel, selector: Selector) -> bool:
            if isinstance(selector, type):
                return any(isinstance(layer, selector) for layer in types[kernel.name])
            return any(fnmatchcase(name, selector) for name in names[kernel.name])

        for argument, selectors in (
            ("skip", self.skip),
            ("only", self.only),
            ("layers", [selector for selector, _ in self.layers]),
        ):
            for selector in selectors:
                if not any(matches(kernel, selector) for kernel in kernels):
                    raise InputError(
                        f"{argument}={selector!r} matches no kernel of model '{model.name}'; "
                        f"its kernels are {listed([kernel.name for kernel in kernels])}"
                    )

        kinds = {"kernel"}
        kinds |= {"embedding"} if self.include_embeddings else set()
        kinds |= {"depthwise"} if self.include_depthwise else set()
        trainable = {id(variable) for variable in model.trainable_variables}
        chosen: list[tuple[models.Kernel, T | None]] = []
        for kernel in kernels:
            wanted = not self.only or any(matches(kernel, selector) for selector in self.only)
            if (
                kernel.kind in kinds
                and id(kernel.variable) in trainable
                and wanted
                and not any(matches(kernel, selector) for selector in self.skip)
            ):
                own = (target for selector, target in self.layers if matches(kernel, selector))
                chosen.append((kernel, next(own, None)))
        if not chosen:
            raise InputError(
                f"nothing to {self.verb} in model '{model.name}': of its {len(kernels)} kernels "
                "all are frozen, skipped, or of a kind that is left alone by default "
                "(embeddings, depthwise)"
            )
        return chosen


def several(selectors: Selector | Sequence[Selector]) -> Sequence[Selector]:
    """Return selectors as a sequence, where one alone may be given."""
    return (selectors,) if isinstance(selectors, str | type) else tuple(selectors)


def _holders(kernel: models.Kernel, holders: dict[str, Any]) -> list[Any]:
    """The layer that owns the kernel, and those around it."""
    parts = kernel.name.split("/")
    paths = ("/".join(parts[:end]) for end in range(1, len(parts)))
    return [kernel.layer, *(holders[path] for path in paths if path in holders)]


def _names(kernel: models.Kernel, holders: dict[str, Any]) -> set[str]:
    parts = kernel.name.split("/")
    paths = {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}
    classes = {type(layer).__name__ for layer in _holders(kernel, holders)}
    return paths | set(parts[:-1]) | classes
