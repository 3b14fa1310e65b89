"""Hold what is said of sparse inference to the truth: MobileNets with each rule broken in turn.

    python tools/bench/sparse_eligibility.py [--only MODEL ...] [--results FILE] [--json]

Each model is stored twice, nine in ten of its weights zero: the zeros stored densely, and
sparse-encoded. Both take turns on emulated 64-bit Arm, whose arithmetic is itself quicker on
zeros, so that only the ratio of these two tells whether XNNPACK skips them. What is said of a
model, and what is to be true of it:

  eligible      at most 0.5 of the time
  not eligible  more than 0.85
  no promise    any ratio: little of its work runs sparse, or not in every runtime
  refused       edgeprune does not store it sparse, since XNNPACK may compute something else

In all but the last both files give the same outputs. The exit status is 1 if anything is not so.
"edgeprune doctor --device emulated-arm64" makes what this needs.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from edgeprune.devices.run import benchmark
from edgeprune.export.convert import convert
from edgeprune.export.native import captured_stderr
from edgeprune.export.sparse_inference import miscomputed, sparse_inference
from edgeprune.export.tflite import read
from edgeprune.models import import_keras

COMMAND = "python tools/bench/sparse_eligibility.py --results tools/results/sparse_eligibility.json"
SPARSITY = 0.9
SIZE = 64  # of the images
MOST_IF_ELIGIBLE = 0.5
LEAST_IF_NOT = 0.85
# Outputs are of order 1, and rounded otherwise than on this machine.
MOST_DIFFERENCE = 1e-3
SAID = {True: "eligible", False: "not eligible", None: "no promise"}
keras = import_keras()
layers = keras.layers

Part = Callable[[Any], Any]
ODD = ((0, 1), (0, 1))
# (stride, channels) of each block
BLOCKS = ((1, 32), (2, 64), (1, 64), (2, 128), (1, 128), (2, 256), (1, 256))
MIDDLE = 3  # the block before which a rule is broken


@dataclass(frozen=True)
class Net:
    """A small MobileNet, by default one that keeps every rule.

    Attributes:
      inverted: the blocks are MobileNetV2's: expand, filter, project, add.
      pad: of stride-2 layers: an explicit padding, or 'same'.
      stem: kernel, stride and dilation of the first convolution.
      images: channels of the input.
      before: what comes before the first convolution.
      activation: after every convolution that has one.
      depthwise: kernel.
      middle: what comes between two blocks.
      end: from the last feature maps to a vector.
      classes: of the layer at the end; 0 for none.
      inner_output: whether the feature maps in the middle are an output too.
      branch: from the feature maps in the middle to a second output.
      width: factor of the 1x1 convolutions' channels.
      sparsity: fraction of zeros in each kernel that is not depthwise.
      dense_head: whether the layer at the end has none.
      options: of `edgeprune.convert`.
    """

    inverted: bool = False
    pad: Any = 1
    stem: tuple[int, int, int] = (3, 2, 1)
    images: int = 3
    before: Part = field(default=lambda x: x)
    activation: Part = field(default=lambda x: layers.ReLU(6.0)(x))
    depthwise: int = 3
    middle: Part = field(default=lambda x: x)
    end: Part = field(default=lambda x: layers.GlobalAveragePooling2D()(x))
    classes: int = 10
    inner_output: bool = False
    branch: Part | None = None
    width: float = 1.0
    sparsity: float = SPARSITY
    dense_head: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """Build the model, with random weights of which most are zero."""
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SIZE, SIZE, self.images))
        kernel, stride, dilation = self.stem
        x = self._padded(self.before(inputs), kernel, stride, dilation)
        same = "same" if self.pad == "same" or stride == 1 else "valid"
        stem = layers.Conv2D(
            16, kernel, strides=stride, dilation_rate=dilation, padding=same, name="stem"
        )
        x = self.activation(stem(x))
        outputs = []
        for number, (stride, channels) in enumerate(BLOCKS):
            if number == MIDDLE:
                x = self.middle(x)
                outputs += [x] if self.inner_output else []
                outputs += [self.branch(x)] if self.branch else []
            x = self._block(x, stride, round(self.width * channels))
        x = self.end(x)
        x = layers.Dense(self.classes, name="head")(x) if self.classes else x
        model = keras.Model(inputs, [x, *outputs] if outputs else x)
        self._fill(model)
        return model

    def _block(self, x: Any, stride: int, channels: int) -> Any:
        given = x
        if self.inverted:
            x = self.activation(layers.Conv2D(4 * channels, 1)(x))
        x = self._padded(x, self.depthwise, stride)
        same = "same" if self.pad == "same" or stride == 1 else "valid"
        depthwise = layers.DepthwiseConv2D(self.depthwise, strides=stride, padding=same)
        x = self.activation(depthwise(x))
        x = layers.Conv2D(channels, 1)(x)
        if not self.inverted:
            return self.activation(x)
        return layers.Add()([given, x]) if given.shape == x.shape else x

    def _padded(self, x: Any, kernel: int, stride: int, dilation: int = 1) -> Any:
        if self.pad == "same" or stride == 1:
            return x
        amount = self.pad if self.pad != 1 else dilation * (kernel // 2)
        return layers.ZeroPadding2D(amount)(x)

    def _fill(self, model: Any) -> None:
        """Give the kernels weights that keep activations of order 1, and zeros."""
        random = np.random.default_rng(0)
        for layer in model.layers:
            if not isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense):
                continue
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            sparsity = (
                0.0
                if depthwise or (self.dense_head and layer is model.layers[-1])
                else self.sparsity
            )
            shape = layer.kernel.shape
            inputs = np.prod(shape[:2] if depthwise else shape[:-1]) * (1 - sparsity)
            kernel = random.normal(0, np.sqrt(2 / inputs), shape)
            kernel.reshape(-1)[random.permutation(kernel.size)[: round(sparsity * kernel.size)]] = 0
            layer.kernel.assign(kernel)


def squeeze_and_excite(x: Any) -> Any:
    channels = x.shape[-1]
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(channels // 4, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation="sigmoid")(y)])


def constant(x: Any) -> Any:
    """Add a constant to each channel."""
    return x + np.linspace(1, 2, x.shape[-1], dtype=np.float32)


def activation(name: str) -> Part:
    return lambda x: layers.Activation(name)(x)


NETS: dict[str, tuple[str, Net]] = {
    # Every rule is kept.
    "v1": ("MobileNetV1", Net()),
    "v2": ("MobileNetV2", Net(inverted=True)),
    "v1-5x5": ("depthwise layers of 5x5", Net(depthwise=5)),
    "v1-rescaled": (
        "a Rescaling before it",
        Net(before=lambda x: layers.Rescaling(1 / 127, -1)(x)),
    ),
    "v1-swish": ("swish for activation", Net(activation=activation("silu"))),
    "v1-hard-swish": ("hard swish", Net(activation=activation("hard_silu"))),
    "v1-leaky": ("leaky ReLU", Net(activation=lambda x: layers.LeakyReLU(0.1)(x))),
    "v1-excite": ("a squeeze-and-excite block", Net(middle=squeeze_and_excite)),
    "v1-upsampled": (
        "bilinear upsampling",
        Net(middle=lambda x: layers.UpSampling2D(interpolation="bilinear")(x)),
    ),
    "v1-headless": ("no layer after the mean", Net(classes=0)),
    "v1-float16": ("float16 weights", Net(options={"quantize": "float16"})),
    "v1-70": ("70 % of zeros", Net(sparsity=0.7)),
    # One is broken.
    "v1-same": ("stride-2 layers pad 'same'", Net(pad="same")),
    "v1-odd": ("stride-2 layers pad (0,1)", Net(pad=ODD)),
    "v2-same": ("stride-2 layers pad 'same'", Net(inverted=True, pad="same")),
    "v2-odd": ("stride-2 layers pad (0,1)", Net(inverted=True, pad=ODD)),
    "v1-odd-once": (
        "one stride-2 layer pads (0,1)",
        Net(
            middle=lambda x: layers.DepthwiseConv2D(3, strides=2)(layers.ZeroPadding2D(ODD)(x)),
        ),
    ),
    "v1-stem-stride": ("first convolution of stride 1", Net(stem=(3, 1, 1))),
    "v1-stem-5x5": ("first convolution of 5x5", Net(stem=(5, 2, 1))),
    "v1-stem-grey": ("images of 1 channel", Net(images=1)),
    "v1-3x3": (
        "a 3x3 convolution in the middle",
        Net(middle=lambda x: layers.Conv2D(x.shape[-1], 3, padding="same")(x)),
    ),
    "v1-7x7": (
        "a depthwise layer of 7x7",
        Net(middle=lambda x: layers.DepthwiseConv2D(7, padding="same")(x)),
    ),
    "v1-stride-3": (
        "a depthwise layer of stride 3",
        Net(middle=lambda x: layers.DepthwiseConv2D(3, strides=3)(layers.ZeroPadding2D(1)(x))),
    ),
    "v1-dilated": (
        "a dilated depthwise layer",
        Net(middle=lambda x: layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x)),
    ),
    "v1-multiplier": (
        "a depthwise layer of multiplier 2",
        Net(middle=lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)),
    ),
    "v1-unpadded": (
        "a depthwise layer without padding",
        Net(middle=lambda x: layers.DepthwiseConv2D(3)(x)),
    ),
    "v1-padded-twice": (
        "padding before a depthwise layer that pads 'same'",
        Net(
            middle=lambda x: layers.DepthwiseConv2D(3, padding="same")(layers.ZeroPadding2D(1)(x)),
        ),
    ),
    "v1-1x1-stride": (
        "a 1x1 convolution of stride 2",
        Net(middle=lambda x: layers.Conv2D(x.shape[-1], 1, strides=2)(x)),
    ),
    "v1-1x1-padded": (
        "a padded 1x1 convolution",
        Net(middle=lambda x: layers.Conv2D(x.shape[-1], 1)(layers.ZeroPadding2D(1)(x))),
    ),
    "v1-grouped": (
        "a grouped 1x1 convolution",
        Net(middle=lambda x: layers.Conv2D(x.shape[-1], 1, groups=2)(x)),
    ),
    "v1-max-pool": ("a MaxPooling2D", Net(middle=lambda x: layers.MaxPooling2D()(x))),
    "v1-max-pool-beside": (
        "a MaxPooling2D beside what goes on",
        Net(middle=lambda x: layers.Add()([x, layers.MaxPooling2D(3, 1, padding="same")(x)])),
    ),
    "v1-concatenated": (
        "a concatenation",
        Net(middle=lambda x: layers.Concatenate()([x, layers.ReLU()(x)])),
    ),
    "v1-prelu": ("a PReLU", Net(middle=lambda x: layers.PReLU(shared_axes=[1, 2])(x))),
    "v1-constant": ("a constant added", Net(middle=constant)),
    "v1-tanh": ("a tanh", Net(middle=activation("tanh"))),
    "v1-gelu": ("a GELU", Net(middle=activation("gelu"))),
    "v1-exp": ("an exponential", Net(middle=lambda x: keras.ops.exp(-x))),
    "v1-sqrt": ("a square root", Net(middle=lambda x: keras.ops.sqrt(x))),
    "v1-square": ("a square", Net(middle=lambda x: keras.ops.square(x))),
    "v1-dense": ("a Dense on feature maps", Net(middle=lambda x: layers.Dense(64)(x))),
    "v1-average": (
        "an AveragePooling2D of all in place of the mean",
        Net(end=lambda x: layers.Flatten()(layers.AveragePooling2D(4)(x))),
    ),
    "v1-flat": ("a Flatten in place of the mean", Net(end=lambda x: layers.Flatten()(x))),
    "v1-rows": (
        "a mean over rows only",
        Net(end=lambda x: layers.Flatten()(keras.ops.mean(x, axis=1))),
    ),
    "v1-sum": ("a sum in place of the mean", Net(end=lambda x: keras.ops.sum(x, axis=(1, 2)))),
    "v1-max": (
        "a maximum in place of the mean",
        Net(end=lambda x: layers.GlobalMaxPooling2D()(x)),
    ),
    "v1-inner-output": ("feature maps are an output too", Net(inner_output=True)),
    "v1-branch": (
        "a second output by a 1x1 convolution in the middle",
        Net(branch=lambda x: layers.Conv2D(8, 1)(x)),
    ),
    "v1-60": ("60 % of zeros", Net(sparsity=0.6)),
    "v1-dense-head": (
        "a big last layer without zeros",
        Net(classes=1000, dense_head=True),
    ),
    "v1-free-batch": ("a free batch", Net(options={"batch": "dynamic"})),
    # Little of the work is in 1x1 convolutions.
    "v1-narrow": ("half as many channels", Net(width=0.5)),
    "v1-narrower": ("a quarter as many channels", Net(width=0.25)),
    "v1-narrower-5x5": ("a quarter, and 5x5", Net(width=0.25, depthwise=5)),
}


def measure(name: str, seconds: float, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a model's two files and run both; return what was found, and where."""
    from tensorflow.lite.python.convert import mlir_sparsify

    what, net = NETS[name]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{stored}.tflite") for stored in ("dense", "sparse")]
        convert(net.build(), files[0], sparse="off", clean=False, verify=False, **net.options)
        # edgeprune's own encoding refuses those that would be computed wrongly.
        with captured_stderr():
            files[1].write_bytes(mlir_sparsify(files[0].read_bytes()))
        encoded = read(files[1])
        said = sparse_inference(encoded)
        refused = miscomputed(encoded) is not None
        _, sparse = benchmark(
            files, device=device, min_seconds=seconds, min_runs=7, loads=7, warmup_seconds=0
        )
    assert sparse.relative_latency is not None
    record = {
        "model": name,
        "what": what,
        "said": "refused" if refused else SAID[said.eligible],
        "ratio": round(sparse.relative_latency, 3),
        "interval": [round(end, 3) for end in sparse.relative_latency_interval or ()],
        "rounds": sparse.rounds,
        "outputs_differ_by": sparse.details["largest_difference"],
    }
    record["agrees"] = agrees(record)
    if not record["agrees"]:
        record["reasons"] = list(said.reasons)
    environment = {
        "device": sparse.device,
        "runtime": f"{sparse.runtime} {sparse.runtime_version}",
        "emulator": sparse.environment["emulator"],
        "cpu": sparse.environment["cpu"],
        "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }
    return record, environment


def agrees(record: dict[str, Any]) -> bool:
    """Whether what was said of a model turned out true."""
    if record["said"] == "refused":
        return True  # of what it might do in another runtime, this one need not show
    if record["outputs_differ_by"] > MOST_DIFFERENCE:
        return False
    if record["said"] == "eligible":
        return bool(record["ratio"] <= MOST_IF_ELIGIBLE)
    return bool(record["said"] == "no promise" or record["ratio"] > LEAST_IF_NOT)


def line(record: dict[str, Any]) -> str:
    """Tell of one model."""
    low, high = record["interval"]
    return (
        f"{record['model']:17} {record['said']:13} {record['ratio']:.3f} ({low:.3f} to {high:.3f})"
        f"  outputs differ by {record['outputs_differ_by']:.0e}"
        f"{'' if record['agrees'] else '  DISAGREES: ' + '; '.join(record['reasons'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=0.3, help="of inference for each file")
    parser.add_argument("--device", default="emulated-arm64", help="or a profile of your own")
    parser.add_argument("--results", type=Path, help="write them there, beside what it holds")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"models": []}
    if arguments.results is not None and arguments.results.exists():
        found = json.loads(arguments.results.read_text(encoding="utf-8"))
    for name in arguments.only:
        record, environment = measure(name, arguments.seconds, arguments.device)
        print(line(record), file=sys.stderr, flush=True)
        others = {other["model"]: other for other in found["models"]}
        others[name] = record
        models = [others[known] for known in NETS if known in others]
        found = {"command": COMMAND, "sparsity": SPARSITY, **environment, "models": models}
        if arguments.results is not None:
            arguments.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        keras.backend.clear_session()
    if arguments.json:
        print(json.dumps(found, indent=1))
    asked = [record for record in found["models"] if record["model"] in arguments.only]
    sys.exit(not all(record["agrees"] for record in asked))


if __name__ == "__main__":
    main()
