"""The doctor sets up a real device by ssh: from nothing, from wheels, and when it cannot."""

import json
import subprocess
import sys

import pytest

from edgeprune.devices.lookup import load_profile
from edgeprune.devices.setup import set_up
from edgeprune.errors import InputError

# It installs runtimes with pip.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """What `pip download` fetches for a device, by the doctor's own command."""
    import platform

    from edgeprune.devices.setup import _by_hand
    from edgeprune.devices.ssh import Interpreter

    folder = tmp_path_factory.mktemp("wheels")
    here = Interpreter("python3", (3, 11), platform.machine(), ())
    profile = load_profile("raspberry-pi-4")
    told = _by_hand(profile, here, "tflite-runtime")
    command = told[told.index("pip download") : told.index("; then")]
    assert told.endswith("raspberry-pi-4.toml --wheels wheels")
    subprocess.run(f"{sys.executable} -m {command} -q", shell=True, check=True, cwd=folder)
    return folder / "wheels"


def doctor(profile, *options):
    command = [sys.executable, "-m", "edgeprune", "doctor", "--device", profile, "--json"]
    ran = subprocess.run([*command, *options], capture_output=True, text=True)
    assert "Traceback" not in ran.stderr
    return ran, {check["name"]: check for check in json.loads(ran.stdout)}


def test_a_device_is_set_up_and_then_measures(bare_device, wheels, tiny_model, tmp_path):
    profile = bare_device.profile(tmp_path, python=sys.executable)
    ran, checks = doctor(profile, "--wheels", str(wheels))
    assert ran.returncode == 0, ran.stdout
    assert list(checks) == ["connection", "python", "environment", "runtime"]
    assert all(check["ok"] for check in checks.values())
    python = bare_device.home / ".cache" / "edgeprune" / "venv" / "bin" / "python"
    assert checks["runtime"]["found"] == f"tflite-runtime was installed, in {python} (3.11)"
    assert "installing tflite-runtime>=2.14 numpy<2 on 127.0.0.1" in ran.stderr
    assert bare_device.temporary_folders() == []

    command = [sys.executable, "-m", "edgeprune", "benchmark", "--quick", tiny_model]
    measured = subprocess.run([*command, "--device", profile], capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    assert "board: measured with tflite-runtime 2.14.0" in measured.stdout

    ran, checks = doctor(profile)
    assert ran.returncode == 0
    assert "was there already" in checks["runtime"]["found"]


def test_a_device_without_internet_is_told_what_to_do(bare_device, tmp_path):
    (bare_device.home / ".config" / "pip").mkdir(parents=True)
    (bare_device.home / ".config" / "pip" / "pip.conf").write_text(
        "[global]\nindex-url = http://127.0.0.1:1/\nextra-index-url =\nfind-links =\n"
    )
    ran, checks = doctor(bare_device.profile(tmp_path, python=sys.executable))
    assert ran.returncode == 1
    assert not checks["runtime"]["ok"]
    assert "No matching distribution" in checks["runtime"]["found"]
    assert "pip download --dest wheels" in checks["runtime"]["mend"]
    assert checks["runtime"]["mend"].endswith("board.toml --wheels wheels")


def test_a_python_that_cannot_make_environments(bare_device, tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] && echo "ensurepip is not available" >&2 && exit 1\n'
        f'exec {sys.executable} -I -S "$@"\n'
    )
    stand_in.chmod(0o755)
    _, checks = doctor(bare_device.profile(tmp_path, python=str(stand_in)))
    assert checks["environment"]["found"] == "python -m venv failed: ensurepip is not available"
    assert "apt-get install python3-venv" in checks["environment"]["mend"]


def test_a_runtime_that_does_not_load(bare_device, tmp_path):
    packages = tmp_path / "packages"
    (packages / "tflite_runtime").mkdir(parents=True)
    (packages / "tflite_runtime" / "__init__.py").touch()
    (packages / "tflite_runtime" / "interpreter.py").write_text("raise ImportError('GLIBC_2.99')")
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    stand_in.chmod(0o755)
    ran, checks = doctor(bare_device.profile(tmp_path, python=str(stand_in)))
    assert ran.returncode == 1
    assert "does not load: ImportError: GLIBC_2.99" in checks["runtime"]["found"]


def test_what_is_no_python_is_told(bare_device, tmp_path):
    _, checks = doctor(bare_device.profile(tmp_path, python="absent"))
    assert checks["python"]["found"] == "absent is no Python there"
    assert not (bare_device.home / ".cache" / "edgeprune" / "venv").exists()


def test_a_device_that_is_off_is_told(tmp_path):
    path = tmp_path / "off.toml"
    path.write_text('description = "off"\nbackend = "ssh"\n[reach]\nhost = "127.0.0.1"\nport = 1\n')
    ran, checks = doctor(str(path))
    assert ran.returncode == 1
    assert "Connection refused" in checks["connection"]["found"]


def test_other_devices_are_only_looked_for():
    (found,) = set_up(load_profile("local"))
    assert found.ok
    (found,) = set_up(load_profile("android"))
    assert not found.ok
    assert "no benchmark_model is set" in found.mend


def test_wheels_need_a_device_and_a_folder_with_some(tmp_path):
    command = [sys.executable, "-m", "edgeprune", "doctor", "--wheels", str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == 2
    with pytest.raises(InputError, match=r"has no \.whl file"):
        set_up(load_profile("raspberry-pi-4"), wheels=tmp_path)
