"""What a run of the flow ends with: a row for each of its models, and what each device said."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.devices.choices import Choice
from edgeprune.errors import UnsupportedError
from edgeprune.export.artifact import record_path
from edgeprune.targets import OnDevice

_log = logging.getLogger(__name__)

RESULT = "model.tflite"
TABLES = "model.lut.tflite"
"""The result with look-up tables."""


@dataclass(frozen=True)
class Row:
    """One model of the report: the baseline, a control or a result.

    Attributes:
      name: what it is, in words.
      file: its file in the run's folder.
      score_name: ``accuracy`` or ``mean squared error``, on the validation data.
      score: the figure.
      bytes: of the file.
      gzip_bytes: of the file after gzip, level 9.
      sparsity: fraction of zeros in a Keras model's kernels, or counted in the .tflite.
      latency_ms: measured median on this machine; None for a Keras file, which no device runs, and
        for one with look-up tables, which TFLite Micro alone runs.
      relative_latency: of the float baseline's, pair by pair in one interleaved run.
      parameters: of the Keras model that it is, or was converted from; counted, like `macs`, where
        the recipe changes them.
      macs: its multiply-accumulates; None also where they cannot be known.
    """

    name: str
    file: str
    score_name: str
    score: float
    bytes: int
    gzip_bytes: int
    sparsity: float
    latency_ms: float | None = None
    relative_latency: float | None = None
    parameters: int | None = None
    macs: int | None = None


def with_tables(folder: Path, row: Row) -> tuple[list[Row], dict[str, Any]]:
    """Write a run's result once more with look-up tables, and return its row and details.

    There is no row where no table saves bytes: no reason to throw away what was trained. The
    score is the same, since TFLite Micro computes the same of both, to the bit.

    Args:
      folder: of the run.
      row: of the plain file.
    """
    from edgeprune.devices.look_up_tables import look_up_tables

    try:
        found = look_up_tables(folder / row.file, folder / TABLES)
    except UnsupportedError as error:
        _log.warning("no file with look-up tables: %s", error)
        return [], {"look_up_tables": None}
    name, sizes = f"{row.name}, look-up tables", (found.bytes, found.gzip_bytes)
    return [replace(row, name=name, file=TABLES, bytes=sizes[0], gzip_bytes=sizes[1])], {
        "look_up_tables": {
            "file": TABLES,
            "arena_bytes": found.arena_bytes,
            "plain_arena_bytes": found.plain_arena_bytes,
        }
    }


def channel_values(path: Path) -> dict[str, int]:
    """Return how many values there are, zero among them, in a channel of each layer of a file.

    In the channel with most; of layers whose kernel has few. `inspect` counts them.

    Args:
      path: of the .tflite file.
    """
    from edgeprune.export.inspect import inspect

    layers = inspect(path).layers
    return {one.name: one.distinct_in_channel for one in layers if one.distinct_in_channel}


@dataclass(frozen=True)
class CompressionReport:
    """Before and after, side by side.

    Attributes:
      output: the run's folder.
      rows: the baseline first, the result last, or before it with look-up tables.
      stages: what each stage took and left: ``stage seconds score_name score sparsity parameters
        macs file``; where channels left, ``groups refused``; where weights were clustered,
        ``kernels``: see `edgeprune.quantization.clustering.KernelClusters`; where they trained on
        the int8 grid, ``kernel_values``: see `edgeprune.quantization.kernel_values.KernelValues`;
        where weights were clustered, ``distinct_in_channel`` of each layer of the .tflite, see
        `channel_values`; where asked for, ``look_up_tables``.
      device_choices: what the devices named chose of the recipe; none without devices.
      devices: what the .tflite files do on each of them.
    """

    output: Path
    rows: tuple[Row, ...]
    stages: tuple[dict[str, Any], ...]
    device_choices: tuple[Choice, ...] = ()
    devices: tuple[OnDevice, ...] = ()

    @property
    def result(self) -> Row:
        """The row of ``model.tflite``."""
        return next(row for row in self.rows if row.file == RESULT)

    @property
    def tables(self) -> Row | None:
        """The row of the same model with look-up tables, if there is one."""
        return next((row for row in self.rows if row.file == TABLES), None)

    @property
    def dead_channels(self) -> dict[str, Any]:
        """What converting the result left out since it cannot change the output.

        As `Artifact.dead_channels`, which the record beside the file keeps; empty without one.
        """
        try:
            record = json.loads(record_path(self.output / RESULT).read_text(encoding="utf-8"))
            found: dict[str, Any] = record["made_by"]["dead_channels"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return found

    def to_json(self) -> str:
        """Return the report as one JSON document."""
        choices = [asdict(choice) for choice in self.device_choices]
        document = {
            "output": str(self.output),
            "rows": [asdict(row) for row in self.rows],
            "stages": list(self.stages),
            "device_choices": {choice.pop("name"): choice for choice in choices},
            "devices": [asdict(entry) for entry in self.devices],
            "dead_channels": self.dead_channels,
        }
        return json.dumps(document, indent=2)
