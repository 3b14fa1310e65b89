"""Store the zeros of pruned weights as indices: TFLite's sparse encoding, where it pays."""

from collections.abc import Callable
from typing import Literal

from edgeprune.errors import UnsupportedError
from edgeprune.export import tflite
from edgeprune.export.native import captured_stderr
from edgeprune.export.sparse_inference import in_words, miscomputed

Sparse = Literal["auto", "on", "off"]

# Below this fraction of zeros the converter's pass leaves a weight dense (kMinSparsityLevel in
# tensorflow/compiler/mlir/lite/transforms/dense_to_sparse_pass.cc).
_MIN_SPARSITY = 0.3


def encode_sparse(
    content: bytes, sparse: Sparse, matches: Callable[[bytes], bool]
) -> tuple[bytes, str]:
    """Encode the weights of a .tflite file sparsely.

    Args:
      content: of a dense file.
      sparse: ``off`` leaves it as it is; ``auto`` encodes where that makes the file smaller and
        the interpreter computes the same; ``on`` encodes, or fails.
      matches: tells whether the interpreter loads an encoded file and computes the same.

    Returns:
      The content, and in words whether it is encoded, or why not: ``dense, as`` where there are
      too few zeros, ``dense:`` where encoding them was tried.

    Raises:
      UnsupportedError: ``on``, and nothing can be encoded so that the interpreter runs it.

    Source: `tf.lite.Optimize.EXPERIMENTAL_SPARSITY`, whose pass this runs on the finished file, so
    that no second conversion is needed to compare.
    """
    if sparse == "off":
        return content, "off"
    weights = tflite.read(content).weights()
    highest = max((weight.zeros() / max(weight.entries, 1) for weight in weights), default=0.0)
    if any(weight.dtype == "int4" for weight in weights):
        # The pass ends the whole process on them (TensorFlow 2.21).
        few, encoded, reason = True, None, "int4 weights have no sparse encoding"
    elif few := highest < _MIN_SPARSITY:
        encoded, reason = None, f"no weight has {_MIN_SPARSITY:.0%} zeros (highest: {highest:.1%})"
    else:
        encoded, reason = _encode(content, matches)
    if encoded is None:
        if sparse == "on":
            raise UnsupportedError(
                f"the weights cannot be encoded sparsely: {reason}; leave out `sparse='on'`"
            )
        return content, f"dense, as {reason}" if few else f"dense: {reason}"
    if sparse == "auto" and len(encoded) >= len(content):
        return content, f"dense: sparse encoding takes {len(encoded)} bytes, not {len(content)}"
    return encoded, "sparse"


def _encode(content: bytes, matches: Callable[[bytes], bool]) -> tuple[bytes | None, str]:
    from tensorflow.lite.python.convert import mlir_sparsify

    with captured_stderr():
        try:
            encoded = bytes(mlir_sparsify(content))
        except Exception as error:  # the pass raises whatever it runs into
            return None, f"TensorFlow's encoder failed ({type(error).__name__})"
    if all(weight.sparsity is None for weight in tflite.read(encoded).weights()):
        return None, "TensorFlow's encoder found no weight of a kind that it encodes"
    # Not on this machine perhaps, whose XNNPACK may have no sparse inference.
    model = tflite.read(encoded)
    if wrong := miscomputed(model):
        return None, in_words(model.subgraphs[0], wrong)
    if not matches(encoded):
        if any(weight.dtype == "int8" for weight in model.weights()):
            return None, "no runtime runs int8 weights sparse-encoded"
        return None, "the interpreter does not run the encoded file"
    return encoded, ""
