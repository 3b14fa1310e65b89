"""Benchmark on this machine, with the same script that runs on every other device."""

import sys
from collections.abc import Sequence
from functools import partial

from edgeprune.devices import process, script
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.profiling_script import archives, with_profiles
from edgeprune.errors import EdgepruneError


def run(models: Sequence[str], profile: DeviceProfile, options: RunOptions) -> list[ModelBenchmark]:
    """Time .tflite models on this machine, interleaved, and compare them with the first.

    Args:
      models: paths.
      profile: of this machine.
      options: for the run.

    Raises:
      InputError: a file is missing or is no usable .tflite model, or an argument is wrong.
      UnsupportedError: a model needs operators that the runtime lacks, or there is no runtime.
      EdgepruneError: the runtime crashed, or did not end in time.
    """
    command = [sys.executable, str(script.bench_script())]
    limit = options.limit_seconds(len(models))
    with archives(models, options) as cut:
        files = [str(archive) for archive in cut]
        command += script.arguments(models, models, files, profile, options)
        ended = process.run(
            command, limit, stop=options.stop, on_line=partial(script.take_progress, options)
        )
    if ended.late:
        raise EdgepruneError(script.too_late(limit))
    rows = script.results(ended.output, ended.code, ended.said, models, profile, options)
    return with_profiles(rows, options)
