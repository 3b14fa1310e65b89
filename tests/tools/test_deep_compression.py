"""The reproduction of deep compression counts every byte, and runs from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reproduce.counting import coded_kernels, kernel_bits, pruned_bytes, shared_bytes
from reproduce.deep_compression import main, mean_rows
from tasks import build_lenet5, build_lenet300

import edgeprune as ep
from edgeprune.export.packing.container import read_header

SCRIPT = Path(__file__).parents[2] / "tools" / "reproduce" / "deep_compression.py"


def _dense(places, values, size=200):
    """Return a dense layer's kernel of `size` weights with these values at these places."""
    kernel = np.zeros(size, np.float32)
    kernel[list(places)] = values
    return kernel.reshape(2, -1)


def test_a_distance_within_the_index_takes_one_entry():
    # Distances 1, 3 and 32, the longest that 5 bits tell.
    bits = kernel_bits(_dense([0, 3, 35], [1.0, 2.0, 1.0]))
    assert (bits.weights, bits.kept, bits.entries, bits.values) == (200, 3, 3, 2)
    assert bits.pruned_bits == 3 * (32 + 5)
    # One bit tells two values apart; the table holds both in full.
    assert bits.shared_bits == 3 * (1 + 5) + 2 * 32


def test_longer_distances_take_zeros_in_between():
    # Distances 33 (one zero), 64 (one) and 65 (two); zero becomes a value of its own.
    bits = kernel_bits(_dense([32, 96, 161], [1.0, 2.0, 3.0]))
    assert (bits.kept, bits.entries, bits.values, bits.value_bits) == (3, 7, 4, 2)
    assert bits.pruned_bits == 7 * 37
    assert bits.shared_bits == 7 * (2 + 5) + 4 * 32


def test_convolutions_have_distances_of_8_bits():
    kernel = np.zeros((1, 1, 20, 30), np.float32)
    kernel.reshape(-1)[[255, 512]] = 5.0  # distances 256 and 257
    bits = kernel_bits(kernel)
    assert (bits.index_bits, bits.entries, bits.values) == (8, 3, 2)


def test_one_value_needs_no_bits_and_no_weight_needs_nothing():
    assert kernel_bits(_dense([1], [4.0])).shared_bits == 5 + 32
    empty = kernel_bits(_dense([], []))
    assert (empty.entries, empty.pruned_bits, empty.shared_bits) == (0, 0, 0)


def test_bytes_of_a_model_are_those_of_its_kernels_and_biases():
    kernels = [_dense([0, 3, 35], [1.0, 2.0, 1.0]), _dense([1], [4.0])]
    biases = [np.zeros(10, np.float32), np.zeros(3, np.float32)]
    # 111 and 37 bits are 14 and 5 bytes; 82 and 37 are 11 and 5.
    assert pruned_bytes(kernels, biases) == 14 + 5 + 4 * 13
    assert shared_bytes(kernels, biases) == 11 + 5 + 4 * 13


def test_rows_become_their_mean_and_text_stays():
    runs = [[{"stage": "dense", "bytes": 4}], [{"stage": "dense", "bytes": 8}]]
    assert mean_rows(runs) == [{"stage": "dense", "bytes": 6}]


@pytest.mark.parametrize(
    ("build", "hidden", "dropouts"),
    [(build_lenet300, ["ip1", "ip2"], 2), (build_lenet5, ["conv1", "conv2", "ip1"], 1)],
)
def test_dropout_and_penalty_are_of_hidden_layers_and_add_no_weights(build, hidden, dropouts):
    model = build(dropout=0.5, l1=0.1)
    assert model.count_params() == build().count_params()
    layers = [layer for layer in model.layers if getattr(layer, "kernel_regularizer", None)]
    assert [layer.name for layer in layers] == hidden
    total = sum(np.abs(np.asarray(layer.kernel)).sum() for layer in layers)
    assert float(sum(model.losses)) == pytest.approx(0.1 * total, rel=1e-4)
    rates = [layer.rate for layer in model.layers if type(layer).__name__ == "Dropout"]
    assert rates == [0.5] * dropouts


def test_kernels_of_a_packed_file_are_counted_apart(tmp_path):
    rng = np.random.default_rng(0)
    model = build_lenet5()
    for name, kept in (("conv1", 1.0), ("conv2", 0.5), ("ip1", 0.1), ("classes", 1.0)):
        kernel = model.get_layer(name).kernel
        values = rng.choice([-0.1, 0.1], kernel.shape)
        kernel.assign(np.where(rng.random(kernel.shape) < kept, values, 0.0))
    tflite, packed = tmp_path / "m.tflite", tmp_path / "m.epk"
    ep.convert(model, tflite, sparse="off")
    ep.pack(tflite, packed)
    found = coded_kernels(tflite.read_bytes())
    assert [one.weights for one in found] == [500, 25_000, 400_000, 5_000]
    # Two signs take a bit; of three values at 1/4, 1/2, 1/4 each takes 1.5 bits; at 5 and 90 % it
    # is 0.569 bits. Tables come on top.
    entropies = [500, 1.5 * 25_000, 0.569 * 400_000, 5_000]
    for one, entropy in zip(found, entropies, strict=True):
        assert entropy - 3 * one.weights**0.5 < one.bits < 1.02 * entropy + 200
    assert found[0].kept == 500
    assert found[2].kept == np.count_nonzero(model.get_layer("ip1").kernel)
    # The rest is there too: the graph, 580 biases and the container.
    total = packed.stat().st_size
    assert (
        total - read_header(packed.read_bytes()).header_bytes > sum(one.bits for one in found) / 8
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0"], "--seeds is 0; give 1 or more"),
        (["--plot", "plot.gif"], "supported: .png, .svg"),
        (["--results", "no/such/folder/results.json"], "no/such/folder"),
        (["--model", "alexnet"], "choose from"),
    ],
)
def test_bad_options_are_told_in_one_line_before_any_training(options, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deep_compression.py", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_sample_of_the_reproduction_runs(tmp_path):
    results, plot = tmp_path / "results.json", tmp_path / "plot.svg"
    command = [sys.executable, SCRIPT, "--quick", "--json", "--results", results, "--plot", plot]
    ran = subprocess.run(
        [*command, "--keep", tmp_path / "files"], capture_output=True, text=True, check=True
    )
    printed, kept = json.loads(ran.stdout), json.loads(results.read_text())
    assert set(printed) == set(kept) == {"lenet-300-100", "lenet-5"}
    assert "lenet-5" in plot.read_text()
    for name, parameters in (("lenet-300-100", 266_610), ("lenet-5", 431_080)):
        result = kept[name]
        assert result["command"].startswith("python tools/reproduce/deep_compression.py --quick")
        stages = {row["stage"]: row for row in result["stages"]}
        assert stages["dense"]["bytes"] == 4 * parameters
        sizes = [stages[stage]["bytes"] for stage in ("dense", "pruned", "shared", "coded")]
        assert sizes == sorted(sizes, reverse=True)
        # What was counted is the file, and that is the model.
        file = tmp_path / "files" / f"{name}-0" / "shared" / "int8.epk"
        assert stages["coded"]["bytes"] == file.stat().st_size
        assert stages["coded"]["ratio"] == 4 * parameters / file.stat().st_size
        ep.unpack(file, tmp_path / "back.tflite")
        assert (tmp_path / "back.tflite").read_bytes() == file.with_suffix(".tflite").read_bytes()
        *kernels, rest = result["layers"]
        assert sum(row["coded_bytes"] for row in result["layers"]) == pytest.approx(sizes[-1])
        assert 0 < rest["coded_bytes"] < 4000
        for row, target in zip(kernels, result["settings"]["sparsity"], strict=True):
            assert row["kept"] == pytest.approx(1 - target, abs=1e-3)
            assert row["clusters"] <= 8
        # Ten classes, and a little training.
        assert all(row["test_error"] < 0.6 for row in result["stages"])
