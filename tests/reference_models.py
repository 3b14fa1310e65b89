"""The MLPerf Tiny reference models, which tests and tools share."""

from tasks.reference_models import (
    build_autoencoder,
    build_ds_cnn,
    build_mobilenet_v1,
    build_resnet8,
)

__all__ = ["build_autoencoder", "build_ds_cnn", "build_mobilenet_v1", "build_resnet8"]
