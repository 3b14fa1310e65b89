"""Size up packed files against gzip, xz, zstd and brotli, and the coders with each other.

    python tools/bench/pack_size.py [--model NAME...] [--quick] [--results FILE] [--json]

The four MLPerf Tiny models, converted to float32 and int8, at 0, 50, 80 and 90 % zeros by
magnitude in each kernel, and each with as many values as the training left and with 16 values a
kernel written into the file; at 0 and 80 % also with 16 values a kernel clustered before
conversion, which folds a factor into each channel, or puts it on a grid of its own. Weights are
trained, shortly: ResNet-8 on glyphs of 32x32, DS-CNN on spoken words, MobileNetV1 on glyphs
enlarged to 96x96, the autoencoder on glyphs' first 640 pixels.

Each row: the packed file and what the others make of the same file, at their best (gzip -9, xz -9e,
zstd -19, brotli -q 11); `payload_ratio`, what the kernels take packed by their order-0 entropy plus
each distinct value once (`edgeprune.export.sizes.entropy_bytes`), and whether that is within 1.02
with a byte more for each value's count, as any table has it; and how fast the packed file and xz's
are unpacked, in MB of output a second of one core's time, best of several.
"""

import argparse
import gzip
import heapq
import json
import lzma
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import brotli
import constriction
import numpy as np
import zstandard
from tasks import (
    build_autoencoder,
    build_ds_cnn,
    build_mobilenet_v1,
    build_resnet8,
    glyphs,
    keywords,
    train,
)

from edgeprune.export.convert import convert
from edgeprune.export.packing.arrays import find_arrays
from edgeprune.export.packing.coder import Encoder
from edgeprune.export.packing.container import HEADER_BYTES, read_header, write
from edgeprune.export.packing.container import read as unpacked
from edgeprune.export.sizes import entropy_bytes, histogram
from edgeprune.export.tflite import read
from edgeprune.models import import_keras, kernels

RESULTS = Path(__file__).resolve().parents[1] / "results" / "pack_size.json"
MODELS = ("resnet8", "ds_cnn", "mobilenet_v1", "autoencoder")
SPARSITIES = (0.0, 0.5, 0.8, 0.9)
FOLDED = (0.0, 0.8)  # at which models are clustered before conversion too
CLUSTERS = 16
CLUSTERED = ("no", "before conversion", "in the file")
MODES = ("none", "int8")
PEERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, 9, mtime=0),
    "xz": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
    "zstd": lambda content: zstandard.ZstdCompressor(level=19).compress(content),
    "brotli": lambda content: brotli.compress(content, quality=11),
}
LIMIT = 1.02


def enlarged(task: Any) -> Any:
    """Make images of 96x96 of those of 32x32."""
    splits = ("x_train", "x_val", "x_test")
    return replace(
        task, **{name: getattr(task, name).repeat(3, axis=1).repeat(3, axis=2) for name in splits}
    )


def trained(name: str, quick: bool) -> tuple[Any, str]:
    """Return a model, and in words what it was trained on."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    small = {"n_val": 60, "n_test": 60 if quick else 600}
    if name == "resnet8":
        model, task = build_resnet8(), glyphs(32, n_train=200 if quick else 6000, **small)
    elif name == "ds_cnn":
        model, task = build_ds_cnn(), keywords(n_train=1800, **small)
    elif name == "mobilenet_v1":
        model, task = build_mobilenet_v1(), enlarged(glyphs(32, "01", n_train=1500, **small))
    else:
        pixels = glyphs(n_train=6000, **small).x_train.reshape(6000, -1)[:, :640]
        model = build_autoencoder()
        model.compile("adam", loss="mse")
        model.fit(pixels, pixels, epochs=6, verbose=0)
        return model, "6 epochs of 6000 glyphs"
    epochs = 1 if quick else 2
    score = train(model, task, epochs=epochs)
    return model, f"{epochs} epochs of {len(task.y_train)} {task.name}, accuracy {score:.3f}"


def pruned(weight: np.ndarray, sparsity: float) -> np.ndarray:
    order = np.argsort(np.abs(weight), axis=None, kind="stable")
    found = weight.copy()
    found.reshape(-1)[order[: round(sparsity * weight.size)]] = 0
    return found


def clustered(weight: np.ndarray) -> np.ndarray:
    """Give a kernel 16 values, zero among them if it has zeros: k-means from quantiles."""
    given = weight[weight != 0].astype(np.float64)
    count = CLUSTERS - bool(given.size < weight.size)
    if given.size <= count:
        return weight
    centres = np.unique(np.quantile(given, (np.arange(count) + 0.5) / count))
    for _ in range(20):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, given)
        sizes = np.bincount(nearest, minlength=centres.size)
        sums = np.bincount(nearest, given, minlength=centres.size)
        centres = np.sort(np.where(sizes > 0, sums / np.maximum(sizes, 1), centres))
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, given)
    found = weight.copy()
    values = centres[nearest]
    found[weight != 0] = np.rint(values) if weight.dtype.kind == "i" else values
    return found


def cluster_file(content: bytes) -> bytes:
    """Write 16 values for each kernel into a .tflite file."""
    written = bytearray(content)
    base = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    for tensor in read(content).weights():
        values = tensor.values()
        # `read` keeps the very bytes it is given, so constants are views into `content`.
        start = tensor.data.__array_interface__["data"][0] - base
        written[start : start + values.nbytes] = clustered(values).tobytes()
    return bytes(written)


def files(name: str, quick: bool) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield what each file is, and the file."""
    model, training = trained(name, quick)
    weights = model.get_weights()
    samples = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype(np.float32)
    for sparsity in SPARSITIES[::2] if quick else SPARSITIES:
        for clusters in CLUSTERED[:2] if sparsity in FOLDED else CLUSTERED[:1]:
            model.set_weights(weights)
            for kernel in kernels(model):
                weight = pruned(kernel.variable.numpy(), sparsity)
                kernel.variable.assign(weight if clusters == "no" else clustered(weight))
            for mode in MODES:
                content = converted(model, mode, samples)
                about = {
                    "model": name,
                    "training": training,
                    "quantize": mode,
                    "sparsity": sparsity,
                    "clustered": clusters,
                }
                yield about, content
                if clusters == "no":
                    yield {**about, "clustered": CLUSTERED[2]}, cluster_file(content)


def converted(model: Any, mode: str, samples: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        convert(
            model,
            path,
            quantize=mode,
            calibration=samples if mode == "int8" else None,
            sparse="off",
            verify=False,
            clean=False,
        )
        return path.read_bytes()


def measure(content: bytes, seconds: float) -> tuple[dict[str, Any], Encoder]:
    """Return a row of figures, and the encoder that coded the file."""
    model = read(content)
    spans = find_arrays(model)
    packed = write(content, spans)
    header = read_header(packed.content[:HEADER_BYTES])
    if unpacked(packed.content, header) != content:
        raise SystemExit("a file did not come back as it was")
    others = {name: compress(content) for name, compress in PEERS.items()}
    counts_bytes = 0
    entropy, starts = 0.0, {span.start for span in spans if not span.shared}
    payload = packed.weight_bits / 8
    base = np.frombuffer(model.content, np.uint8).__array_interface__["data"][0]
    for tensor in model.weights():
        counts = histogram(tensor.stored(), 0)
        entropy += entropy_bytes(counts, tensor.data.nbytes)
        counts_bytes += counts.size
        if tensor.data.__array_interface__["data"][0] - base not in starts:
            payload += tensor.data.nbytes  # too small for a table of its own
    smallest = min(map(len, others.values()))
    row = {
        "bytes": len(content),
        "packed_bytes": len(packed.content),
        **{f"{name}_bytes": len(compressed) for name, compressed in others.items()},
        "ratio": len(packed.content) / smallest,
        "weights": packed.weights,
        "bits_per_weight": packed.weight_bits / packed.weights,
        "kernel_entropy_bytes": entropy,
        "kernel_packed_bytes": payload,
        "payload_ratio": payload / entropy,
        "within_limit": payload <= LIMIT * (entropy + counts_bytes),
        "unpack_mb_s": speed(lambda: unpacked(packed.content, header), len(content), seconds),
        "xz_unpack_mb_s": speed(lambda: lzma.decompress(others["xz"]), len(content), seconds / 4),
    }
    return row, packed.encoder


def speed(action: Callable[[], object], size: int, seconds: float) -> float:
    """Return megabytes of output a second of one core, the best of what fits the time."""
    best, end = float("inf"), time.thread_time() + seconds
    while time.thread_time() < end:
        start = time.thread_time()
        action()
        best = min(best, time.thread_time() - start)
    return size / 1e6 / best


def compare_coders(encoders: list[Encoder], seconds: float) -> dict[str, Any]:
    """Code the same symbols by ANS, range coding and Huffman codes, with the same tables."""
    model_of = constriction.stream.model
    steps = [
        (
            model_of.Uniform(weights)
            if isinstance(weights, int)
            else model_of.Categorical(weights, perfect=False),
            huffman_lengths(weights),
            values.astype(np.int32),
        )
        for encoder in encoders
        for weights, values in encoder.steps
    ]
    ans = constriction.stream.stack.AnsCoder()
    for model, _, values in reversed(steps):
        ans.encode_reverse(values, model)
    ranged = constriction.stream.queue.RangeEncoder()
    for model, _, values in steps:
        ranged.encode(values, model)
    ans_words, range_words = ans.get_compressed(), ranged.get_compressed()
    huffman = sum(
        int(np.bincount(values, minlength=lengths.size) @ lengths) for _, lengths, values in steps
    )

    def decode(decoder: Any) -> None:
        for model, _, values in steps:
            decoder.decode(model, values.size)

    symbols = sum(values.size for *_, values in steps)
    by_ans = lambda: decode(constriction.stream.stack.AnsCoder(ans_words))  # noqa: E731
    by_range = lambda: decode(constriction.stream.queue.RangeDecoder(range_words))  # noqa: E731
    return {
        "symbols": symbols,
        "ans_bytes": ans_words.nbytes,
        "range_bytes": range_words.nbytes,
        "huffman_bytes": -(-huffman // 8),
        "ans_million_symbols_s": speed(by_ans, symbols, seconds),
        "range_million_symbols_s": speed(by_range, symbols, seconds),
    }


def huffman_lengths(weights: np.ndarray | int) -> np.ndarray:
    """Return the lengths of an optimal prefix code, in bits; of equals, rounded up."""
    if isinstance(weights, int):
        return np.full(weights, (weights - 1).bit_length())
    lengths = np.zeros(weights.size, np.int64)
    waiting = [(float(weight), index, [index]) for index, weight in enumerate(weights)]
    heapq.heapify(waiting)
    while len(waiting) > 1:
        first, _, left = heapq.heappop(waiting)
        second, order, right = heapq.heappop(waiting)
        lengths[[*left, *right]] += 1
        heapq.heappush(waiting, (first + second, order, [*left, *right]))
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--quick", action="store_true", help="ResNet-8 only, hardly trained")
    parser.add_argument("--results", type=Path, help=f"where to keep them; {RESULTS.name} if full")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = MODELS[:1] if arguments.quick else arguments.model
    seconds = 0.05 if arguments.quick else 0.1
    target = arguments.results or (None if arguments.quick else RESULTS)
    result: dict[str, Any] = {"limit": LIMIT, "models": {}}
    if target is not None and target.exists():
        result = json.loads(target.read_text())
    for name in names:
        result["models"][name] = measure_model(name, arguments.quick, seconds, arguments.json)
        result["versions"] = {one: version(one) for one in ("constriction", "zstandard", "brotli")}
        result["machine"] = {"processor": platform.processor(), "cores": os.cpu_count()}
        if target is not None:
            target.write_text(json.dumps(result, indent=1) + "\n")
    rows = [row for name in names for row in result["models"][name]["rows"]]
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(summary(rows))
    sys.exit(any(row["ratio"] >= 1 or not row["within_limit"] for row in rows))


def measure_model(name: str, quick: bool, seconds: float, silent: bool) -> dict[str, Any]:
    rows, encoders = [], []
    for about, content in files(name, quick):
        figures, encoder = measure(content, seconds)
        rows.append({**about, **figures})
        encoders.append(encoder)
        if not silent:
            print(line(rows[-1]), flush=True)
    coders = compare_coders(encoders, seconds)
    if not silent:
        print(", ".join(f"{key} {value:.6g}" for key, value in coders.items()), flush=True)
    return {"rows": rows, "coders": coders}


def line(row: dict[str, Any]) -> str:
    sizes = "  ".join(f"{name} {row[f'{name}_bytes']}" for name in PEERS)
    return (
        f"{row['model']:12} {row['quantize']:5}{row['sparsity']:.0%} clustered {row['clustered']}: "
        f"{row['bytes']} -> {row['packed_bytes']} ({row['ratio']:.3f} of the smallest of {sizes}), "
        f"{row['bits_per_weight']:.3f} bits a weight, kernels {row['payload_ratio']:.3f} of their "
        f"entropy, {row['unpack_mb_s']:.0f} MB/s (xz {row['xz_unpack_mb_s']:.0f})"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{key}: {min(row[key] for row in rows):.3f} to {max(row[key] for row in rows):.3f}"
        for key in ("ratio", "payload_ratio", "unpack_mb_s")
    )


if __name__ == "__main__":
    main()
