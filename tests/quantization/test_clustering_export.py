"""Few values to the end: in saved files, stripped models and .tflite files; TFMOT's models too."""

import keras
import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeprune import InputError, WeightClustering, convert, inspect, load_model, models, strip
from edgeprune.models import import_tfmot

rng = np.random.default_rng(5)


def distinct(weights, channel_axis=None):
    """Count values other than zero; along an axis, the most in any of its slices."""
    if channel_axis is None:
        columns = [np.ravel(weights)]
    else:
        columns = np.moveaxis(weights, channel_axis, 0).reshape(weights.shape[channel_axis], -1)
    return max(np.unique(column[column != 0]).size for column in columns)


def small(k, norm):
    layers = k.layers
    stack = [k.Input((8, 8, 3)), layers.Conv2D(6, 1, use_bias=not norm, name="pointwise")]
    stack += [layers.BatchNormalization(name="norm")] if norm else []
    stack += [
        layers.ReLU(name="relu"),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.Conv2D(8, 3, name="conv"),
        layers.Flatten(name="flat"),
        layers.Dense(5, name="head"),
    ]
    return k.Sequential(stack, name="small")


def trained(k, norm, **arguments):
    k.utils.set_random_seed(1)
    model = small(k, norm)
    pruned = model.get_layer("conv").kernel
    pruned.assign(np.where(rng.random(pruned.shape) < 0.5, pruned.numpy(), 0))
    model.compile("adam", "mse")
    clustering = WeightClustering(4, include_depthwise=True, **arguments)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    model.fit(x, rng.normal(size=(32, 5)), epochs=2, verbose=0, callbacks=[clustering])
    return model


def stored(path, quantize):
    """Read the weights out of a .tflite file by name of operator, as they are stored."""
    interpreter = Interpreter(
        model_path=str(path),
        experimental_preserve_all_tensors=True,
        # XNNPACK keeps to itself what it has made dense of weights that are stored sparsely.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    operators = interpreter._get_ops_details()
    halves = {one["outputs"][0]: one["inputs"][0] for one in operators if "DEQU" in one["op_name"]}
    found = {"CONV_2D": [], "DEPTHWISE_CONV_2D": [], "FULLY_CONNECTED": []}
    for operator in operators:
        if operator["op_name"] in found:
            index = operator["inputs"][1]
            weights = interpreter.get_tensor(halves[index] if quantize == "float16" else index)
            assert weights.dtype == ("float16" if quantize == "float16" else "float32")
            found[operator["op_name"]].append(weights)
    assert [len(weights) for weights in found.values()] == [2, 1, 1]
    return found


@pytest.mark.parametrize("quantize", ["none", "float16"])
@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_values_are_as_few_in_the_tflite_file(k, quantize, tmp_path):
    model = trained(k, norm=False)
    convert(model, tmp_path / "m.tflite", quantize=quantize)
    found = stored(tmp_path / "m.tflite", quantize)
    for weights in [one for several in found.values() for one in several]:
        assert distinct(weights) == 4
    conv = model.get_layer("conv").kernel.numpy()
    assert np.array_equal(found["CONV_2D"][1] == 0, np.moveaxis(conv, -1, 0) == 0)


def test_batch_normalization_leaves_as_few_in_each_channel(tmp_path):
    model = trained(keras, norm=True)
    convert(model, tmp_path / "m.tflite")
    (pointwise, conv), *_ = stored(tmp_path / "m.tflite", "none").values()
    assert distinct(pointwise, 0) <= 3 < distinct(pointwise)  # three weights a channel
    assert distinct(conv) == 4
    model = trained(keras, norm=True, per_channel=True, skip=["pointwise"])
    convert(model, tmp_path / "m.tflite")
    found = stored(tmp_path / "m.tflite", "none")
    assert distinct(found["CONV_2D"][1], 0) == 4
    assert distinct(found["DEPTHWISE_CONV_2D"][0], 3) == 4
    assert distinct(found["FULLY_CONNECTED"][0], 0) == 4


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_saved_loaded_trained_on_and_inspected(k, tmp_path):
    model = trained(k, norm=True)
    model.save(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    for kernel in models.kernels(loaded):
        assert distinct(kernel.variable.numpy()) == 4
    rows = {layer.name: layer for layer in inspect(tmp_path / "m.keras").layers}
    assert [rows[name].distinct_values for name in ("pointwise", "depthwise", "head")] == [4, 4, 4]
    assert rows["conv"].distinct_values == 5  # zero, too
    before = [kernel.variable.numpy() for kernel in models.kernels(loaded)]
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    clustering = WeightClustering(4, include_depthwise=True)
    loaded.fit(x, rng.normal(size=(32, 5)), epochs=1, verbose=0, callbacks=[clustering])
    for kernel, old in zip(models.kernels(loaded), before, strict=True):
        new = kernel.variable.numpy()
        assert distinct(new) == 4
        assert np.unique(np.stack([old.ravel(), new.ravel()]), axis=1).shape[1] <= 5  # as they were


def clustered_by_tfmot(model, number=4, **arguments):
    clustering = import_tfmot().clustering.keras
    linear = clustering.CentroidInitialization.LINEAR
    wrapped = clustering.cluster_weights(
        model, number_of_clusters=number, cluster_centroids_init=linear, **arguments
    )
    wrapped.compile("adam", "mse")
    return wrapped


def test_models_clustered_by_tfmot_are_stripped_and_converted(tmp_path):
    wrapped = clustered_by_tfmot(small(tf_keras, norm=False))
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    wrapped.fit(x, rng.normal(size=(32, 5)), epochs=2, verbose=0)
    plain = strip(wrapped)
    assert [layer.name for layer in plain.layers] == [
        "pointwise", "relu", "depthwise", "conv", "flat", "head",
    ]  # fmt: skip
    assert not [x for x in plain.layers if "tensorflow_model_optimization" in type(x).__module__]
    np.testing.assert_allclose(plain(x), wrapped(x), atol=1e-6)
    theirs = import_tfmot().clustering.keras.strip_clustering(wrapped)
    for own, their in zip(plain.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(own, their)
    counted = {kernel.name: distinct(kernel.variable.numpy()) for kernel in models.kernels(plain)}
    assert counted.pop("depthwise/depthwise_kernel") == 54  # which TFMOT leaves alone
    assert set(counted.values()) == {4}
    convert(wrapped, tmp_path / "m.tflite")
    found = stored(tmp_path / "m.tflite", "none")
    assert [distinct(weights) for weights in found["CONV_2D"] + found["FULLY_CONNECTED"]] == [4] * 3
    wrapped.fit(x, rng.normal(size=(32, 5)), epochs=1, verbose=0)  # it can be trained on


@pytest.mark.slow
def test_layers_with_several_clustered_weights(tmp_path):
    layers = tf_keras.layers
    inputs = layers.Input((6, 4))
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True, name="gru"), name="both")(inputs)
    x = layers.Dense(2, name="head")(layers.LSTM(5, name="memory")(x))
    recurrent = clustered_by_tfmot(tf_keras.Model(inputs, x))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    attention = clustered_by_tfmot(tf_keras.Model(inputs, layers.Flatten()(x)))
    recurrent.save(tmp_path / "m.h5")
    # Attention that it has wrapped TFMOT itself cannot load.
    samples = rng.normal(size=(16, 6, 4)).astype("float32")
    for model, count in ((recurrent, 7), (load_model(tmp_path / "m.h5"), 7), (attention, 4)):
        model.compile("adam", "mse")
        model.fit(samples, rng.normal(size=(16, *model.output_shape[1:])), verbose=0)
        plain = strip(model)
        expected = model.predict(samples, verbose=0)
        np.testing.assert_allclose(plain.predict(samples, verbose=0), expected, atol=1e-6)
        counted = [distinct(kernel.variable.numpy()) for kernel in models.kernels(plain)]
        assert counted == [4] * count


def test_pruned_then_clustered_by_tfmot_keeps_its_zeros():
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((8,)), layers.Dense(16), layers.Dense(2)])
    kernel = model.layers[0].kernel
    kernel.assign(np.where(rng.random(kernel.shape) < 0.5, kernel.numpy(), 0))
    zeros = kernel.numpy() == 0
    tfmot = import_tfmot().clustering.keras
    wrapped = cluster.cluster_weights(
        model, 5, tfmot.CentroidInitialization.LINEAR, preserve_sparsity=True
    )
    wrapped.compile("adam", "mse")
    x = rng.normal(size=(32, 8)).astype("float32")
    wrapped.fit(x, rng.normal(size=(32, 2)), epochs=2, verbose=0)
    weights = strip(wrapped).layers[0].kernel.numpy()
    assert not weights[zeros].any()
    assert distinct(weights) <= 4


def test_a_wrapped_model_is_to_be_stripped_before_it_is_clustered_here():
    layers = tf_keras.layers
    wrapped = clustered_by_tfmot(
        tf_keras.Sequential([layers.Input((8,)), layers.Dense(16), layers.Dense(2)])
    )
    with pytest.raises(InputError, match=r"clustered by TensorFlow Model Opt.*strip it first"):
        WeightClustering(4).start(wrapped)
