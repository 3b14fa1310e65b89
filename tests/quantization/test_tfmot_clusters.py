"""CQAT and PCQAT on tf_keras: what TFMOT keeps, what the callback keeps, counted in the file."""

import logging

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from edgeprune import (
    InputError,
    PreserveClusters,
    PreserveSparsity,
    UnsupportedError,
    WeightClustering,
    load_model,
    models,
    quantize_aware,
    strip,
)
from edgeprune.quantization.tfmot_clusters import clusters_to_keep, kernels_kept

CLUSTERS = 3
rng = np.random.default_rng(3)
IMAGES = rng.normal(size=(64, 8, 8, 3)).astype("float32")


def cnn():
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(6, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv2D(6, 3, activation="relu", name="conv_2"),
            layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="out"),
        ],
        name="net",
    )


def clustered(sparse=(), per_channel=False):
    """A model with few values in every kernel, of the named layers half of them zero."""
    tf_keras.utils.set_random_seed(1)
    model = cnn()
    for kernel in models.kernels(model):
        if kernel.layer.name in sparse:
            weights = kernel.variable.numpy()
            kernel.variable.assign(weights * (rng.random(weights.shape) < 0.5))
    clustering = WeightClustering(CLUSTERS, per_channel=per_channel, include_depthwise=True)
    clustering.start(model, tf_keras.optimizers.Adam(), total_steps=1)  # which clusters at once
    clustering.finish()
    return model


def fit(aware, *callbacks):
    aware.compile(tf_keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    labels = np.random.default_rng(1).integers(0, 3, 64)
    aware.fit(IMAGES, labels, epochs=2, batch_size=16, verbose=0, callbacks=list(callbacks))
    return aware


def stored(file):
    """The kernels of a .tflite file as (weights of a channel, channels), by layer."""
    conv, conv_2 = (np.moveaxis(weights, 0, -1) for weights in file.weights("CONV_2D"))
    (depthwise,), (out,) = file.weights("DEPTHWISE_CONV_2D"), file.weights("FULLY_CONNECTED")
    named = {"conv": conv, "conv_2": conv_2, "depthwise": depthwise, "out": out.T}
    assert {weights.dtype.name for weights in named.values()} == {"int8"}
    return {name: weights.reshape(-1, weights.shape[-1]) for name, weights in named.items()}


def zeros_of(model):
    kernels = {kernel.layer.name: kernel.variable.numpy() for kernel in models.kernels(model)}
    kernels["depthwise"] = kernels["depthwise"].squeeze(-1)
    return {name: (w == 0).reshape(-1, w.shape[-1]) for name, w in kernels.items()}


def most_values(weights):
    return max(np.unique(channel[channel != 0]).size for channel in weights.T)


@pytest.mark.parametrize(
    "sparse",
    [
        pytest.param((), marks=pytest.mark.slow, id="CQAT"),
        pytest.param(("conv_2", "depthwise", "out"), id="PCQAT"),
    ],
)
def test_clusters_and_zeros_reach_the_file(sparse, to_int8, caplog):
    """The first kernel has no zeros: TFMOT by itself would then drop those of the others."""
    model = clustered(sparse)
    zeros = zeros_of(model)
    with caplog.at_level(logging.WARNING, "edgeprune"):
        aware = quantize_aware(model)
    assert "keeps the clusters of conv, conv_2, out; those of any others" in caplog.text
    callback = PreserveClusters()
    tensorflow = logging.getLogger("tensorflow")
    tensorflow.addHandler(caplog.handler)
    try:
        fit(aware, *([PreserveSparsity()] if sparse else []), callback)
        assert "Gradients do not exist" not in caplog.text  # their centroids have them
        tensorflow.warning("Gradients do not exist for variables %s", ["conv/kernel:0", "a:0"])
    finally:
        tensorflow.removeHandler(caplog.handler)
    assert "Gradients do not exist for variables ['conv/kernel:0', 'a:0']" in caplog.text
    assert [values.name for values in callback.report] == [
        "quant_depthwise/depthwise/depthwise_kernel"
    ]
    found = stored(to_int8(strip(aware), IMAGES))
    for name, weights in found.items():
        assert most_values(weights) <= CLUSTERS, name
        assert not weights[zeros[name]].any(), name
    assert max(map(most_values, found.values())) == CLUSTERS


@pytest.mark.slow
def test_without_the_callback_tfmot_keeps_the_kernels_that_it_is_said_to(to_int8):
    found = stored(to_int8(strip(fit(quantize_aware(clustered()))), IMAGES))
    counted = {name: most_values(weights) for name, weights in found.items()}
    assert counted.pop("depthwise") > CLUSTERS
    assert max(counted.values()) <= CLUSTERS


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_clusters_of_channels_are_kept_by_the_callback_alone(kept, to_int8):
    model = clustered(["conv_2"], per_channel=True)
    aware = quantize_aware(model)
    assert not kernels_kept(aware)
    fit(aware, *([PreserveSparsity(), PreserveClusters()] if kept else []))
    found = stored(to_int8(strip(aware), IMAGES))
    assert {most_values(weights) <= CLUSTERS for weights in found.values()} == {kept}


def test_strip_takes_the_latest_centroids_and_zeros():
    """TFMOT writes them into the kernel only as it computes the next step."""
    aware = fit(quantize_aware(clustered(["conv_2", "out"])))
    plain = strip(aware)
    aware(IMAGES[:1], training=True)
    for kernel in models.kernels(aware):
        if id(kernel.variable) in kernels_kept(aware):
            trained = kernel.variable.numpy()
            exact = plain.get_layer(kernel.layer.name).get_weights()[0]
            step = np.abs(trained).max() / 127
            assert np.abs(exact - trained).max() <= step / 2 * 1.001
            assert np.array_equal(exact[trained == 0], trained[trained == 0])


def test_kernels_trained_on_the_grid_without_clusters_are_not_taken_for_clustered():
    plain = strip(fit(quantize_aware(cnn())))
    assert not clusters_to_keep(plain)


def test_to_cluster_what_tfmot_keeps_is_refused():
    aware = quantize_aware(clustered())
    with pytest.raises(InputError, match=r"keeps the clusters of quant_conv/conv/kernel, .* alr"):
        WeightClustering(8).start(aware, tf_keras.optimizers.Adam(), total_steps=4)


def test_nothing_is_clustered():
    aware = quantize_aware(cnn())
    with pytest.raises(InputError, match=r"no kernel of model 'net' is clustered: quant_conv_2/c"):
        PreserveClusters().start(aware, tf_keras.optimizers.Adam())


def test_a_saved_aware_model_says_that_tfmot_cannot_load_it(tmp_path):
    aware = quantize_aware(clustered())
    aware.save(tmp_path / "m.h5")
    with pytest.raises(UnsupportedError, match=r"clusters it kept.*save what strip\(model\) ret"):
        load_model(tmp_path / "m.h5")
