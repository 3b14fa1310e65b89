import numpy as np
import pytest
from reference_models import build_autoencoder, build_ds_cnn, build_mobilenet_v1, build_resnet8
from structure.law import check_law, randomize

from edgeprune.models import import_keras

keras = import_keras()


@pytest.mark.parametrize(
    "build", [build_resnet8, build_ds_cnn, build_mobilenet_v1, build_autoencoder]
)
def test_the_law_holds_on_the_reference_models(build):
    model = build(keras)
    randomize(model)
    before = [np.asarray(weight) for weight in model.weights]
    _, smaller = check_law(model)
    assert smaller.count_params() < 0.9 * model.count_params()
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)  # the original is untouched
