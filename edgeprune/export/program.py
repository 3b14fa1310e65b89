"""One view of everything that can be converted: named inputs and outputs, and a function.

Keras 3 models, tf_keras models and SavedModels differ in how they are called and in how they are
written with fixed shapes. The rest of the export sees only a `Program`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune import models
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.inputs import InputSpec, inputs_of, shape_text
from edgeprune.modelfiles import first_line

Array = npt.NDArray[Any]
Shapes = Sequence[int] | Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Program:
    """What is converted.

    Attributes:
      inputs: in the order in which `call` takes them; names are unique and plain.
      outputs: names, in the order in which `call` gives them, unique and plain.
      call: tensors in, tensors out, in inference mode.
      owner: what holds the variables: a Keras model, or a loaded SavedModel.
      fixed_batch: whether it was built for one batch size.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    call: Callable[[Sequence[Any]], list[Any]]
    owner: Any
    fixed_batch: bool = False

    def fixed(self, batch: int | str, shapes: Shapes | None) -> "Program":
        """Return the program with its free dimensions fixed.

        Args:
          batch: at least 1, or ``dynamic`` to leave it free.
          shapes: of one sample, without the batch: for the single input with free dimensions, or
            by input name.

        Raises:
          InputError: a free dimension is left, or a shape contradicts the model.
        """
        first = None if batch == "dynamic" else batch
        if not (first is None or (isinstance(first, int) and first >= 1)):
            raise InputError(f"batch must be a whole number from 1, or 'dynamic'; got {batch!r}")
        given = self._shapes_by_name(shapes)
        return replace(
            self, inputs=tuple(_fix(spec, first, given.get(spec.name)) for spec in self.inputs)
        )

    def _shapes_by_name(self, shapes: Shapes | None) -> dict[str, tuple[int, ...]]:
        if shapes is None:
            return {}
        if isinstance(shapes, Mapping):
            known = {spec.name for spec in self.inputs}
            if unknown := [name for name in shapes if name not in known]:
                raise InputError(
                    f"input shape given for '{unknown[0]}', but the model's inputs are "
                    f"{', '.join(sorted(known))}"
                )
            return {name: tuple(shape) for name, shape in shapes.items()}
        free = [spec.name for spec in self.inputs if None in spec.shape[1:]]
        if len(self.inputs) > 1 and len(free) != 1:
            raise InputError(
                f"one input shape given for {len(self.inputs)} inputs; give name=shape for each "
                f"of {', '.join(free or [spec.name for spec in self.inputs])}"
            )
        return {(free or [self.inputs[0].name])[0]: tuple(shapes)}

    def run(self, samples: Sequence[Array]) -> list[Array]:
        """Compute the outputs of a batch of any size, as float32 where they are half floats."""
        import tensorflow as tf

        tensors = [
            tf.cast(values, spec.dtype) for values, spec in zip(samples, self.inputs, strict=True)
        ]
        outputs = [np.asarray(output) for output in self.call(tensors)]
        half = ("float16", "bfloat16")
        return [out.astype(np.float32) if out.dtype.name in half else out for out in outputs]

    def save(self, folder: Path) -> None:
        """Write a SavedModel whose one signature has the shapes of `inputs`."""
        import tensorflow as tf

        signature = [tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in self.inputs]

        def serve(*tensors: Any) -> dict[str, Any]:
            # Identity: an output that is a variable or an input itself cannot be a signature's.
            return {
                name: tf.identity(tensor)
                for name, tensor in zip(self.outputs, self.call(tensors), strict=True)
            }

        function = tf.function(serve, input_signature=signature)
        concrete = function.get_concrete_function()
        module = tf.Module()
        # Only what the function reads: saving a whole Keras model, as `model.export` does, takes
        # longer than tracing it, and tf_keras adds a dozen traces of every layer.
        module.read = list(concrete.graph.variables)
        try:
            tf.saved_model.save(module, str(folder), signatures={"serving_default": concrete})
        except AssertionError:  # it reads something else too, such as a lookup table
            module.owner = self.owner
            tf.saved_model.save(module, str(folder), signatures={"serving_default": concrete})


def program_of(model: Any) -> Program:
    """View a plain Keras model of either flavour as a program.

    Raises:
      InputError: not a Keras model, or it has not been built.
    """
    keras = models.keras_of(model)
    nest: Any
    if keras.__name__ == "keras":
        nest, structure = keras.tree, getattr(model, "_inputs_struct", None)
    else:
        import tensorflow as tf

        nest, structure = tf.nest, getattr(model, "_nested_inputs", None)
    inputs = inputs_of(model)
    if structure is None:  # Sequential
        structure = model.inputs if len(inputs) > 1 else model.inputs[0]

    def call(tensors: Sequence[Any]) -> list[Any]:
        packed = nest.pack_sequence_as(structure, list(tensors))
        return list(nest.flatten(model(packed, training=False)))

    return Program(
        tuple(
            replace(spec, name=name)
            for spec, name in zip(inputs, _plain([spec.name for spec in inputs]), strict=True)
        ),
        tuple(_plain(_output_names(model, nest))),
        call,
        model,
        _has_fixed_batch(inputs),
    )


def _output_names(model: Any, nest: Any) -> list[str]:
    outputs = nest.flatten(model.outputs)
    names = list(getattr(model, "output_names", None) or [])
    return names if len(names) == len(outputs) else [f"output_{n}" for n in range(len(outputs))]


def saved_program(folder: Path) -> Program:
    """View the `serving_default` signature of a SavedModel directory as a program.

    Raises:
      InputError: not a whole SavedModel, or it has no such signature.
    """
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises whatever its readers run into
        raise InputError(
            f"{folder} is not a whole SavedModel ({first_line(error)}); export it again"
        ) from error
    signatures = dict(loaded.signatures)
    if "serving_default" not in signatures:
        found = ", ".join(signatures) or "none"
        raise InputError(
            f"{folder} has no signature 'serving_default' (found: {found}); export it with one"
        )
    signature = signatures["serving_default"]
    keywords = signature.structured_input_signature[1]
    taken = sorted(keywords)
    given = sorted(signature.structured_outputs)
    if unranked := [name for name in taken if keywords[name].shape.rank is None]:
        raise UnsupportedError(
            f"{folder}: input '{unranked[0]}' may have any number of dimensions; export it with "
            "a shape"
        )

    def call(tensors: Sequence[Any]) -> list[Any]:
        outputs = signature(**dict(zip(taken, tensors, strict=True)))
        return [outputs[name] for name in given]

    inputs = tuple(
        InputSpec(plain, tuple(keywords[name].shape), keywords[name].dtype.name)
        for name, plain in zip(taken, _plain(taken), strict=True)
    )
    return Program(inputs, tuple(_plain(given)), call, loaded, _has_fixed_batch(inputs))


def _fix(spec: InputSpec, batch: int | None, given: tuple[int, ...] | None) -> InputSpec:
    if spec.dtype == "string":
        raise UnsupportedError(
            f"input '{spec.name}' takes strings; convert the model without its text or lookup "
            "layers, and feed it their output"
        )
    if not spec.shape:
        return spec  # a scalar has no batch
    sample = spec.shape[1:]
    shape = sample if given is None else given
    fits = len(shape) == len(sample) and all(
        want in (None, got) for want, got in zip(sample, shape, strict=True)
    )
    if given is not None and not (fits and all(isinstance(n, int) and n >= 1 for n in given)):
        raise InputError(
            f"input shape {shape_text(given)} does not fit input '{spec.name}', whose samples "
            f"have shape {shape_text(sample)} without the batch"
        )
    if None in shape:
        raise InputError(
            f"input '{spec.name}' has samples of shape {shape_text(sample)} with free dimensions; "
            f"fix them with `input_shape={_example(spec, sample)}`"
        )
    first = spec.shape[0]
    if first is not None and batch not in (1, None, first):
        raise InputError(
            f"the model is built for batches of {first}, got batch {batch}; leave it out"
        )
    return replace(spec, shape=(batch if first is None else first, *shape))


def _example(spec: InputSpec, sample: Sequence[int | None]) -> str:
    sizes = ",".join(str(224 if size is None else size) for size in sample)
    return f"{spec.name}={sizes}"


def _plain(names: Sequence[str]) -> list[str]:
    """Make names unique and fit for a signature: letters, digits and underscores."""
    taken: dict[str, None] = {}
    for name in names:
        base = re.sub(r"\W", "_", name, flags=re.ASCII) or "tensor"
        candidate, count = base, 1
        while candidate in taken:
            count += 1
            candidate = f"{base}_{count}"
        taken[candidate] = None
    return list(taken)


def _has_fixed_batch(inputs: Sequence[InputSpec]) -> bool:
    return any(spec.shape and spec.shape[0] is not None for spec in inputs)
