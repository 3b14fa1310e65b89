#!/usr/bin/env python3
"""Measure .tflite models on the device that this runs on. One file: copy it there and run it.

    python bench_on_device.py MODEL.tflite [MODEL.tflite ...] > result.json

It needs Python 3.9 or later, NumPy, and one of ai-edge-litert, tflite-runtime (with NumPy 1) or
tensorflow, tried in that order. One JSON document goes to stdout; all else goes to stderr.

How it measures:
  * Start-up and memory: each model alone in a fresh process, the median of three of them.
    `init_ms` is constructing the interpreter and allocating its tensors, `first_ms` the first
    inference, `peak_memory_bytes` how far both raise the process's peak of resident memory (the
    runtime's own pages included).
  * Latency: all models in one process, interleaved. They are loaded anew 20 times, in an order
    that rotates and reverses, since where a model comes to lie in memory changes its time by more
    than rounds can show: of two equal files, each load has its own ratio. Each is warmed up for
    0.5 s at first, by one inference later. Then, round by round in such an order, every model has
    a turn: one inference, or, where the models differ much in speed, as many as fit the slowest
    one's time. Of all loads together, every model has 50 rounds and 10 s, at least. The clock
    runs around `invoke` only; Python's garbage collector is off. (`--quick`: one process, 12
    loads, 0.1 s, 20 rounds and 1 s.)
  * `relative_latency`: of each load, the median over its rounds of a model's time by the first
    model's in the same round, so that a clock that drifts or other work that comes and goes hits
    both alike; of these, the median. `relative_latency_interval` is a 95 % interval of it from
    order statistics, for which each load is one value, however many its rounds. `details` has
    wider ones, of 97.5 %: of two of them comes one of 95 % for the ratio of two runs.
  * A drift of the first model's own time from the first third of the rounds to the last, a clock
    that falls and a processor that gets hot are told under `warnings`; `protocol` has all that
    is needed to repeat the run.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from array import array
from functools import partial
from itertools import chain
from pathlib import Path

# Name for people and pip -> the module that has Interpreter, in the order of preference.
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow",
}
DEFAULTS = {"starts": 3, "loads": 20, "warmup_seconds": 0.5, "min_runs": 50, "min_seconds": 10.0}
QUICK = {"starts": 1, "loads": 12, "warmup_seconds": 0.1, "min_runs": 20, "min_seconds": 1.0}
TOGETHER = ("threads", "seed", "loads", "warmup_seconds", "min_runs", "min_seconds")
PASSES = 3  # over all operators of a model, when each is timed alone
PASS_RUNS = 5  # of each operator in a pass, at least
LITERT_PROFILER = "2.3."  # the release of ai-edge-litert whose profiler can be called
PROGRESS = "[bench] "
INTERRUPTED = 130
# TFLite's log, and absl's as TensorFlow uses it at import
INFORMATION = re.compile(r"INFO: |I\d{4} |WARNING: All log messages before absl::InitializeLog")
# Standard deviations of a normal distribution that hold 95 % and 97.5 % of it.
WITHIN_95, WITHIN_975 = 1.96, 2.2414
DRIFT = 0.05  # of the first model's time, below which nothing is said
HOT_C = 80  # where small boards begin to slow down
# The lowest bits of what `vcgencmd get_throttled` prints on a Raspberry Pi: what is so just now.
THROTTLED = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
ROOT = Path("/")  # of the files by which Linux describes itself
MEMORY_HOW = {
    "linux": "VmHWM of a fresh process, growth from before the model was loaded",
    "darwin": "ru_maxrss of a fresh process, growth from before the model was loaded",
}


class BenchError(Exception):
    """One line for the user. `kind` tells edgeprune which of its own errors it is."""

    def __init__(self, message, kind="input"):
        super().__init__(" ".join(str(message).split()))
        self.kind = kind


# --- the runtime and its models ---------------------------------------------------------------


class Runtime:
    """A TFLite runtime that could be imported: its name, version and Interpreter class."""

    def __init__(self, wanted=None):
        try:
            import numpy  # noqa: F401
        except ImportError:
            raise BenchError("NumPy is missing; pip install numpy", "unsupported") from None
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        warnings.simplefilter("ignore")  # of deprecations inside the runtimes
        failures = []
        for name in [wanted] if wanted else RUNTIMES:
            try:
                with without_info():
                    module = importlib.import_module(RUNTIMES[name])
            except Exception as error:  # a broken installation may raise anything at import
                missing = isinstance(error, ModuleNotFoundError)
                failures.append(f"{name}: {'not installed' if missing else error}")
                continue
            self.name = name
            self.interpreter = (module.lite if name == "tensorflow" else module).Interpreter
            root = sys.modules[RUNTIMES[name].partition(".")[0]]
            self.version = getattr(root, "__version__", None) or importlib.metadata.version(name)
            return
        if wanted:
            others = [name for name in RUNTIMES if name != wanted and is_installed(name)]
            raise BenchError(
                f"the runtime that was asked for cannot be used ({failures[0]}); installed: "
                f"{', '.join(others) or 'none'}; leave out --runtime, or pip install {wanted}",
                "unsupported",
            )
        raise BenchError(
            f"no TFLite runtime can be used ({'; '.join(failures)}); pip install ai-edge-litert, "
            "or tflite-runtime with 'numpy<2'",
            "unsupported",
        )

    def load(self, path, threads, seed):
        """Construct an interpreter, allocate, set seeded inputs; return a `Loaded`."""
        with without_info():
            begin = time.perf_counter_ns()
            try:
                interpreter = self.interpreter(model_path=str(path), num_threads=threads)
                free_batch = self._fix_batch(interpreter, path)
                interpreter.allocate_tensors()
            except (ValueError, RuntimeError, SystemError) as error:
                raise self._explain(error, path) from None
            init_ns = time.perf_counter_ns() - begin
        return Loaded(
            interpreter, path, init_ns, free_batch, random_inputs(interpreter, seed, path)
        )

    def load_part(self, content, threads, values):
        """Load a small model that edgeprune cut out of another, with these values as its inputs."""
        with without_info():
            interpreter = self.interpreter(model_content=content, num_threads=threads)
            details = interpreter.get_input_details()
            inputs = [(details[i]["index"], values[i]) for i in range(len(details))]
            for i, (index, value) in enumerate(inputs):
                if tuple(details[i]["shape"]) != value.shape:  # it is known at run time only
                    interpreter.resize_tensor_input(index, value.shape)
            interpreter.allocate_tensors()
        return Loaded(interpreter, "part", 0, False, inputs)

    @staticmethod
    def _fix_batch(interpreter, path):
        free_batch = False
        for detail in interpreter.get_input_details():
            shape = [int(size) for size in detail["shape"]]
            signature = [int(size) for size in detail.get("shape_signature", shape)]
            if any(size < 0 for size in signature[1:]):
                shown = ", ".join("?" if size < 0 else str(size) for size in signature)
                raise BenchError(
                    f"{path}: input '{detail['name']}' has free dimensions ({shown}); only the "
                    "batch may be free here: convert it with a fixed input shape"
                )
            if signature and signature[0] < 0:
                free_batch = True
                if shape[0] != 1:
                    interpreter.resize_tensor_input(detail["index"], [1, *shape[1:]])
        return free_batch

    def _explain(self, error, path):
        text = str(error.__cause__ or error)
        if isinstance(error, SystemError):  # how an extension of NumPy 1 fails under NumPy 2
            return BenchError(
                f"{self.name} {self.version} does not work with this NumPy ({text}); "
                "pip install 'numpy<2'",
                "unsupported",
            )
        if "Select TensorFlow op" in text or "custom op" in text:
            node = re.search(r"Node number \d+ \((\w+)\)", text)
            mend = "convert the model to builtin operators only"
            if "TFLM_DECODE" in text:
                mend = "TFLite Micro alone runs look-up tables, so give the plain file"
            return BenchError(
                f"{path}: {self.name} {self.version} lacks operator {node[1] if node else text}; "
                f"{mend}",
                "unsupported",
            )
        newer = re.search(r"opcode '(\w+)' version '(\d+)'", text)
        if newer:
            return BenchError(
                f"{path}: {self.name} {self.version} lacks operator {newer[1]} version {newer[2]}; "
                "install a newer runtime, or convert with an older TensorFlow",
                "unsupported",
            )
        return BenchError(f"{path}: not a usable .tflite file ({text}); convert the model again")


def is_installed(name):
    """Whether a runtime's package is there, without importing it."""
    return importlib.util.find_spec(RUNTIMES[name].partition(".")[0]) is not None


@contextlib.contextmanager
def without_info():
    """Drop what is mere information from what native code writes to standard error."""
    sys.stderr.flush()
    try:
        terminal = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as scratch:
        os.dup2(scratch.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            scratch.seek(0)
            for line in scratch.read().decode("utf-8", "replace").splitlines():
                if not INFORMATION.match(line):
                    print(line, file=sys.stderr)


class Loaded:
    """One model, ready to run."""

    def __init__(self, interpreter, path, init_ns, free_batch, inputs):
        self.path = path
        self.init_ns = init_ns
        self.free_batch = free_batch
        self.interpreter = interpreter
        self.inputs = inputs

    def run(self):
        """Set the inputs, run once, return the nanoseconds that `invoke` took."""
        for index, value in self.inputs:
            self.interpreter.set_tensor(index, value)
        invoke = self.interpreter.invoke
        begin = time.perf_counter_ns()
        invoke()
        return time.perf_counter_ns() - begin

    def first_run(self):
        """`run`, with a model that cannot run at all made into a `BenchError`."""
        try:
            return self.run()
        except (ValueError, RuntimeError) as error:
            raise BenchError(f"{self.path}: the model fails when it runs ({error})") from None


def random_inputs(interpreter, seed, path):
    """Return (index, random array) for each input of a model."""
    details = interpreter.get_input_details()
    return [(detail["index"], random_input(detail, seed, path)) for detail in details]


def random_input(detail, seed, path="model"):
    """Return a seeded random array for one input of a model.

    Floats are standard normal; integers of 8 and 16 bits cover their whole range; wider ones are
    0 or 1, since they are mostly indices, and those two are valid in any table.
    """
    import numpy as np

    dtype = np.dtype(detail["dtype"])
    shape = tuple(int(size) for size in detail["shape"])
    generator = np.random.default_rng(seed)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    raise BenchError(
        f"{path}: input '{detail['name']}' is of type {dtype.name}; supported: float, integer, bool"
    )


def check_file(path):
    """Refuse, before any runtime sees it, what plainly is no .tflite file."""
    if not path.exists():
        raise BenchError(f"{path}: no such file; name a .tflite file")
    if not path.is_file():
        raise BenchError(f"{path}: not a file; name a .tflite file")
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise BenchError(f"{path}: the file is empty; convert the model again")
    if head[4:8] != b"TFL3":
        raise BenchError(f"{path}: not a .tflite file (it does not carry the TFL3 mark)")


def unique_names(paths):
    """Name each path by as many of its last parts as tell it from the others; repeats by number."""
    whole = [Path(path).absolute().parts for path in paths]
    names = []
    for parts in whole:
        others = [other for other in whole if other != parts]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        name = "/".join(parts[-length:])
        seen = sum(1 for earlier in whole[: len(names)] if earlier == parts)
        names.append(f"{name} ({seen + 1})" if seen else name)
    return names


# --- one model alone: start-up and memory -----------------------------------------------------


def measure_alone(runtime, path, options):
    """Measure start-up and peak memory of one model; this process must be fresh."""
    random_input({"dtype": "float32", "shape": [8], "name": ""}, 0)  # loads numpy.random first
    gc.collect()
    reset_peak()
    before = peak_memory()
    loaded = runtime.load(path, options.threads, options.seed)
    first_ns = loaded.first_run()
    loaded.run()
    after = peak_memory()
    grown = after - before if before is not None and after is not None else None
    return {
        "init_ms": loaded.init_ns / 1e6,
        "first_ms": first_ns / 1e6,
        "peak_memory_bytes": grown or None,
        "free_batch": loaded.free_batch,
    }


def reset_peak():
    """Set the kernel's peak of this process back to its present memory, where that can be done."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then the peak so far counts
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory():
    """Return this process's peak of resident memory in bytes, or None.

    On Linux VmHWM, since ru_maxrss there survives exec and so holds the parent's memory.
    """
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in (read("proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def alone(runtime, path, options):
    """Measure one model in this process: its start, or what its options say."""
    if options.profiler:
        seconds = options.min_seconds / PASSES
        return profile_whole(runtime, path, options.threads, options.seed, seconds)
    if not options.operators:
        return measure_alone(runtime, path, options)
    loaded = runtime.load(path, options.threads, options.seed)
    inputs = [value for _, value in loaded.inputs]
    (archive,) = options.operators
    return time_operators(runtime, inputs, archive, options.threads, options.min_seconds)


def run_alone(runtime, path, options, *more):
    """Run `alone` in a process of its own, and survive what kills that process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--alone"]
    command += ["--runtime", runtime.name, "--errors-as-json"]
    command += ["--threads", str(options.threads), "--seed", str(options.seed), *more]
    command += ["--", str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    try:
        result = json.loads(done.stdout)
    except ValueError:
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        else:
            how = f"exit code {done.returncode}"
        raise BenchError(
            f"{path}: {runtime.name} {runtime.version} crashed on it ({how}); the file may be "
            "damaged, or the memory too small",
            "failure",
        ) from None
    if "error" in result:
        raise BenchError(result["error"], result["kind"])
    return result


def medians(starts):
    """Merge several results of `measure_alone`: the median of each figure that all of them have."""
    merged = {}
    for key in starts[0]:
        values = [start[key] for start in starts]
        merged[key] = None if None in values else statistics.median_low(values)
    return merged


# --- all models together: latency -------------------------------------------------------------


def warm_up(models, seconds):
    """Run each model for at least `seconds`; return a typical time of each in nanoseconds."""
    typical = []
    for model in models:
        samples = [model.first_run()]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 3:
            samples.append(model.run())
        # Other work can only make a run longer.
        typical.append(min(samples[1:]))
    return typical


def turns(typical_ns, min_runs, min_seconds):
    """How many inferences make each model's turn, so that all get their time in as many rounds.

    A turn takes about as long as one inference of the slowest model, but no longer than
    `min_runs` rounds need for `min_seconds`.
    """
    longest = turn_ns(typical_ns, min_runs, min_seconds)
    return [max(1, math.ceil(longest / max(own, 1.0) - 0.5)) for own in typical_ns]


def turn_ns(typical_ns, min_runs, min_seconds):
    """Return how long a turn is to take, but for models whose single inference takes longer."""
    return min(max(typical_ns), min_seconds * 1e9 / min_runs)


def order(round_number, count):
    """The order of the models in one round: rotated each round, reversed each full rotation."""
    start = round_number % count
    rotated = [*range(start, count), *range(start)]
    return rotated if (round_number // count) % 2 == 0 else rotated[::-1]


def interleave(models, turn_lengths, min_runs, min_seconds, progress, longest_ns=0, first_round=0):
    """Run rounds until each model has its runs and seconds.

    A turn that takes less than half of `longest_ns` is doubled for the rounds to come: its length
    came from a warm-up that other work had slowed down, and would be ever behind the others'.
    The order of the models goes on from `first_round`.

    Returns:
      Per model, an array of nanoseconds of every run and the list of every round's median.
    """
    samples = [array("q") for _ in models]
    rounds = [[] for _ in models]
    totals = [0] * len(models)
    lengths = list(turn_lengths)
    number = 0
    gc.collect()
    gc.disable()
    try:
        while number < min_runs or min(totals) < min_seconds * 1e9:
            for i in order(first_round + number, len(models)):
                run = models[i].run
                turn = [run() for _ in range(lengths[i])]
                samples[i].extend(turn)
                rounds[i].append(statistics.median(turn))
                totals[i] += sum(turn)
                if 2 * sum(turn) < longest_ns:
                    lengths[i] *= 2
            number += 1
            progress(min(number / min_runs, min(totals) / max(min_seconds * 1e9, 1)))
    finally:
        gc.enable()
    return samples, rounds


def measure_together(
    runtime, paths, *, threads, seed, loads, warmup_seconds, min_runs, min_seconds
):
    """Load all models anew `loads` times, and let them take turns each time.

    Loads of one process differ by as much as those of fresh ones, as was measured, and cost less.

    Returns:
      Per model, an array of nanoseconds of every run, and of every load the list of its rounds'
      medians.
    """
    samples = [array("q") for _ in paths]
    rounds = [[] for _ in paths]
    least_runs, least_seconds = math.ceil(min_runs / loads), min_seconds / loads
    progress = Progress(len(paths), loads)
    for load in range(loads):
        models = [None] * len(paths)  # frees those of the load before
        for i in order(load, len(paths)):
            models[i] = runtime.load(paths[i], threads, seed)
        if load == 0:
            say(f"warm-up, {warmup_seconds:g} s each")
            typical = warm_up(models, warmup_seconds)
            lengths = turns(typical, least_runs, least_seconds)
            longest = turn_ns(typical, least_runs, least_seconds)
        else:
            for i in range(len(models)):  # no name may outlive the load, and keep a model
                models[i].first_run()
        done = interleave(
            models,
            lengths,
            least_runs,
            least_seconds,
            partial(progress, load),
            longest,
            sum(map(len, rounds[0])),
        )
        for i in range(len(paths)):
            samples[i].extend(done[0][i])
            rounds[i].append(done[1][i])
    return samples, rounds


def summarize(nanoseconds):
    """Median, 90th percentile (linear between ranks), mean, extremes, sample std, in ms."""
    import numpy as np

    ms = np.asarray(nanoseconds, np.float64) / 1e6
    return {
        "median": float(np.median(ms)),
        "p90": float(np.percentile(ms, 90)),
        "mean": float(ms.mean()),
        "min": float(ms.min()),
        "max": float(ms.max()),
        "std": float(ms.std(ddof=1)) if ms.size > 1 else 0.0,
        "runs": int(ms.size),
    }


def ratios_to(first, own):
    """Return a model's time by the first model's: of each load, the median over its rounds."""
    return [
        statistics.median(own[load][i] / max(first[load][i], 1) for i in range(len(own[load])))
        for load in range(len(own))
    ]


def median_interval(values, deviations=WITHIN_95):
    """Return an interval of the median as [low, high], or None for too few values.

    Source: sign-test interval, Conover, Practical Nonparametric Statistics, 3rd ed., 3.2.
    """
    count = len(values)
    low = math.floor((count + 1) / 2 - deviations * math.sqrt(count) / 2)
    if low < 1:
        return None
    ordered = sorted(values)
    return [ordered[low - 1], ordered[count - low]]


def drift(rounds):
    """Return by what fraction the time changed from the first third of the rounds to the last.

    0 where the change is below `DRIFT`, or may be chance: the intervals of both medians overlap.
    """
    third = len(rounds) // 3
    begin, end = rounds[:third], rounds[len(rounds) - third :]
    intervals = [median_interval(part, WITHIN_975) for part in (begin, end)]
    if None in intervals:
        return 0.0
    (begin_low, begin_high), (end_low, end_high) = intervals
    change = statistics.median(end) / max(statistics.median(begin), 1) - 1
    apart = end_low > begin_high or end_high < begin_low
    return change if apart and abs(change) > DRIFT else 0.0


# --- one model, operator by operator ----------------------------------------------------------


def time_operators(runtime, inputs, archive, threads, seconds):
    """Time each operator of a model alone, on the values that reach it in the whole model.

    Args:
      runtime: to run with.
      inputs: values of the whole model's inputs.
      archive: path of a .zip in which edgeprune put each operator as a model of its own.
      threads: of one inference.
      seconds: of timing in all, at least.

    Returns:
      ``parts``: for each operator its nanoseconds or the reason why there are none; ``call_ns``:
      what running a model without operators takes, which is in each of them.
    """
    try:
        with zipfile.ZipFile(archive) as stored:
            manifest = json.loads(stored.read("parts.json"))
            contents = [part["file"] and stored.read(part["file"]) for part in manifest["parts"]]
            empty = stored.read("empty.tflite")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BenchError(f"{archive}: not an archive of operators ({error})") from None
    share = seconds / PASSES / max(len(contents), 1)
    times = [[] for _ in contents]
    reasons = [part["reason"] for part in manifest["parts"]]
    calls = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(PASSES):
            calls += time_part(runtime, empty, threads, inputs[:1], share)[0]
            values = {index: inputs[i] for i, index in enumerate(manifest["inputs"])}
            for number, part in enumerate(manifest["parts"]):
                if not all(index in values for index in part["inputs"]):
                    reasons[number] = reasons[number] or "what it reads was not computed"
                if reasons[number] is None:
                    own = [values[index] for index in part["inputs"]]
                    try:
                        found, made = time_part(runtime, contents[number], threads, own, share)
                    except (ValueError, RuntimeError) as error:
                        reasons[number] = f"it does not run alone ({error})"
                    else:
                        times[number] += found
                        values.update((index, made[i]) for i, index in enumerate(part["outputs"]))
                for index in part["last_uses"]:
                    values.pop(index, None)
    finally:
        gc.enable()
    return {
        "call_ns": statistics.median(calls),
        "parts": [
            {"ns": statistics.median(times[i])}
            if reason is None
            else {"reason": " ".join(str(reason).split())}
            for i, reason in enumerate(reasons)
        ],
    }


def time_part(runtime, content, threads, values, seconds):
    """Time one small model; return [its median in nanoseconds], and its outputs."""
    part = runtime.load_part(content, threads, values)
    part.run()
    samples = []
    end = time.perf_counter() + seconds
    while len(samples) < PASS_RUNS or time.perf_counter() < end:
        samples.append(part.run())
    get = part.interpreter.get_tensor
    made = [get(detail["index"]) for detail in part.interpreter.get_output_details()]
    return [statistics.median(samples)], made


# --- one model whole, by LiteRT's own profiler -------------------------------------------------


def profile_whole(runtime, path, threads, seed, seconds):
    """Have LiteRT's profiler time the operators of a model while it runs whole.

    Python has no interface to it, so its C library is called as its release `LITERT_PROFILER` has
    it: litert/c/{litert_compiled_model,litert_profiler,litert_profiler_event}.h. A wrong guess
    would crash, so this runs in a process of its own.

    Returns:
      ``nodes``: for each event of an inference, in order, its ``kind``, its ``position`` in the
      file (None of a delegate's operators) and its ``ns``: the mean over the calmer half of the
      inferences, of times in whole microseconds.
    """
    import ctypes

    class Event(ctypes.Structure):
        _fields_ = [
            ("tag", ctypes.c_char_p),
            ("kind", ctypes.c_int),
            ("start_us", ctypes.c_uint64),
            ("elapsed_us", ctypes.c_uint64),
            ("memory", ctypes.c_int64 * 6),
            ("position", ctypes.c_uint64),
            ("subgraph", ctypes.c_uint64),
            ("source", ctypes.c_int),
        ]

    package = Path(importlib.util.find_spec("ai_edge_litert").origin).parent
    library = ctypes.CDLL(str(package / "libLiteRt.so"))
    nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda payload: None)
    kept = []  # what the library points at

    def call(name, *arguments):
        status = getattr(library, name)(*arguments)
        if status != 0:
            raise BenchError(f"{path}: LiteRT's {name} returned {status}", "failure")

    def made(name, *arguments):
        handle = ctypes.c_void_p()
        call(name, *arguments, ctypes.byref(handle))
        return handle

    def add_options(identifier, text):
        payload = ctypes.create_string_buffer(text.encode())
        kept.append(payload)
        call(
            "LiteRtAddOpaqueOptions",
            options,
            made("LiteRtCreateOpaqueOptions", identifier, payload, nothing),
        )

    environment = made("LiteRtCreateEnvironment", 0, None)
    model = made("LiteRtCreateModelFromFile", environment, str(path).encode())
    options = made("LiteRtCreateOptions")
    call("LiteRtSetOptionsHardwareAccelerators", options, 1)  # the CPU
    add_options(b"runtime_options_string", "enable_profiling = true\n")
    add_options(b"xnnpack", f"num_threads = {threads}\n")
    compiled = made("LiteRtCreateCompiledModel", environment, model, options)
    graph = made("LiteRtGetModelSubgraph", model, ctypes.c_size_t(0))

    def buffers(side):
        count = ctypes.c_size_t()
        call(f"LiteRtGetNumSubgraph{side}s", graph, ctypes.byref(count))
        found = (ctypes.c_void_p * count.value)()
        for i in range(count.value):
            place = ctypes.c_size_t(i)
            kind = (ctypes.c_uint8 * 512)()  # more than its type of a tensor takes
            tensor = made(f"LiteRtGetSubgraph{side}", graph, place)
            call("LiteRtGetRankedTensorType", tensor, ctypes.byref(kind))
            needs = made(
                f"LiteRtGetCompiledModel{side}BufferRequirements",
                compiled,
                ctypes.c_size_t(0),
                place,
            )
            found[i] = made(
                "LiteRtCreateManagedTensorBufferFromRequirements",
                environment,
                ctypes.byref(kind),
                needs,
            ).value
        return found

    inputs, outputs = buffers("Input"), buffers("Output")
    loaded = runtime.load(path, threads, seed)
    for i, (_, value) in enumerate(loaded.inputs):
        content = value.tobytes()
        size = ctypes.c_size_t()
        call("LiteRtGetTensorBufferPackedSize", ctypes.c_void_p(inputs[i]), ctypes.byref(size))
        if size.value != len(content):
            raise BenchError(f"{path}: LiteRT wants inputs of another size", "failure")
        target = ctypes.c_void_p()
        writing = 1
        call("LiteRtLockTensorBuffer", ctypes.c_void_p(inputs[i]), ctypes.byref(target), writing)
        ctypes.memmove(target, content, len(content))
        call("LiteRtUnlockTensorBuffer", ctypes.c_void_p(inputs[i]))
    profiler = made("LiteRtCompiledModelGetProfiler", compiled)

    def run():
        call("LiteRtResetProfiler", profiler)
        call("LiteRtStartProfiler", profiler)
        call(
            "LiteRtRunCompiledModel",
            compiled,
            ctypes.c_size_t(0),
            ctypes.c_size_t(len(inputs)),
            inputs,
            ctypes.c_size_t(len(outputs)),
            outputs,
        )
        call("LiteRtStopProfiler", profiler)
        count = ctypes.c_int()
        call("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(count))
        events = (Event * max(count.value, 1))()
        call("LiteRtGetProfilerEvents", profiler, count, events)
        # An operator of TFLite's is of kind 2, one of a delegate's of kind 8.
        return [
            (
                event.tag.decode("utf-8", "replace"),
                event.position if event.kind == 2 else None,
                event.elapsed_us,
            )
            for event in events[: count.value]
            if event.kind in (2, 8)
        ]

    for _ in range(PASS_RUNS):
        first = run()
    end = time.perf_counter() + seconds
    runs = []
    while len(runs) < 2 * PASS_RUNS or time.perf_counter() < end:
        events = run()
        if [event[:2] for event in events] != [event[:2] for event in first]:
            raise BenchError(f"{path}: its operators differ from run to run", "failure")
        runs.append([event[2] for event in events])
    runs.sort(key=sum)
    calm = runs[: len(runs) // 2]
    return {
        "nodes": [
            {
                "kind": kind,
                "position": position,
                "ns": 1e3 * statistics.mean(run[i] for run in calm),
            }
            for i, (kind, position, _) in enumerate(first)
        ]
    }


# --- the environment --------------------------------------------------------------------------


def read(path):
    """Return the content of a small text file under `ROOT`, or None."""
    try:
        return (ROOT / path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def cpu_model():
    """Return the processor's or the board's name."""
    for line in (read("proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware"):
            return value.strip()
    return board() or platform.processor() or None


def board():
    """Return the name that a single-board computer gives itself, or None."""
    return read("proc/device-tree/model") or None


def affinity():
    """Return the numbers of the CPUs that this process may run on, or None."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def per_cpu(name):
    """Return the distinct values of a /sys file over the CPUs in use, or None."""
    found = {read(f"sys/devices/system/cpu/cpu{cpu}/{name}") for cpu in affinity() or ()}
    return sorted(found - {None}) or None


def frequency_mhz():
    """Return the highest present clock of the CPUs in use, or None."""
    values = per_cpu("cpufreq/scaling_cur_freq")
    return max(int(value) for value in values) / 1000 if values else None


def temperature_c():
    """Return the temperature of the processor's thermal zone (else of the hottest), or None."""
    zones = []
    for zone in sorted((ROOT / "sys/class/thermal").glob("thermal_zone*")):
        value = read(zone / "temp")
        if value and value.lstrip("-").isdigit():
            kind = (read(zone / "type") or "").lower()
            of_cpu = any(word in kind for word in ("cpu", "soc", "x86_pkg", "core"))
            zones.append((of_cpu, int(value) / 1000))
    return max(zones)[1] if zones else None


def environment(before, after):
    """Describe what the figures depend on; return it with the reasons for what is missing."""
    import numpy as np

    found = {
        "cpu": cpu_model(),
        "machine": platform.machine() or None,
        "cores": os.cpu_count(),
        "affinity": affinity(),
        "governor": per_cpu("cpufreq/scaling_governor"),
        "frequency_mhz": pair(before["frequency_mhz"], after["frequency_mhz"]),
        "temperature_c": pair(before["temperature_c"], after["temperature_c"]),
        "load_average": before["load_average"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    sources = {
        "governor": "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        "frequency_mhz": "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
        "temperature_c": "/sys/class/thermal/thermal_zone*/temp",
    }
    missing = {
        f"environment.{key}": f"{sources[key]} cannot be read here"
        if key in sources
        else f"{platform.system()} does not tell"
        for key, value in found.items()
        if value is None
    }
    return found, missing


def pair(before, after):
    return None if before is None or after is None else {"before": before, "after": after}


def state():
    """What may change while it runs."""
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {
        "frequency_mhz": frequency_mhz(),
        "temperature_c": temperature_c(),
        "load_average": load,
        "throttled": throttled(),
    }


def throttled():
    """Return the bits in which a Raspberry Pi says what slows it down, or None elsewhere."""
    if shutil.which("vcgencmd") is None:
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = ["vcgencmd", "get_throttled"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return int(said.stdout.partition("=")[2], 16)
    return None


def doubts(before, after, first_rounds=()):
    """What makes the figures less trustworthy, each in a line."""
    found = []
    change = drift(first_rounds)
    if change:
        found.append(
            f"the first model's own time {'rose' if change > 0 else 'fell'} by {abs(change):.0%} "
            "from the first third of the rounds to the last: the device throttles or warms up, "
            "or other work came and went; trust the ratios more than the milliseconds"
        )
    if (after.get("temperature_c") or 0) >= HOT_C:
        found.append(
            f"the processor is at {after['temperature_c']:.0f} C: cool it, many throttle from "
            f"{HOT_C} C on"
        )
    cpus = affinity() or range(os.cpu_count() or 1)
    load = (before["load_average"] or [0.0])[0]
    if load > 0.5 * len(cpus):
        found.append(f"load average {load:.1f} on {len(cpus)} CPUs: other work disturbs the timing")
    governors = per_cpu("cpufreq/scaling_governor") or []
    if any(governor != "performance" for governor in governors):
        found.append(f"governor {', '.join(governors)}: the clock moves; 'performance' is steadier")
    if len(per_cpu("cpu_capacity") or []) > 1:
        found.append("CPUs of different speed: pin with --cpu")
    if after.get("throttled"):
        reasons = [text for bit, text in enumerate(THROTTLED) if after["throttled"] >> bit & 1]
        if reasons:
            found.append(f"the Raspberry Pi reports {', '.join(reasons)}: mend power or cooling")
    if before["frequency_mhz"] and after["frequency_mhz"]:
        drop = 1 - after["frequency_mhz"] / before["frequency_mhz"]
        if drop > 0.1:
            found.append(f"the clock fell by {drop:.0%} while measuring: the device throttles")
    return found


# --- the command ------------------------------------------------------------------------------


def benchmark(options):
    """Measure all models; return the list of results."""
    for path in options.models:
        check_file(path)
    if options.cpu:
        pin(options.cpu)
    runtime = Runtime(options.runtime)
    names = options.name or unique_names(options.models)
    before = state()
    starts = [[] for _ in names]
    for _ in range(options.starts):
        for i, path in enumerate(options.models):
            say(f"{names[i]}: start-up and memory, alone")
            starts[i].append(run_alone(runtime, path, options))
    alone = [medians(of_model) for of_model in starts]
    asked = {key: getattr(options, key) for key in TOGETHER}
    samples, rounds = measure_together(runtime, options.models, **asked)
    after = state()
    described, missing = environment(before, after)
    warned = doubts(before, after, [*chain.from_iterable(rounds[0])])
    about = (described, missing, warned, protocol(options))
    found = [
        result(options, i, names[i], runtime, alone[i], samples[i], (rounds[i], rounds[0]), about)
        for i in range(len(names))
    ]
    for i, archive in enumerate(options.operators or ()):
        say(f"{names[i]}: each operator alone")
        path, seconds = options.models[i], f"--min-seconds={options.min_seconds}"
        try:
            known = run_alone(runtime, path, options, f"--operators={archive}", seconds)
        except BenchError as error:  # what was measured is not to be lost for it
            found[i]["unavailable"]["per_operator"] = str(error)
            continue
        if runtime.name == "ai-edge-litert" and runtime.version.startswith(LITERT_PROFILER):
            say(f"{names[i]}: all operators, by LiteRT's profiler")
            with contextlib.suppress(BenchError):
                known.update(run_alone(runtime, path, options, "--profiler", seconds))
        found[i]["per_operator"] = known
    return found


def result(options, number, name, runtime, alone, samples, rounds, about):
    """Put one model's figures under the contract's keys."""
    path = options.models[number]
    described, missing, warned, followed = about
    own, first = rounds
    ratios = ratios_to(first, own)
    interval = median_interval(ratios)
    memory = alone["peak_memory_bytes"]
    missing = dict(missing, arena_bytes="this runtime does not report its arena")
    if memory is None:
        missing["peak_memory_bytes"] = (
            f"{platform.system()} tells no peak of resident memory, or the model did not raise it"
        )
    if interval is None:
        missing["relative_latency_interval"] = "fewer than 6 loads"
    warned = list(warned)
    if alone["free_batch"]:
        warned.append(
            f"{name}: the batch dimension is free (1 was set), which can keep XNNPACK off: "
            "convert it with batch 1"
        )
    content = path.read_bytes()
    return {
        "model": name,
        "device": options.device or board() or platform.node(),
        "kind": "measured",
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "threads": options.threads,
        "init_ms": alone["init_ms"],
        "first_ms": alone["first_ms"],
        "latency_ms": summarize(samples),
        "relative_latency": statistics.median(ratios),
        "relative_latency_interval": interval,
        "peak_memory_bytes": memory,
        "peak_memory_how": MEMORY_HOW.get(sys.platform) if memory is not None else None,
        "arena_bytes": None,
        "path": str(path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "rounds": sum(map(len, own)),
        "environment": described,
        "warnings": warned,
        "unavailable": missing,
        "details": {
            "latency_interval_975_ms": in_ms(
                median_interval([statistics.median(load) for load in own], WITHIN_975)
            ),
            "relative_interval_975": median_interval(ratios, WITHIN_975),
        },
        "protocol": followed,
    }


def in_ms(interval):
    return None if interval is None else [ns / 1e6 for ns in interval]


def protocol(options):
    """Return what to ask for to have the same run again, and when this one ended."""
    return {
        **{key: getattr(options, key) for key in ("starts", *TOGETHER)},
        "cpu": sorted(options.cpu) if options.cpu else None,
        "runtime": options.runtime,
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def pin(cpus):
    """Run on these CPUs only; processes started from here inherit it."""
    if not hasattr(os, "sched_setaffinity"):
        raise BenchError(f"--cpu: {platform.system()} cannot pin a process", "unsupported")
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise BenchError(
            f"--cpu {','.join(map(str, sorted(cpus)))}: {error.strerror}; this process may use "
            f"{','.join(map(str, affinity()))}"
        ) from None


def say(text):
    print(PROGRESS + text, file=sys.stderr, flush=True)


class Progress:
    """Says how far the measuring is, at most every two seconds."""

    def __init__(self, count, loads):
        self._what = f"measuring {count} model{'s' if count > 1 else ''}, interleaved"
        self._loads = loads
        self._next = 0.0

    def __call__(self, load, of_load):
        now = time.perf_counter()
        fraction = (load + min(of_load, 1)) / self._loads
        if now >= self._next or fraction >= 1:
            self._next = now + 2
            say(f"{self._what}: {fraction:.0%}")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description="Measure .tflite models on this device; one JSON document on stdout.",
        epilog="By default each model gets 0.5 s of warm-up, then at least 50 rounds and 10 s, "
        "divided into 20 loads.",
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a .tflite file")
    parser.add_argument("--threads", type=positive, default=1, help="threads of one inference [1]")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="1 start, 12 loads, 0.1 s of warm-up, 20 rounds and 1 s per model",
    )
    parser.add_argument("--min-seconds", type=seconds, metavar="S", help="seconds per model [10]")
    parser.add_argument("--min-runs", type=positive, metavar="N", help="rounds at least [50]")
    parser.add_argument("--warmup-seconds", type=seconds, metavar="S", help="per model [0.5]")
    parser.add_argument("--starts", type=positive, metavar="N", help="fresh processes each [3]")
    parser.add_argument("--loads", type=positive, metavar="N", help="of all models together [20]")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs [0]")
    parser.add_argument("--cpu", type=cpus, metavar="N[,N]", help="run on these CPUs only")
    parser.add_argument("--runtime", choices=RUNTIMES, help="force one [the first installed]")
    parser.add_argument("--name", action="append", help="name of a model; once for each, in order")
    parser.add_argument("--device", help="name of this device in the result [board or host name]")
    # For the processes that this script and edgeprune start.
    parser.add_argument("--profiler", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--operators", action="append", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--errors-as-json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.name and len(options.name) != len(options.models):
        parser.error(f"{len(options.name)} --name for {len(options.models)} models: give each one")
    if options.operators and len(options.operators) != len(options.models):
        parser.error(f"{len(options.operators)} --operators for {len(options.models)} models")
    for key, value in (QUICK if options.quick else DEFAULTS).items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    return options


def positive(text):
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"got '{text}', supported: a whole number from 1 on")


def seconds(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"got '{text}', supported: seconds, 0 or more")


def cpus(text):
    with contextlib.suppress(ValueError):
        numbers = {int(part) for part in text.split(",")}
        if min(numbers) >= 0:
            return numbers
    raise argparse.ArgumentTypeError(f"got '{text}', supported: CPU numbers such as 0 or 2,3")


def main(arguments=None):
    options = parse(arguments)
    # Whatever the runtimes print, to fd 1 even, must not reach the JSON.
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so a child is ended too
    try:
        if options.alone:
            found = alone(Runtime(options.runtime), options.models[0], options)
        else:
            found = benchmark(options)
    except BenchError as error:
        if options.errors_as_json:
            json.dump({"error": str(error), "kind": error.kind}, stdout)
            stdout.close()
        else:
            print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        with stdout:
            stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        print(f"Error: the result cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
