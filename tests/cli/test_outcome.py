"""What is printed of a run that ended."""

from pathlib import Path

from edgeprune.cli.outcome import print_outcome
from edgeprune.outcome import CompressionReport, Row


def kernel(name, clusters, distinct):
    return {"name": name, "size": 72, "zeros": 0, "clusters": clusters, "distinct": distinct}


def test_kernels_with_fewer_values_than_clusters_are_named(capsys):
    row = Row("int8", "model.tflite", "accuracy", 0.9, 1000, 900, 0.5)
    kernels = [kernel("conv/kernel", 16, 2), kernel("head/kernel", 16, 16)]
    stages = ({"stage": "clustering", "kernels": kernels}, {"stage": "export"})
    print_outcome(CompressionReport(Path("out"), (row,), stages), as_json=False)
    notes = [line for line in capsys.readouterr().out.splitlines() if "values" in line]
    assert notes == ["note: fewer distinct values than the 16 clusters: conv/kernel (2)"]


def test_values_of_a_channel_are_told_by_layer(capsys):
    row = Row("int8", "model.tflite", "accuracy", 0.9, 1000, 900, 0.0)
    stages = ({"stage": "export", "distinct_in_channel": {"conv": 5, "head": 17}},)
    print_outcome(CompressionReport(Path("out"), (row,), stages), as_json=False)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert note == (
        "note: model.tflite has at most so many values, zero among them, in an output channel: "
        "conv 5, head 17"
    )
