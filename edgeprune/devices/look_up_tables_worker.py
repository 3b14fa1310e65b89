"""Store weights in look-up tables and compare: a process of its own, since native code may crash.

`python -m edgeprune.devices.look_up_tables_worker MODEL OUTPUT KERNELS SAMPLES SEED` prints JSON
objects, one a line; `edgeprune.devices.look_up_tables` starts it. KERNELS is a JSON list of
(subgraph, tensor, bits, axis or null).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.devices.tflm_worker import (
    Difference,
    RefusedError,
    allocations,
    invoke,
    lacking,
    operator_names,
    quanta,
    random_inputs,
    say,
    smallest_arena,
    start,
)
from edgeprune.export.micro import DECODE
from edgeprune.export.tflite import read


def compressed(content: bytes, kernels: Sequence[tuple[int, int, int, int | None]]) -> bytes:
    """Return the model with these kernels in look-up tables.

    Args:
      content: of the .tflite file.
      kernels: (subgraph, tensor, bits of an index, axis with a table for each of its indices or
        None for one table).
    """
    from tflite_micro.tensorflow.lite.micro.compression import compress, spec

    def method(bits: int, axis: int | None) -> Any:
        mode = spec.PerTensor() if axis is None else spec.PerChannel(axis)
        return spec.LookUpTableCompression(index_bitwidth=bits, mode=mode)

    return bytes(
        compress(
            content,
            [
                spec.Tensor(subgraph=graph, tensor=tensor, compression=[method(bits, axis)])
                for graph, tensor, bits, axis in kernels
            ],
        )
    )


def without_idle_scales(content: bytes, scratch: Path) -> bytes:
    """Drop the scales that indices keep of the weights which they stand for.

    The decoded tensor has them too: 12 bytes a channel that nothing reads (in tflite-micro
    0.dev20261023182759).

    Args:
      content: of a model with look-up tables.
      scratch: a file that may be written to.
    """
    import flatbuffers
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema
    from tflite_micro.tensorflow.lite.micro.tools import tflite_flatbuffer_align_wrapper

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for graph in model.subgraphs:
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].customCode == DECODE.encode():
                for index in operator.inputs[::2]:
                    graph.tensors[index].quantization = None
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    unaligned = scratch.with_name(f"{scratch.name}.unaligned")
    try:
        unaligned.write_bytes(bytes(builder.Output()))
        tflite_flatbuffer_align_wrapper.align_tflite_model(str(unaligned), str(scratch))
        return scratch.read_bytes()
    finally:
        unaligned.unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> None:
    """Say, a line at a time: stage, broken, failed, lacking, refused, arenas, comparison."""
    path, output, kernels, samples, seed = arguments
    model, target = read(Path(path)), Path(output)
    say("stage", "loading tflite-micro")
    try:
        from tflite_micro.tensorflow.lite.micro.compression import compressor
    except ImportError as error:
        say("broken", str(error).splitlines()[0])
        return
    say("stage", "storing the weights in look-up tables")
    try:
        content = without_idle_scales(compressed(model.content, json.loads(kernels)), target)
    except compressor.CompressionError as error:
        say("failed", str(error).splitlines()[0])
        return
    say("stage", "running both models")
    try:
        missing = lacking(operator_names(model))
        say("lacking", missing)
        if missing:
            return
        contents = (model.content, content)
        interpreters, arenas = [], []
        for one in contents:
            interpreter, enough = start(one)
            interpreters.append(interpreter)
            arenas.append(smallest_arena(one, allocations(interpreter)["total"], enough))
        say("arenas", arenas)
        graph = model.subgraphs[0]
        details = [interpreters[0].get_input_details(i) for i in range(len(graph.inputs))]
        difference, inputs = Difference(quanta(model)), random_inputs(details, int(seed))
        for _ in range(int(samples)):
            values = next(inputs)
            ours, theirs = (invoke(one, values, len(graph.outputs)) for one in interpreters)
            difference.add(ours, theirs)
        say("comparison", difference.record(int(samples)))
    except RefusedError as refusal:
        say("refused", str(refusal))


if __name__ == "__main__":
    main(sys.argv[1:])
