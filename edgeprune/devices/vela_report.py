"""Read what Vela wrote: its summary, its table of layers, the compiled model, its complaints."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import UnsupportedError
from edgeprune.export.tflite import TfliteModel, read

NPU_OPERATOR = "ethos-u"
MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")
_KIB = 1024
_WARNING = re.compile(r"Warning \(.*?\) operator: (?P<op>\S+), ofm: '(?P<name>.*)'")
_REASON = re.compile(r"Reason: (?P<reason>.*)")
_EXCEPTION = re.compile(r"(?:[\w.]+\.)?(?P<kind>\w+): (?P<text>.*)")


@dataclass(frozen=True)
class CpuOperator:
    """An operator that stays on the CPU.

    Attributes:
      op: as in the .tflite file: ``CUMSUM``.
      name: of its first output.
      reason: Vela's; None if it gave none.
    """

    op: str
    name: str
    reason: str | None


@dataclass(frozen=True)
class LayerEstimate:
    """An operation that Vela made of one of the model's operators; several may come from one.

    Attributes:
      name: of its output; that of the operator's own for the last of them.
      op: the operator, by Vela's name: ``Softmax``.
      made: the operation: ``ReduceSum``.
      on_npu: whether it runs there.
      cycles: on the accelerator, with waiting for memory; 0 for what is fused with another.
      macs: multiply-accumulates.
      sram_bytes: in use while it runs.
    """

    name: str
    op: str
    made: str
    on_npu: bool
    cycles: int
    macs: int
    sram_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What Vela predicts for a model.

    Attributes:
      cycles: of the accelerator for an inference, waiting included; 0 if it has nothing to do.
      cycles_by_part: ``npu`` and the memories; they overlap, so they are more in sum.
      clock_hz: of the accelerator.
      memory_bytes: most that is in use, by memory: see `MEMORIES`.
      original_weight_bytes: as Vela counts them, with tables that it makes itself.
      encoded_weight_bytes: as the accelerator reads them.
      npu_macs: multiply-accumulates there.
      compiled_bytes: size of the compiled .tflite file.
      operators: of the model, before.
      cpu_operators: those that stay on the CPU, in order.
      layers: in order of execution.
    """

    cycles: int
    cycles_by_part: Mapping[str, int]
    clock_hz: float
    memory_bytes: Mapping[str, int]
    original_weight_bytes: int
    encoded_weight_bytes: int
    npu_macs: int
    compiled_bytes: int
    operators: int
    cpu_operators: tuple[CpuOperator, ...]
    layers: tuple[LayerEstimate, ...]

    @property
    def inference_ms(self) -> float | None:
        """Predicted time of an inference on the accelerator."""
        return 1000 * self.cycles / self.clock_hz if self.cycles else None

    @property
    def main_reason(self) -> str:
        """Why most of what stays on the CPU does."""
        reasons = [op.reason.split(" (")[0] for op in self.cpu_operators if op.reason]
        return max(reasons, key=reasons.count, default="Vela gives no reason")


def read_report(folder: Path, original: TfliteModel, words: Sequence[str]) -> Estimate:
    """Read what Vela left of `model.tflite`.

    Args:
      folder: its output folder.
      original: the model that it compiled.
      words: the lines that it printed.

    Raises:
      UnsupportedError: its files are not those of a Vela that is known here.
    """
    try:
        (summary_file,) = folder.glob("model_summary_*.csv")
        (summary,) = _rows(summary_file)
        compiled = folder / "model_vela.tflite"
        return Estimate(
            cycles=_whole(summary["cycles_total"]),
            cycles_by_part={
                "npu": _whole(summary["cycles_npu"]),
                **{name: _whole(summary[f"cycles_{name}_access"]) for name in MEMORIES},
            },
            clock_hz=float(summary["core_clock"]),
            memory_bytes={
                name: round(float(summary[f"{name}_memory_used"]) * _KIB) for name in MEMORIES
            },
            original_weight_bytes=_whole(summary["total_original_weights"]),
            encoded_weight_bytes=_whole(summary["total_npu_encoded_weights"]),
            npu_macs=_whole(summary["nn_macs"]),
            compiled_bytes=compiled.stat().st_size,
            operators=sum(len(graph.operators) for graph in original.subgraphs),
            cpu_operators=tuple(_left_over(read(compiled), words)),
            layers=tuple(_layer(line) for line in _rows(folder / "model_per-layer.csv")),
        )
    except (OSError, KeyError, ValueError) as error:
        raise UnsupportedError(
            f"Vela's report is not understood ({type(error).__name__}: {error}); "
            "supported: ethos-u-vela 5"
        ) from error


def failure_text(words: Sequence[str]) -> tuple[str, str]:
    """Return the exception that ended Vela: its class, and what it says, in one line."""
    last = words[-1] if words else "no message"
    match = _EXCEPTION.fullmatch(last)
    if match is None:
        return "", last
    # Vela's own exceptions print their text quoted, and begin it with "Error: ".
    text = match["text"].strip().strip("'\"")
    return match["kind"], text.removeprefix("Error: ")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _whole(text: str) -> int:
    """Read a count; Vela writes nan where it divided by nothing."""
    value = float(text)
    return round(value) if math.isfinite(value) else 0


def _layer(line: Mapping[str, str]) -> LayerEstimate:
    return LayerEstimate(
        name=line["Name"],
        op=line["Original Operator"],
        made=line["NNG Operator"],
        on_npu=line["Target"] == "NPU",
        cycles=_whole(line["Op Cycles"]),
        macs=_whole(line["MAC Count"]),
        sram_bytes=_whole(line["Staging Usage"]),
    )


def _left_over(compiled: TfliteModel, words: Sequence[str]) -> list[CpuOperator]:
    """List what the compiled model still has beside the accelerator's operators."""
    reasons: dict[str, str] = {}
    name: str | None = None
    for line in words:
        if warning := _WARNING.match(line):
            name = warning["name"]
        elif name is not None and (reason := _REASON.match(line)):
            reasons.setdefault(name, reason["reason"])
            name = None
    found = []
    for graph in compiled.subgraphs:
        for operator in graph.operators:
            if operator.name != NPU_OPERATOR:
                output = graph.tensors[operator.outputs[0]].name if operator.outputs else ""
                found.append(CpuOperator(operator.name, output, reasons.get(output)))
    return found
