"""Turn a Keras model into a verified .tflite file."""

import contextlib
import gzip
import hashlib
import importlib.metadata
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from edgeprune import __version__, models
from edgeprune.data import check_source, load_calibration, load_samples
from edgeprune.errors import ArgumentError, InputError
from edgeprune.export import auto, tflite
from edgeprune.export.artifact import Artifact, Verification, record_path
from edgeprune.export.candidates import Candidate
from edgeprune.export.conversion import Conversion
from edgeprune.export.encode import Sparse
from edgeprune.export.finite import in_words, not_finite
from edgeprune.export.float32 import in_float32
from edgeprune.export.keras_cleanup import cleaned, kept
from edgeprune.export.post_training import CALIBRATED, Quantize, modes_of
from edgeprune.export.program import Program, Shapes, program_of, saved_program
from edgeprune.export.strip import strip
from edgeprune.export.tflite_cleanup import check_options, clean_file, compare_files, is_tflite
from edgeprune.files import atomic_paths, check_target, sha256
from edgeprune.subclassed import with_inputs

Array = npt.NDArray[Any]

AUTO = "auto"


def convert(
    model: Any,
    output: str | os.PathLike[str],
    *,
    quantize: Quantize = "none",
    calibration: Any = None,
    max_drop: float | None = None,
    modes: Sequence[str] | None = None,
    batch: int | Literal["dynamic"] = 1,
    input_shape: Shapes | None = None,
    io: str = "float",
    sparse: Sparse = "auto",
    clean: bool = True,
    verify: bool = True,
    tolerance: float | None = None,
    allow_select_ops: bool = False,
    unsafe: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Strip a model, convert it, verify the result and write it with its record.

    Args:
      model: a .keras or .h5 file of either Keras flavour, a SavedModel directory, or a model in
        memory; quantize-aware and TFMOT-wrapped models are stripped first. A .tflite file only
        loses its dead channels, so that of the options it takes `verify` alone.
      output: the .tflite file to write. ``<output>.json`` beside it records how it was made. Both
        appear, or neither does, and files that were there before stay.
      quantize: ``none``, ``float16``, ``dynamic``, ``int8``, ``int16x8`` or ``int4`` (weights
        alone, those of depthwise and transposed convolutions as int8). Operators that have no
        integer kernel stay in float. A mapping gives each layer its mode, as
        ``{"conv1": "int8", "*": "int4"}`` does: by name, path or class name, with ``*`` and
        ``?``; the first that matches counts, ``*`` last; other layers stay in float.
        ``auto`` converts in every mode and keeps the smallest file within `max_drop`.
      calibration: samples of the inputs, which int8, int16x8 and auto need; see
        `edgeprune.data.load_calibration`. The verification runs on them too. Those of auto may
        have targets, and samples of their own to measure on; see `edgeprune.data.load_samples`.
      max_drop: of auto: how much worse than the Keras model the file may be, on samples that
        nothing was calibrated on: accuracy lost, or what `edgeprune.drop.Yardstick` says takes
        its place. None for 0.01.
      modes: of auto: those to choose among; None for all.
      batch: batch size to fix, or ``dynamic`` to leave it free, which most runtimes pay for.
      input_shape: free dimensions of a sample, without the batch; by input name if several. Of a
        subclassed model the shape that it was called on is known already.
      io: ``float``, or ``int8`` for an int8 model that takes and gives integers.
      sparse: sparse encoding of the weights: ``auto`` where it makes the file smaller and the
        interpreter computes the same, ``on`` or ``off``.
      clean: leave out the channels of a Keras 3 model, or of a .tflite file, that cannot change
        its output; see `edgeprune.remove_dead_channels`. Of an int8 file also those that only its
        integers show to be dead. The verification still runs against the model as it was given.
      verify: run the file beside the Keras model, and keep it only if they agree.
      tolerance: of the verification: largest root mean square error, in standard deviations of
        the outputs. It takes the place of the mode's own, which also lets mere rounding pass; see
        `edgeprune.export.verify`.
      allow_select_ops: let operators that TFLite lacks use TensorFlow's (Flex) kernels.
      unsafe: load model files that carry Python code, such as Lambda layers.
      progress: called with the name of each step as it begins.

    Raises:
      InputError: the model, the data, an argument or the output cannot be used.
      UnsupportedError: the model cannot be converted like this; what stands in the way is named.
      VerificationError: the file computes something else than the model, or cannot be run.
    """
    if not isinstance(output, str | os.PathLike):
        raise InputError(
            f"output must be the path of a .tflite file, got {type(output).__name__}; the order is "
            "edgeprune.convert(model, output)"
        )
    output = Path(output)
    if is_tflite(model):
        given = {
            "quantize": quantize != "none",
            "calibration": calibration is not None,
            "max_drop": max_drop is not None,
            "modes": modes is not None,
            "batch": batch != 1,
            "input_shape": input_shape is not None,
            "io": io != "float",
            "sparse": sparse != "auto",
            "clean=False": not clean,
            "tolerance": tolerance is not None,
            "allow_select_ops": allow_select_ops,
            "unsafe": unsafe,
        }
        check_options(Path(model), given)
    _check_auto(quantize, max_drop, modes)
    _check_arguments(model, output, quantize, calibration, io, sparse, tolerance)
    tell = progress or (lambda step: None)
    if is_tflite(model):
        return _converted_file(Path(model), output, verify, tell)
    tell("load")
    source, program = _program(model, unsafe, input_shape)
    _check_weights(program)
    program = program.fixed(batch, input_shape)
    columns, measured = None, None
    if quantize == AUTO:
        samples, aside = load_samples(calibration, program.inputs, integers_to_floats=False)
        calibrating, measured = auto.split(samples, aside)
        columns = calibrating.columns
    elif calibration is not None:
        columns = load_calibration(calibration, program.inputs)
    if clean:
        tell("clean up")
    smaller, dead = cleaned(program) if clean else (program, kept("kept, as asked"))
    removed = dead["channels_removed"]
    conversion = Conversion(
        program=program,
        smaller=smaller,
        channels_removed=removed,
        columns=columns,
        integer_io=io == "int8",
        sparse=sparse,
        clean=clean,
        verify=verify,
        tolerance=tolerance,
        allow_select_ops=allow_select_ops,
    )
    candidates: tuple[Candidate, ...] = ()
    if measured is not None:
        limit = auto.MAX_DROP if max_drop is None else max_drop
        quantize, converted, candidates = auto.choose(conversion, measured, limit, modes, tell)
    else:
        tell(f"convert without {removed:,} dead channels" if removed else "convert")
        converted = conversion.run(quantize, tell)
    if converted.dead_in_file is not None:
        dead |= {"file": converted.dead_in_file}
    made_by = {
        "source": source,
        "recipe": {
            "quantize": quantize if isinstance(quantize, str) else dict(quantize),
            "io": io,
            "batch": batch,
            "sparse": sparse,
            "clean": clean,
            "allow_select_ops": allow_select_ops,
        },
        "inputs": [asdict(spec) for spec in program.inputs],
        "outputs": list(program.outputs),
        "layers": _layer_names(program),
        "weights_encoding": converted.encoding,
        "dead_channels": dead,
        "calibration_samples": 0 if columns is None else len(columns[0]),
        "verified_on": _verified_on(verify, columns),
    }
    tell("write")
    name = quantize if isinstance(quantize, str) else "mixed"
    return _written(output, converted.content, name, converted.verification, made_by, candidates)


def _converted_file(
    path: Path, output: Path, verify: bool, tell: Callable[[str], None]
) -> Artifact:
    """Write a .tflite file without its dead channels."""
    tell("clean up")
    original, content, dead = clean_file(path)
    verification = None
    if verify:
        tell("verify")
        verification = compare_files(original, content)
    made_by = {
        "source": {"model": path.name, "sha256": sha256(path)},
        "recipe": {"clean": True},
        "dead_channels": dead,
        "verified_on": _verified_on(verify, None),
    }
    tell("write")
    return _written(output, content, "unchanged", verification, made_by)


def _written(
    output: Path,
    content: bytes,
    quantization: str,
    verification: Verification | None,
    made_by: dict[str, Any],
    candidates: tuple[Candidate, ...] = (),
) -> Artifact:
    model = tflite.read(content)
    dtypes: Counter[str] = Counter()
    for weight in model.weights():
        dtypes[weight.dtype] += weight.entries
    artifact = Artifact(
        path=output,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 9)),
        quantization=quantization,
        sparsity=model.sparsity,
        verification=verification,
        made_by=made_by | {"weight_dtypes": dict(dtypes.most_common()), "versions": _versions()},
        candidates=candidates,
    )
    # Only now, so that a process which is killed in the middle leaves nothing beside the output.
    with atomic_paths(output, record_path(output)) as (temporary, temporary_record):
        temporary.write_bytes(content)
        temporary_record.write_text(artifact.to_json(), encoding="utf-8")
    return artifact


def _check_arguments(
    model: Any,
    output: Path,
    quantize: Quantize,
    calibration: Any,
    io: str,
    sparse: str,
    tolerance: float | None,
) -> None:
    used = (AUTO,) if quantize == AUTO else modes_of(quantize)
    if io not in ("float", "int8"):
        raise ArgumentError(f"unknown `io={io!r}`; supported: float, int8")
    if io == "int8" and quantize != "int8":
        raise ArgumentError(
            f"`io='int8'` goes with `quantize='int8'`, got {_told(quantize)}; set one or the other"
        )
    if sparse not in ("auto", "on", "off"):
        raise ArgumentError(f"unknown `sparse={sparse!r}`; supported: auto, on, off")
    if tolerance is not None and not tolerance >= 0:
        raise ArgumentError(f"`tolerance` must be 0 or more, got {tolerance:g}")
    if output.suffix != ".tflite":
        raise ArgumentError(f"output {output} must end in .tflite")
    if isinstance(model, str | os.PathLike) and Path(model).resolve() == output.resolve():
        raise ArgumentError(f"output {output} is the model itself; name another file")
    needing = [mode for mode in used if mode in (*CALIBRATED, AUTO)]
    if needing and calibration is None:
        raise ArgumentError(
            f"{needing[0]} quantization needs calibration data, typical inputs that set the "
            "activations' ranges; give `calibration`: samples, or an .npz, .npy or module:function "
            "that has them"
        )
    check_source(calibration)
    check_target(output)
    check_target(record_path(output))


def _check_auto(quantize: Quantize, max_drop: float | None, modes: Sequence[str] | None) -> None:
    if quantize != AUTO and (max_drop is not None or modes is not None):
        name = "max_drop" if max_drop is not None else "modes"
        raise ArgumentError(
            f"`{name}` is for `quantize='auto'`, got {_told(quantize)}; leave it out"
        )
    if max_drop is not None and not 0 <= max_drop < 1:
        raise ArgumentError(f"`max_drop` is a fraction in [0, 1), got {max_drop:g}")
    if modes is not None:
        if isinstance(modes, str) or not modes:
            raise ArgumentError(f"`modes` is a list of one mode or more, got {modes!r}")
        for mode in modes:
            modes_of(mode)


def _told(quantize: Quantize) -> str:
    return f"`quantize={quantize!r}`" if isinstance(quantize, str) else "a mode for each layer"


def _program(
    model: Any, unsafe: bool, input_shape: Shapes | None
) -> tuple[dict[str, str], Program]:
    """Load and strip what is to be converted; also say where it came from."""
    if not isinstance(model, str | os.PathLike):
        models.keras_of(model)
        source = {"model": f"{type(model).__name__} '{model.name}' in memory"}
        return source, _stripped(model, input_shape)
    path = Path(model)
    if (path / "saved_model.pb").is_file():
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
        return {"model": path.name, "sha256": digest.hexdigest()}, saved_program(path)
    loaded = models.load_model(path, unsafe=unsafe, compile=False)
    return {"model": path.name, "sha256": sha256(path)}, _stripped(loaded, input_shape)


def _stripped(model: Any, input_shape: Shapes | None) -> Program:
    return program_of(with_inputs(in_float32(strip(model)), input_shape))


def _check_weights(program: Program) -> None:
    """Refuse NaN, which nothing computes with; infinities may be a mask's."""
    if not hasattr(program.owner, "layers"):
        return
    if broken := [layer for layer in not_finite(program.owner) if layer.nan]:
        raise InputError(
            f"{in_words(broken)}; train it with a smaller learning rate, or load a sound checkpoint"
        )


def _layer_names(program: Program) -> list[str]:
    """List a Keras model's layers, by which those who read the file can tell what is what."""
    if not hasattr(program.owner, "layers"):
        return []
    return list(dict.fromkeys(layer.name for _, layer in models.layers(program.owner)))


def _verified_on(verify: bool, columns: Sequence[Array] | None) -> str:
    if not verify:
        return "nothing, as asked"
    return "random inputs, seed 0" if columns is None else "calibration samples"


def _versions() -> dict[str, str]:
    versions = {"edgeprune": __version__}
    for package in ("tensorflow", "keras", "tf_keras", "ai-edge-litert", "numpy"):
        versions[package] = importlib.metadata.version(package)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["ai-edge-quantizer"] = importlib.metadata.version("ai-edge-quantizer")
    return versions
