"""Count how often the benchmark's intervals hold what they must, on equal files.

    python tools/bench/interval_coverage.py [--runs N] [--script FILE]... [--json]

Two models, a MobileNetV1 of width 0.25 and a smaller keyword model (MLPerf Tiny's, float32, random
weights), are each measured beside a copy of their own file and beside the other one, with
`bench_on_device.py --quick`, over and over. Two things are known then and counted:

* the ratio of the copy to its original is 1: `coverage` is the share of the 95 % intervals that
  hold it, and `half_width` their median half width, which is not to be large instead;
* from run to run nothing changes: `false_verdicts` is the share of verdicts other than 'not told
  apart' which `edgeprune benchmark --compare` gives between two runs that follow each other, of the
  copy and of the other model, each through the first.

`--script` measures with other versions of bench_on_device.py, too, in turns with the present one,
so that the same other work disturbs them all: `git show REVISION:tools/bench_on_device.py >FILE`.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kept_results import keep
from tasks.reference_models import build_ds_cnn, build_mobilenet_v1

from edgeprune.devices.compare import compare_with
from edgeprune.devices.measurement import Benchmark
from edgeprune.export.convert import convert
from edgeprune.files import sha256
from edgeprune.models import import_keras

TOOLS = Path(__file__).resolve().parents[1]
SCRIPT = TOOLS / "bench_on_device.py"
RESULTS = TOOLS / "results" / "interval_coverage.json"
MODELS = {"mobilenet-v1": build_mobilenet_v1, "ds-cnn": build_ds_cnn}
COPY, OTHER = 1, 2  # places in a run, after the model itself


def write_models(folder: Path) -> dict[str, Path]:
    """Write each model twice; return the paths of the first ones."""
    import_keras().utils.set_random_seed(0)
    files = {}
    for name, build in MODELS.items():
        files[name] = folder / f"{name}.tflite"
        # Untrained outputs are near each other, so that verifying them would prove nothing.
        convert(build(), files[name], verify=False)
        shutil.copy(files[name], folder / f"{name}-copy.tflite")
    return files


def measured(
    script: Path, files: Sequence[Path], options: Sequence[str]
) -> tuple[Benchmark, float]:
    """Return one run's results, and the seconds that it took."""
    begin = time.perf_counter()
    command = [sys.executable, str(script), *options, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Benchmark.from_json(done.stdout), time.perf_counter() - begin


def summary(runs: Sequence[Benchmark], seconds: Sequence[float]) -> dict[str, Any]:
    """Return what is counted over the runs of one script with one model first."""
    ratios = [run[COPY].relative_latency or 0.0 for run in runs]
    intervals = [run[COPY].relative_latency_interval or (0.0, 0.0) for run in runs]
    compared = [compare_with(now, then) for then, now in itertools.pairwise(runs)]
    verdicts = [[rows[place].compared["verdict"] for rows in compared] for place in (COPY, OTHER)]
    return {
        "runs": len(runs),
        "coverage": statistics.mean(low <= 1 <= high for low, high in intervals),
        "half_width": statistics.median((high - low) / 2 for low, high in intervals),
        "largest_deviation": max(abs(ratio - 1) for ratio in ratios),
        "comparisons": 2 * len(compared),
        **{
            f"false_verdicts_{what}": statistics.mean(one != "not told apart" for one in own)
            for what, own in zip(("copy", "other"), verdicts, strict=True)
        },
        "seconds": statistics.median(seconds),
    }


def collect(
    scripts: Sequence[Path], files: dict[str, Path], count: int, options: Sequence[str]
) -> dict[str, Any]:
    """Run all scripts on all models in turns, and summarize."""
    runs: dict[tuple[Path, str], list[Benchmark]] = {}
    seconds: dict[tuple[Path, str], list[float]] = {}
    loads = []
    for number in range(count):
        for name, file in files.items():
            (other,) = (files[known] for known in files if known != name)
            three = [file, file.with_stem(f"{name}-copy"), other]
            for script in scripts if number % 2 == 0 else reversed(scripts):
                found, took = measured(script, three, options)
                runs.setdefault((script, name), []).append(found)
                seconds.setdefault((script, name), []).append(took)
        loads.append(os.getloadavg()[0])
        print(f"{number + 1} of {count} runs, load {loads[-1]:.1f}", file=sys.stderr, flush=True)
    return {
        "options": list(options),
        "load_average": [min(loads), statistics.mean(loads), max(loads)],
        "rows": [
            {
                "script": script.name,
                "script_sha256": sha256(script)[:12],
                "model": name,
                **summary(own, seconds[script, name]),
            }
            for (script, name), own in runs.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="of each script with each model first")
    parser.add_argument("--script", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--min-seconds", type=float, help="instead of what --quick has")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    options = ["--quick"]
    if arguments.min_seconds is not None:
        options.append(f"--min-seconds={arguments.min_seconds:g}")
    with tempfile.TemporaryDirectory() as folder:
        files = write_models(Path(folder))
        # Copies, since it takes so long that the originals may be edited meanwhile.
        scripts = []
        for number, script in enumerate((SCRIPT, *arguments.script)):
            copy = Path(folder, str(number), script.name)
            copy.parent.mkdir()
            scripts.append(Path(shutil.copy(script, copy)))
        result = collect(scripts, files, arguments.runs, options)
    keep(arguments.results, " ".join(options), result)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    low, mean, high = result["load_average"]
    print(f"load average {mean:.1f} ({low:.1f} to {high:.1f}) on {os.cpu_count()} cores")
    for row in result["rows"]:
        print(
            f"{row['script']}, {row['model']}: {row['runs']} runs of {row['seconds']:.1f} s, "
            f"coverage {row['coverage']:.0%}, half width {row['half_width']:.2%}, largest "
            f"deviation {row['largest_deviation']:.1%}; false verdicts "
            f"{row['false_verdicts_copy']:.0%} of the copy, {row['false_verdicts_other']:.0%} of "
            "the other model"
        )


if __name__ == "__main__":
    main()
