"""The devices that a run is for: they fill in its recipe, refuse models, and run the result."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.devices.choices import Choice, choose
from edgeprune.devices.measurement import Benchmark, Kind, ModelBenchmark
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.reachable import probe
from edgeprune.devices.refusals import check_file, check_operators, check_size, over_flash
from edgeprune.devices.run import benchmark, load_profiles
from edgeprune.devices.subject import Subject, subject_of
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.recipe import Recipe, StructureSpec
from edgeprune.training import Progress

Device = str | os.PathLike[str]
Devices = Device | Iterable[Device]

HERE = "local"


@dataclass(frozen=True)
class OnDevice:
    """What a run's models do on one device.

    Attributes:
      device: its name.
      kind: whether its figures are ``measured``, ``simulated`` or ``predicted``.
      fits: whether the run's result fits its memory, with or without look-up tables; None where
        that is not known.
      reason: why there are no figures; None where there are.
      results: one for each model, the run's result last, or before it with look-up tables; empty
        where there are no figures.
    """

    device: str
    kind: Kind
    fits: bool | None
    reason: str | None
    results: tuple[ModelBenchmark, ...]

    @property
    def verdict(self) -> str:
        """Whether the result fits, and what it takes of each memory; or why that is not known."""
        if self.reason is not None:
            return f"no figures: {self.reason}" + "; does not fit" * (self.fits is False)
        rows = ends(self.results)
        fits = [self.fits] if len(rows) == 1 else [row.details.get("fits") for row in rows]
        return "; ".join(filter(None, map(self._fit, rows, fits)))

    def _fit(self, row: ModelBenchmark, fits: bool | None) -> str:
        room = row.details.get("room") or {}
        taken = ", ".join(
            f"{memory} {entry['limit_bytes'] - entry['spare_bytes']:,} of "
            f"{entry['limit_bytes']:,} bytes ({self.kind})"
            for memory, entry in room.items()
            if entry["spare_bytes"] is not None
        )
        name = "the result with look-up tables" if has_tables(row) else "the result"
        words = {None: "", True: f"{name} fits", False: f"{name} does not fit"}[fits]
        return ": ".join(part for part in (words, taken) if part)


def has_tables(row: ModelBenchmark) -> bool:
    """Tell whether a row is of a file with look-up tables."""
    return row.model.endswith(".lut.tflite")


def ends(rows: Sequence[ModelBenchmark]) -> Sequence[ModelBenchmark]:
    """Return the rows of a run's result: with look-up tables two, the plain one first."""
    return rows[-2:] if rows and has_tables(rows[-1]) else rows[-1:]


class Targets:
    """The devices of one run, named before anything is trained.

    Attributes:
      profiles: of the devices.
    """

    def __init__(self, devices: Devices) -> None:
        """Load the devices' profiles.

        Raises:
          InputError: one is unknown or named twice, or its file is no profile.
        """
        given = [devices] if isinstance(devices, str | os.PathLike) else list(devices)
        self._names = [os.fspath(name) for name in given]
        self.profiles: list[DeviceProfile] = load_profiles(self._names) if given else []

    @property
    def identity(self) -> dict[str, str]:
        """What makes two runs the same, beside what was chosen of the recipe."""
        names = ", ".join(profile.name for profile in self.profiles)
        return {"devices": names} if names else {}

    def settle(
        self, model: Any, recipe: Recipe, stated: frozenset[str]
    ) -> tuple[Recipe, tuple[Choice, ...]]:
        """Fill in the recipe, and refuse before any training what the devices cannot run.

        Args:
          model: the user's Keras model; it is not changed.
          recipe: theirs.
          stated: paths of the keys that it states.

        Returns:
          The recipe to run, and the choices made in it; without devices, the recipe as it is.

        Raises:
          InputError: the recipe contradicts a device.
          UnsupportedError: a device lacks an operator, or cannot hold the model even as the
            recipe will leave it; or the model cannot be converted at all.
        """
        if not self.profiles:
            return recipe, ()
        subject = subject_of(model)
        check_operators(subject, self.profiles)
        recipe, choices = choose(model, subject, recipe, stated, self.profiles)
        check_size(subject, recipe, self.profiles, lambda: _smallest(model, recipe))
        return recipe, choices

    def check(self, file: Path, recipe: Recipe) -> None:
        """Refuse before any training what shows in the untrained model's file.

        Raises:
          UnsupportedError: a device does not run it, or cannot hold it.
        """
        check_file(file, recipe, self.profiles)

    def measure(
        self,
        files: Sequence[Path],
        tables: Path | None,
        here: Benchmark,
        quick: bool,
        progress: Progress | None,
    ) -> list[OnDevice]:
        """Run the models on every device that can be reached, one device after the other.

        Nothing that fails there fails the run.

        Args:
          files: .tflite files, the run's result last.
          tables: the result with look-up tables, if there is one: what TFLite Micro runs in the
            end.
          here: what they do on this machine.
          quick: little time for each.
          progress: called with (stage, fraction done, note).
        """
        tell = progress or (lambda stage, fraction, note: None)
        found = []
        reached = probe(self.profiles)
        for name, profile, answer in zip(self._names, self.profiles, reached, strict=True):
            stage = f"on {profile.name}"
            tell(stage, 0.0, "")
            runs = [*files, tables] if tables and profile.backend == "tflm" else list(files)
            reason = None if answer.reachable else answer.reason
            results: tuple[ModelBenchmark, ...] = ()
            if reason is None:
                try:
                    measured = here if name == HERE else benchmark(runs, device=name, quick=quick)
                    results = tuple(measured)
                except EdgepruneError as error:
                    reason = str(error)
            found.append(_on_device(profile, runs[-1], results, reason))
            tell(stage, 1.0, found[-1].verdict)
        return found


def _on_device(
    profile: DeviceProfile, result: Path, rows: tuple[ModelBenchmark, ...], reason: str | None
) -> OnDevice:
    known = [fit for row in ends(rows) if (fit := row.details.get("fits")) is not None]
    fits = any(known) if known else None
    if fits is None and over_flash(result, profile) is not None:
        fits = False
    return OnDevice(profile.name, profile.kind, fits, reason, rows)


def _smallest(model: Any, recipe: Recipe) -> Subject:
    """Return the model without all the channels that the recipe, or clean-up, may remove."""
    from edgeprune.export.keras_cleanup import cleaned
    from edgeprune.export.program import program_of
    from edgeprune.export.strip import strip
    from edgeprune.ways import plan_share

    spec = recipe.structure
    if spec is not None:
        plan = plan_share(model, model, model, _at_most(spec), 1.0, None, recipe.training.seed)
        model = plan.apply()
    program, _ = cleaned(program_of(strip(model)))
    return subject_of(program.owner)


def _at_most(spec: StructureSpec) -> StructureSpec:
    """Return what removes no fewer channels of any layer, whatever data say of them.

    With ranking ``group`` widths follow from the budget alone. Ranked over all layers, any of them
    may end at its limit.
    """
    from edgeprune.structure.request import PruningRequest

    if spec.ranking == "group":
        return replace(spec, criterion="l2")
    request = PruningRequest(pruning_ratio=spec.pruning_ratio or 0.0, max_ratio=spec.max_ratio)
    return replace(
        spec,
        criterion="l2",
        ranking="group",
        pruning_ratio=request.limits.max_ratio,
        target_macs=None,
        target_parameters=None,
    )


def to_records(found: Sequence[OnDevice]) -> list[dict[str, Any]]:
    """Return plain values, as JSON gives them, that `from_records` reads back."""
    return [json.loads(json.dumps(asdict(entry))) for entry in found]


def from_records(records: Any, where: str) -> tuple[OnDevice, ...]:
    """Build from plain values what `to_records` made them of.

    Raises:
      InputError: they are no such records; `where` begins the line.
    """
    try:
        return tuple(
            OnDevice(
                **{
                    **record,
                    "results": tuple(
                        ModelBenchmark.from_json(row, where) for row in record["results"]
                    ),
                }
            )
            for record in records
        )
    except (TypeError, KeyError) as error:
        raise InputError(f"{where} holds no results of devices; see --restart") from error
