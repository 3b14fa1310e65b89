"""A run's folder: what is finished there is on record, and nobody else's files are touched."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from edgeprune import __version__
from edgeprune.data import Dataset, load_training_data
from edgeprune.errors import InputError
from edgeprune.export.artifact import record_path
from edgeprune.files import atomic_path
from edgeprune.models import fingerprint, load_model
from edgeprune.recipe import Recipe

RUN_FILE = "run.json"


def opened(model: Any, data: Any, unsafe: bool, single: str) -> tuple[Any, Dataset]:
    """Return a run's model and data, loaded if need be and fitted to each other.

    Args:
      model: a model, or the path of one.
      data: a `Dataset`, or what `load_training_data` reads.
      unsafe: load a .keras file that holds Python code.
      single: why the model may have one output only.

    Raises:
      InputError: they cannot be used together, or the model has several outputs.
    """
    if isinstance(model, str | Path):
        model = load_model(model, unsafe=unsafe)
    if not isinstance(data, Dataset):
        data = load_training_data(data)
    if len(getattr(model, "outputs", None) or ()) > 1:
        raise InputError(f"the model has {len(model.outputs)} outputs; {single}")
    return model, data.for_model(model)


def identity_of(model: Any, data: Dataset, recipe: Recipe) -> dict[str, str]:
    """Return what makes two runs the same."""
    return {
        "edgeprune": __version__,
        "model": fingerprint(model),
        "data": data.fingerprint(),
        "recipe": recipe.to_toml(),
    }


class HasFile(Protocol):
    """A row of a report: one model of the run."""

    @property
    def file(self) -> str:
        """Its file in the run's folder."""


Row = TypeVar("Row", bound=HasFile)


class RunFolder(Generic[Row]):
    """The record of one run. Finished stages are in it, so that the same run can go on.

    Attributes:
      path: the folder; it exists.
      rows: of the report so far.
      stages: one mapping for each finished stage: ``stage`` is its name, ``file`` the model that
        it left, if any.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, str],
        row_type: type[Row],
        files: Sequence[str],
        others: Sequence[str] = (),
    ) -> None:
        """Describe a run; `open` looks at what is there.

        Args:
          path: the folder.
          identity: what makes two runs the same; its keys are used in words.
          row_type: a dataclass of plain values.
          files: the models that the run will write.
          others: what else it leaves.
        """
        self.path = path
        self.rows: list[Row] = []
        self.stages: list[dict[str, Any]] = []
        self._identity = identity
        self._row_type = row_type
        self._files = files
        self._others = others

    def open(self, restart: bool) -> None:
        """Take up what an earlier, identical run finished; refuse to touch another's files.

        Raises:
          InputError: the folder holds another run, or files that none left there.
        """
        record = self.path / RUN_FILE
        if not record.exists():
            if taken := [name for name in self._files if (self.path / name).exists()]:
                raise InputError(
                    f"{self.path} holds {taken[0]}, which no run of compress left there and "
                    "this one would replace; choose another folder"
                )
            self._write()
            return
        try:
            earlier = json.loads(record.read_text(encoding="utf-8"))
            identity, stages = dict(earlier["identity"]), list(earlier["stages"])
            rows = [row["file"] for row in earlier["rows"]]
            models = [*rows, *(stage["file"] for stage in stages if "file" in stage)]
            names = {Path(name).name for name in models}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(record) from error
        if restart or not stages:
            self._remove(names)
            self._write()
            return
        changed = [
            key
            for key in {**self._identity, **identity}
            if identity.get(key) != self._identity.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.path} holds another run: its {' and '.join(changed)} "
                f"{'differs' if len(changed) == 1 else 'differ'}; choose another folder, or "
                "`restart=True` to replace it"
            )
        try:
            self.rows = [self._row_type(**row) for row in earlier["rows"]]
        except TypeError as error:
            raise _damaged(record) from error
        self.stages = stages

    @property
    def finished(self) -> set[str]:
        """Names of the stages that need not run again."""
        return {stage["stage"] for stage in self.stages}

    def finish(self, stage: dict[str, Any], rows: list[Row]) -> None:
        """Put a finished stage on record, with all rows of the report as they now are."""
        self.stages.append(stage)
        self.rows = rows
        self._write()

    def _remove(self, names: set[str]) -> None:
        """Remove what an earlier run left, its record first: half a run is no run."""
        # Names alone: a record that was tampered with must not reach out of its folder.
        models = [self.path / name for name in sorted(names)]
        others = [self.path / name for name in (RUN_FILE, *self._others)]
        for path in [*others, *models, *map(record_path, models)]:
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        record = {
            "identity": self._identity,
            "stages": self.stages,
            "rows": [asdict(row) for row in self.rows],  # type: ignore[call-overload]  # dataclasses
        }
        with atomic_path(self.path / RUN_FILE) as path:
            path.write_text(json.dumps(record, indent=2), encoding="utf-8")


def _damaged(record: Path) -> InputError:
    return InputError(f"{record} is not a record of edgeprune; choose another folder, or delete it")
