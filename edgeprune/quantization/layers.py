"""The two Keras 3 layers of a quantization-aware model. Both save and load with it."""

from typing import Any

import tensorflow as tf

from edgeprune import models
from edgeprune.quantization import grid

keras: Any = models.import_keras()

# Activations that TFLite computes inside the convolution, so no value lies between the two.
FUSED_ACTIVATIONS = frozenset({"linear", "relu", "relu6"})
# Activations whose int8 output range is fixed by the format (1/256 or 1/128 a step).
FIXED_ACTIVATIONS = frozenset({"softmax", "sigmoid", "hard_sigmoid", "tanh"})


def activation_name(layer: Any) -> str:
    """Return the name of a layer's activation; ``linear`` when it has none."""
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "linear"
    return str(getattr(activation, "__name__", type(activation).__name__)).lower()


@keras.saving.register_keras_serializable(package="edgeprune")
class ActivationRange(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
    """Rounds activations to int8, over a range that it learns by watching them in training.

    The range is asymmetric, widened to hold zero and nudged so that zero is an integer. It is
    the plain mean of the batches' ranges at first and a moving average later, so neither a start
    value nor a warm-up matters. Until it has seen one training batch it passes values unchanged.

    Args:
      momentum: weight of the past in the moving average, in [0, 1).

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1.
    """

    def __init__(self, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = momentum
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        def state(name: str) -> Any:
            return self.add_weight(
                name=name,
                shape=(),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="mean",
            )

        self.minimum = state("minimum")
        self.maximum = state("maximum")
        self.batches = state("batches")
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        values = tf.cast(inputs, tf.float32)
        if training:
            self._observe(values)
            rounded = self._round(values)
        else:
            rounded = tf.cond(
                tf.convert_to_tensor(self.batches) > 0,
                lambda: self._round(values),
                lambda: values,
            )
        return tf.cast(rounded, inputs.dtype)

    def _observe(self, values: Any) -> None:
        seen = tf.convert_to_tensor(self.batches)
        past = tf.minimum(seen / (seen + 1.0), self.momentum)
        detached = tf.stop_gradient(values)
        # Zero is in every int8 range: padding and pruned channels need it exactly.
        low = tf.minimum(tf.reduce_min(detached), 0.0)
        high = tf.maximum(tf.reduce_max(detached), 0.0)
        # An overflowing mixed-precision step is skipped by its optimizer; its range is no fact.
        ok = tf.math.is_finite(low) & tf.math.is_finite(high)
        for variable, found in ((self.minimum, low), (self.maximum, high)):
            old = tf.convert_to_tensor(variable)
            variable.assign(tf.where(ok, past * old + (1.0 - past) * found, old))
        self.batches.assign(tf.where(ok, seen + 1.0, seen))

    def _round(self, values: Any) -> Any:
        return keras.quantizers.fake_quant_with_min_max_vars(values, self.minimum, self.maximum)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}


@keras.saving.register_keras_serializable(package="edgeprune")
class GridLayer(keras.layers.Wrapper):  # type: ignore[misc]  # keras has no types
    """Runs a layer with its kernels rounded to the int8 grid; the float kernels are trained.

    The wrapped layer keeps its name, weights and dtype policy. Where its activation is one that
    TFLite does not fuse, the values before it are rounded too, as they are in the .tflite file.
    """

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        # Kernels must arrive here in full precision, whatever the model around computes in, so
        # this layer neither casts nor mixes; the wrapped layer then does both by its own policy.
        own = {"name": layer.name, "dtype": layer.variable_dtype}
        super().__init__(layer, autocast=False, **own | kwargs)
        self.supports_masking = layer.supports_masking
        self.activity_regularizer = layer.activity_regularizer
        name = activation_name(layer)
        self.before_activation = (
            None
            if name in FUSED_ACTIVATIONS
            else ActivationRange(name="before_activation", dtype=layer.dtype_policy)
        )

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        if self.before_activation is not None:
            self.before_activation.build(self.layer.compute_output_shape(input_shape))
        self.built = True

    def rounded(self) -> list[tuple[Any, Any]]:
        """Pair each kernel's variable with its value on the int8 grid, float32."""
        # Listed anew on each trace: an attribute would make Keras count the variables twice.
        return [
            (kernel.variable, grid.to_grid(kernel.variable.value, kernel.output_axes))
            for kernel in models.kernels(self)
        ]

    def call(self, inputs: Any) -> Any:
        outputs = self._product(inputs)
        if self.before_activation is not None:
            outputs = self.before_activation(outputs)
        activation = self.layer.activation
        return outputs if activation is None else activation(outputs)

    def _product(self, inputs: Any) -> Any:
        """Compute the layer up to its activation, bias included."""
        activation, self.layer.activation = self.layer.activation, None
        try:
            with keras.StatelessScope(self.rounded()):
                return self.layer(inputs)
        finally:
            self.layer.activation = activation

    def compute_output_spec(self, inputs: Any) -> Any:
        return self.layer.compute_output_spec(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.pop("activity_regularizer", None)  # the wrapped layer's config holds it
        return config


@keras.saving.register_keras_serializable(package="edgeprune")
class GridSeparableLayer(GridLayer):
    """A separable convolution, which is two operators on the device: rounded between them too."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.between = ActivationRange(name="between", dtype=layer.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self.between.build(None)

    def _product(self, inputs: Any) -> Any:
        layer = self.layer
        (_, depthwise), (_, pointwise) = self.rounded()
        outputs = keras.ops.depthwise_conv(
            tf.cast(inputs, layer.compute_dtype),
            tf.cast(depthwise, layer.compute_dtype),
            strides=layer.strides,
            padding=layer.padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )
        outputs = keras.ops.conv(
            self.between(outputs),
            tf.cast(pointwise, layer.compute_dtype),
            padding="valid",
            data_format=layer.data_format,
        )
        if layer.use_bias:
            bias = tf.cast(layer.bias.value, layer.compute_dtype)
            if layer.data_format == "channels_first":
                bias = tf.reshape(bias, (-1, *[1] * layer.rank))
            outputs = outputs + bias
        return outputs


def on_grid(layer: Any) -> GridLayer:
    """Wrap a layer of `placement.GRID_LAYERS`."""
    if type(layer).__name__.startswith("SeparableConv"):
        return GridSeparableLayer(layer)
    return GridLayer(layer)
