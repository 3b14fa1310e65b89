"""The model that advice is about: its .tflite form, and the Keras model it came from, if any."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.export.graph import Operator, TfliteModel
from edgeprune.export.layer_names import layer_of
from edgeprune.export.macs import tflite_macs
from edgeprune.export.tflite import read
from edgeprune.macs import Macs

Shapes = Sequence[int] | Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, ready to be counted.

    Attributes:
      name: of the file, or of the model in memory.
      tflite: what would run: the file, or the Keras model converted as it is, at batch 1.
      keras: the Keras model; None if a .tflite file was given.
      free_inputs: names of the inputs whose batch is left free.
      layers: names of the Keras layers.
      dead_channels: how many have left `tflite` and `keras`, since they cannot change the output.
    """

    name: str
    tflite: TfliteModel
    keras: Any
    free_inputs: tuple[str, ...]
    layers: frozenset[str]
    dead_channels: int = 0

    @property
    def bytes(self) -> int:
        """Of the .tflite file."""
        return len(self.tflite.content)

    @property
    def macs(self) -> Macs:
        """By position in the main graph."""
        return tflite_macs(self.tflite)

    def layer(self, operator: Operator) -> str:
        """Name the layer that an operator of the main graph computes."""
        return layer_of(self.tflite.subgraphs[0], operator, self.layers)


def subject_of(
    model: Any, *, input_shape: Shapes | None = None, unsafe: bool = False, clean: bool = False
) -> Subject:
    """Read a .tflite file, or load a Keras model and convert it in memory.

    Args:
      model: a .tflite file (no TensorFlow is loaded for it), a .keras or HDF5 file, or a model
        in memory.
      input_shape: free dimensions of a Keras model's sample, without the batch; by input name if
        there are several. A .tflite file has none.
      unsafe: load a .keras file that carries Python code.
      clean: leave out a Keras model's dead channels, as `edgeprune.convert` does. A .tflite file
        is what it is.

    Raises:
      InputError: no such file, not a whole model, or free dimensions beside the batch.
      UnsupportedError: the model cannot be converted.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if not path.exists():
            raise InputError(
                f"model file {path} does not exist; supported: .tflite files, and .keras and .h5 "
                "files of Keras 3 or tf_keras"
            )
        if path.suffix.lower() == ".tflite":
            return _of_file(path)
        from edgeprune.models import load_model

        loaded = load_model(path, unsafe=unsafe, compile=False)
        return _of_keras(loaded, path.name, input_shape, clean)
    from edgeprune.models import keras_of

    keras_of(model)
    return _of_keras(model, model.name, input_shape, clean)


def _of_file(path: Path) -> Subject:
    model = read(path)
    graph = model.subgraphs[0]
    free = tuple(
        graph.tensors[index].name
        for index in graph.inputs
        if graph.tensors[index].signature[:1] == (-1,)
    )
    return Subject(path.name, model, None, free, frozenset())


def _of_keras(model: Any, name: str, input_shape: Shapes | None, clean: bool) -> Subject:
    from edgeprune.export.converter import to_tflite
    from edgeprune.export.float32 import in_float32
    from edgeprune.export.keras_cleanup import cleaned
    from edgeprune.export.program import program_of
    from edgeprune.export.strip import strip
    from edgeprune.models import layers
    from edgeprune.subclassed import with_inputs

    plain = strip(model)
    names = frozenset(layer.name for _, layer in layers(plain))
    program = program_of(with_inputs(in_float32(plain), input_shape))
    removed = 0
    if clean:
        program, said = cleaned(program)
        removed = said["channels_removed"]
        plain = program.owner if removed else plain
    # What TFLite lacks shows as an operator of TensorFlow's, and is named as such.
    content = to_tflite(
        program.fixed(1, input_shape), "none", None, integer_io=False, allow_select_ops=True
    )
    free = tuple(spec.name for spec in program.inputs if spec.shape and spec.shape[0] is None)
    return Subject(name, read(content), plain, free, names, removed)
