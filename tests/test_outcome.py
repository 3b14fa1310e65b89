"""What a run says of the channels that converting its result left out."""

import json

import numpy as np
import pytest

from edgeprune.cli.outcome import print_outcome
from edgeprune.export.convert import convert
from edgeprune.models import import_keras
from edgeprune.outcome import CompressionReport, Row


@pytest.fixture
def report(tmp_path):
    """A report on a result of which 3 of 8 channels were dead."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(4)]
    )
    kernel, bias = (np.array(variable) for variable in model.layers[0].weights)
    kernel[:, :3], bias[:3] = 0, -1
    model.layers[0].set_weights([kernel, bias])
    artifact = convert(model, tmp_path / "model.tflite")
    row = Row("result", "model.tflite", "accuracy", 1.0, artifact.bytes, artifact.gzip_bytes, 0.0)
    return CompressionReport(tmp_path, (row,), ())


def test_dead_channels_are_told(report, capsys):
    assert report.dead_channels["channels_removed"] == 3
    assert json.loads(report.to_json())["dead_channels"] == report.dead_channels
    print_outcome(report, False)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert note == f"note: model.tflite: {report.dead_channels['summary'].splitlines()[0]}"


@pytest.mark.parametrize("record", [None, "", "[]", "{}", '{"made_by": {}}'])
def test_without_a_record_nothing_is_told(report, capsys, record):
    file = report.output / "model.tflite.json"
    file.unlink() if record is None else file.write_text(record)
    assert report.dead_channels == {}
    print_outcome(report, False)
    assert "note:" not in capsys.readouterr().out
