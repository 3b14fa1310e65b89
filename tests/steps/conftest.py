"""Small models and data, in both flavours of Keras."""

from small_models import cnn, compiled, data, k, zeros

__all__ = ["cnn", "compiled", "data", "k", "zeros"]
