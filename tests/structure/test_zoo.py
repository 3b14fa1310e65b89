"""Architectures of `keras.applications`; `tools/structure_zoo.py` runs them all."""

import importlib.util
from pathlib import Path

import pytest
from structure.law import random_removal

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph

keras = import_keras()
_SCRIPT = Path(__file__).parents[2] / "tools" / "structure_zoo.py"
_SPEC = importlib.util.spec_from_file_location("structure_zoo", _SCRIPT)
zoo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)


def refused(graph):
    ends = "is an output of the model"
    return [refusal for refusal in graph.refused if ends not in refusal.reason]


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small", "EfficientNetB0"])
def test_small_architectures_are_followed_and_hold_the_law(name):
    model = zoo.build(name)
    zoo.settle(model)
    graph = channel_graph(model)
    assert not refused(graph)
    removed = random_removal(graph, 0.25)
    assert len(removed) > 0.8 * len(graph.groups)
    run, _ = zoo.compared(graph, removed)
    assert run["law_held"], run


def test_every_architecture_that_keras_has_is_listed():
    names = zoo.architectures()
    assert len(names) >= 38
    assert {"ResNet50", "NASNetLarge", "ConvNeXtXLarge", "EfficientNetV2L"} < set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("MobileNetV3Small", "EfficientNetV2B0", "DenseNet121", "NASNetMobile", "ConvNeXtTiny"),
        *("InceptionV3", "Xception", "ResNet50V2"),
    ],
)
def test_a_sample_of_the_zoo_is_pruned_and_converted(name):
    result = zoo.outcome(name)
    assert not zoo.failures(result)
    assert result["fully_followed"], result["refused"]
    for run in result["runs"]:
        assert run["parameters_after"] < 0.8 * result["parameters"]
        assert run["macs_after"] < 0.9 * run["macs_before"]
