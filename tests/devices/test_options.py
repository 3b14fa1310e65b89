"""Options: what stands in for what was not asked, and that it is as in the script."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.devices import options
from edgeprune.devices.options import RunOptions, names_for, unique_names
from edgeprune.devices.profile import DeviceProfile
from edgeprune.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_on_device.py"
SPEC = importlib.util.spec_from_file_location("bench_for_options", SCRIPT)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)


def test_defaults_are_the_scripts():
    assert options.DEFAULTS == bench.DEFAULTS
    assert options.QUICK == bench.QUICK


@given(st.lists(st.text("ab/.", max_size=6), max_size=6))
def test_names_are_the_scripts(paths):
    assert list(unique_names(paths)) == bench.unique_names(paths)


def test_names_that_were_given():
    assert names_for(["x/a", "y/a"], RunOptions()) == ("x/a", "y/a")
    assert names_for(["x/a"], RunOptions(names=("mine",))) == ("mine",)
    with pytest.raises(InputError, match="got 1 names for 2 models"):
        names_for(["a", "b"], RunOptions(names=("mine",)))


def test_the_profile_stands_in_for_what_was_not_asked():
    profile = DeviceProfile("x", "x", "local", "tensorflow", threads=4, cpus=(1, 2))
    nothing, asked = RunOptions(), RunOptions(threads=2, cpus=(0,), runtime="tflite-runtime")
    assert nothing.threads_on(profile) == 4
    assert nothing.cpus_on(profile) == (1, 2)
    assert nothing.runtime_on(profile) == "tensorflow"
    assert asked.threads_on(profile) == 2
    assert asked.cpus_on(profile) == (0,)
    assert asked.runtime_on(profile) == "tflite-runtime"
    assert RunOptions().runtime_on(DeviceProfile("x", "x", "local", "any")) is None


def test_the_limit_follows_from_the_time_asked_for():
    # Twice 10 s and 0.5 s, three starts of 30 s and 20 loads of 5 s, for each model; two minutes
    # beside.
    assert RunOptions().limit_seconds(2) == 120 + 2 * (2 * 10.5 + 3 * 30 + 20 * 5)
    few = RunOptions(min_seconds=60, starts=1, loads=2)
    assert few.limit_seconds(1) == 120 + 2 * 60.5 + 30 + 10
    assert RunOptions(timeout_seconds=7).limit_seconds(9) == 7
    assert RunOptions(quick=True).value("min_runs") == 20
    assert RunOptions(quick=True, min_runs=3).value("min_runs") == 3
