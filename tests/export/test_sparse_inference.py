"""Parts that run sparse, and those that XNNPACK would compute wrongly: found in converted models.

What is expected here was seen in emulation; tools/bench/sparse_eligibility.py sees it again.
"""

import numpy as np
import pytest

from edgeprune.errors import UnsupportedError
from edgeprune.export.converter import to_tflite
from edgeprune.export.encode import encode_sparse
from edgeprune.export.inspect import inspect_tflite
from edgeprune.export.program import program_of
from edgeprune.export.sparse_inference import miscomputed, sparse_inference, sparse_parts
from edgeprune.export.tflite import read
from edgeprune.models import import_keras

keras = import_keras()
layers = keras.layers


def net(middle=lambda x: x, *, end=layers.GlobalAveragePooling2D, pad=1, branch=None, width=64):
    """A part from 'stem' to a mean, with something between its 1x1 convolutions."""
    inputs = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(pad)(inputs) if pad else inputs
    x = layers.Conv2D(8, 3, strides=2, padding="valid" if pad else "same", name="stem")(x)
    x = layers.Conv2D(width, 1, activation="relu", name="first")(x)
    outputs = [branch(x)] if branch else []
    x = middle(x)
    x = layers.Conv2D(2 * width, 1, activation="relu", name="second")(x)
    x = layers.Dense(4, name="head")(layers.Flatten()(end()(x)))
    return keras.Model(inputs, [x, *outputs])


def stored_sparse(model, sparsity=0.9):
    """Return what the converter's own pass makes of the model, which refuses nothing."""
    from tensorflow.lite.python.convert import mlir_sparsify

    return read(bytes(mlir_sparsify(dense_file(model, sparsity))))


def dense_file(model, sparsity):
    random = np.random.default_rng(0)
    for variable in model.weights:
        values = random.normal(size=variable.shape)
        if values.ndim > 1 and "depthwise" not in variable.path:
            flat = values.reshape(-1)
            flat[random.permutation(flat.size)[: round(sparsity * flat.size)]] = 0
        variable.assign(values)
    program = program_of(model).fixed(1, None)
    return to_tflite(program, "none", None, integer_io=False, allow_select_ops=False)


def padded(x):
    return layers.Conv2D(8, 1, name="padded")(layers.ZeroPadding2D(1)(x))


def padded_twice(x):
    return layers.DepthwiseConv2D(3, padding="same", name="twice")(layers.ZeroPadding2D(1)(x))


def plus_constant(x):
    return x + np.linspace(1, 2, x.shape[-1], dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"middle": layers.MaxPooling2D()}, "(MAX_POOL_2D) has no sparse form"),
        ({"middle": layers.Activation("tanh")}, "(TANH) has a sparse form only in runtimes newer"),
        ({"middle": plus_constant}, "(ADD) has a constant operand"),
        ({"middle": padded}, "is 1x1 with padding; it must have none"),
        ({"middle": padded_twice}, "pads (2,2): XNNPACK's sparse path needs padding 1"),
        ({"branch": layers.Conv2D(4, 1, name="branch")}, "is an output of the model"),
        ({"branch": layers.ReLU()}, "is an output of the model"),
    ],
)
def test_a_part_that_comes_to_another_end_would_be_computed_wrongly(changes, why):
    found = stored_sparse(net(**changes))
    verdict = sparse_inference(found)
    assert verdict.eligible is False
    assert "computed wrongly on Arm" in verdict.reasons[0]
    assert why in " ".join(verdict.reasons[1:])
    assert miscomputed(found).operator.name != "MEAN"
    with pytest.raises(UnsupportedError, match="computed wrongly on Arm; leave out `sparse='on'`"):
        encode_sparse(dense_file(net(**changes), 0.9), "on", lambda content: True)


def reduced(operation, axis, keepdims=False):
    """Reduce, to a vector unless dimensions are kept."""

    def end():
        def apply(x):
            y = getattr(keras.ops, operation)(x, axis=axis, keepdims=keepdims)
            return y if keepdims else layers.Flatten()(y)

        return apply

    return end


@pytest.mark.parametrize(
    ("end", "operator"),
    [
        # Values in another order; a file that does not start.
        (reduced("mean", 1), "MEAN"),
        (reduced("sum", 2), "SUM"),
        (reduced("mean", 3, keepdims=True), "MEAN"),
        (reduced("sum", (1, 2), keepdims=True), "SUM"),
    ],
)
def test_reductions_that_newer_runtimes_get_wrong(end, operator):
    found = stored_sparse(net(end=end))
    assert miscomputed(found).operator.name == operator
    verdict = sparse_inference(found)
    assert verdict.eligible is False
    assert "computed wrongly on Arm" in verdict.reasons[0]
    assert sparse_parts(found) == ()
    with pytest.raises(UnsupportedError, match="computed wrongly on Arm"):
        encode_sparse(dense_file(net(end=end), 0.9), "on", lambda content: True)


def test_a_sum_at_the_end_runs_sparse_in_newer_runtimes_alone():
    found = stored_sparse(net(end=reduced("sum", (1, 2))))
    assert miscomputed(found) is None
    verdict = sparse_inference(found)
    assert verdict.eligible is None
    assert "newer runtimes than tflite-runtime 2.14" in verdict.reasons[0]
    few = sparse_inference(stored_sparse(net(end=reduced("sum", (1, 2))), sparsity=0.5))
    assert few.eligible is False


@pytest.mark.parametrize(
    "changes",
    [
        # XNNPACK switches nothing: no start, no end, or a reader that it sees is in the way.
        {"pad": 0, "middle": layers.MaxPooling2D()},
        {"end": lambda: layers.AveragePooling2D(4), "middle": layers.MaxPooling2D()},
        {"middle": lambda x: layers.Add()([x, layers.MaxPooling2D(3, 1, padding="same")(x)])},
    ],
)
def test_where_nothing_is_switched_nothing_is_wrong(changes):
    found = stored_sparse(net(**changes))
    assert miscomputed(found) is None
    assert sparse_inference(found).eligible is False


def test_what_is_wrong_depends_on_the_zeros_only_until_they_are_supposed():
    found = stored_sparse(net(layers.MaxPooling2D()), sparsity=0.6)
    assert miscomputed(found) is None
    assert miscomputed(found, pruned=True).operator.name == "CONV_2D"
    assert "has no sparse form" in sparse_inference(found).reasons[0]


def test_a_part_that_keeps_every_rule():
    def excite(x):
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        return layers.Multiply()([x, layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(y)])

    found = stored_sparse(net(excite))
    (part,) = sparse_parts(found)
    assert part.blockers == ()
    assert {"MEAN", "LOGISTIC", "MUL"} <= {operator.name for operator in part.operators}
    assert miscomputed(found) is None
    assert sparse_inference(found).eligible is True


def test_little_sparse_work_is_no_promise():
    """Products: stem 8*8*8*27, first 8*8*8*8, second 8*8*8*16, head 16*4, which are 26,176.

    The 1x1 convolutions have 12,288 of them; the logistic's 8*8*8 values count 16 each, and their
    products with what they come from 4.
    """
    inspection = inspect_tflite(stored_sparse(net(width=8)))
    plain = inspection.sparse_inference
    assert (plain.eligible, plain.reasons[0][:12]) == (None, "only 47% of ")
    assert "skips zeros (64-bit Arm)  perhaps: only 47%" in str(inspection)
    swish = sparse_inference(stored_sparse(net(layers.Activation("silu"), width=8)))
    assert (swish.eligible, swish.reasons[0][:12]) == (None, "only 34% of ")


def test_a_dense_head_counts_in_newer_runtimes():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(1)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(64, 1)(x))
    model = keras.Model(inputs, layers.Dense(64, name="depthwise_no_zeros")(x))
    verdict = sparse_inference(stored_sparse(model))
    assert verdict.eligible is None
    # 0.9 * 512 of 512 + 4096 weights
    assert verdict.reasons == (
        "sparsity of the 1x1 convolutions and fully connected layers, which newer runtimes count "
        "too, is 0.100; it must be more than 2/3",
    )
