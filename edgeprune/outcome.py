"""What a run of the flow ends with: a row for each of its models, and what each device said."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune.devices.choices import Choice
from edgeprune.targets import OnDevice


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
      latency_ms: measured median on this machine; None for a Keras file, which no device runs.
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


@dataclass(frozen=True)
class CompressionReport:
    """Before and after, side by side.

    Attributes:
      output: the run's folder.
      rows: the baseline first, the result last.
      stages: what each stage took and left: ``stage seconds score_name score sparsity parameters
        macs file``; where channels left, ``groups refused``; where weights were clustered,
        ``kernels``: see `edgeprune.quantization.clustering.KernelClusters`.
      device_choices: what the devices named chose of the recipe; none without devices.
      devices: what the .tflite files do on each of them.
    """

    output: Path
    rows: tuple[Row, ...]
    stages: tuple[dict[str, Any], ...]
    device_choices: tuple[Choice, ...] = ()
    devices: tuple[OnDevice, ...] = ()

    def to_json(self) -> str:
        """Return the report as one JSON document."""
        choices = [asdict(choice) for choice in self.device_choices]
        document = {
            "output": str(self.output),
            "rows": [asdict(row) for row in self.rows],
            "stages": list(self.stages),
            "device_choices": {choice.pop("name"): choice for choice in choices},
            "devices": [asdict(entry) for entry in self.devices],
        }
        return json.dumps(document, indent=2)
