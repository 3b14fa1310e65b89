"""What can be reached now: real ssh, and stand-ins for programs that are not at hand."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.devices import reachable
from edgeprune.devices.profile import RUNTIMES, DeviceProfile
from edgeprune.devices.reach import (
    AdbReach,
    EmulatedReach,
    LocalReach,
    SshReach,
    TflmReach,
    VelaReach,
)
from edgeprune.devices.reachable import probe, ssh_options

VELA = VelaReach("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram")
BACKENDS = {
    LocalReach: "local",
    SshReach: "ssh",
    AdbReach: "adb",
    TflmReach: "tflm",
    VelaReach: "vela",
    EmulatedReach: "emulated",
}


def profile(reach, runtime=None):
    backend = BACKENDS[type(reach)]
    return DeviceProfile("x", "x", backend, runtime or RUNTIMES[backend][0], reach=reach)


def answer(reach, runtime=None):
    (found,) = probe([profile(reach, runtime)])
    return found


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a shell script on a PATH that has little else."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)

    return put


def test_answers_keep_the_order():
    found = probe([profile(LocalReach()), profile(SshReach()), profile(LocalReach())])
    assert [entry.reachable for entry in found] == [True, False, True]
    assert probe([]) == []


def test_packages_are_looked_for_but_not_imported():
    script = (
        "import sys\n"
        "from edgeprune.devices.lookup import load_profile\n"
        "from edgeprune.devices.reachable import probe\n"
        "found = probe([load_profile(n) for n in ('local', 'cortex-m4', 'ethos-u55-128')])\n"
        "print([entry.reason for entry in found])\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'ai_edge_litert', 'tflite_micro', 'ethosu'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "ai-edge-litert" in ran.stdout


def test_a_package_that_is_missing_is_named(monkeypatch):
    assert answer(LocalReach(), "tensorflow").reason.startswith("tensorflow 2.")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    for name in ("ethosu", "tflite_micro"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert answer(VELA).reason == "ethos-u-vela is not installed; pip install 'edgeprune[npu]'"
    assert (
        answer(TflmReach()).reason == "tflite-micro is not installed; pip install 'edgeprune[mcu]'"
    )


def test_ssh_without_a_host_says_what_to_write():
    found = answer(SshReach())
    assert not found.reachable
    assert "no host is set" in found.reason
    assert "reach.host" in found.reason


def test_ssh_that_is_refused_says_so():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    found = answer(SshReach(host="127.0.0.1", port=port))
    assert not found.reachable
    said = f"connect to host 127.0.0.1 port {port}: Connection refused"
    assert found.reason == (
        f"127.0.0.1 is there, but no ssh server answers ({said}); start it on the device, or set "
        "reach.port"
    )


def test_ssh_gets_every_setting_as_it_is(tmp_path):
    """The real ssh says how it understands the options, without connecting."""
    folder = tmp_path / 'it\'s "my" $(touch pwned) 100% folder'
    reach = SshReach("pi.local", 2222, "me", str(folder / "id"), str(folder / "known"))
    command = ["ssh", "-F", "none", "-G", *ssh_options(reach), "--", reach.host]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    understood = dict(line.partition(" ")[::2] for line in said.stdout.splitlines())

    assert understood["hostname"] == "pi.local"
    assert understood["port"] == "2222"
    assert understood["user"] == "me"
    # -G prints a percent sign as it was given, doubled
    assert understood["identityfile"].replace("%%", "%") == str(folder / "id")
    assert understood["userknownhostsfile"].replace("%%", "%") == str(folder / "known")
    assert understood["batchmode"] == "yes"
    assert understood["forwardagent"] == "no"
    assert list(tmp_path.iterdir()) == []


def test_ssh_that_hangs_is_ended_with_all_it_started(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(reachable, "SSH_SECONDS", 0.5)
    programs("ssh", f"sleep 60 & echo $! > '{tmp_path}/child'; wait")
    found = answer(SshReach(host="pi"))
    assert not found.reachable
    assert found.reason == (
        "pi does not answer (no answer within 0.5 s); is it switched on and in this network?"
    )
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not _alive(child):
            break
        time.sleep(0.05)
    assert not _alive(child)


def _alive(process):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_what_a_server_says_cannot_move_the_cursor(programs):
    programs("ssh", r"printf 'fine\n\033[2Jgone\007\n' >&2; exit 255")
    assert answer(SshReach(host="pi")).reason == "no connection to pi ([2Jgone); try `ssh pi true`"


def test_a_missing_ssh_is_an_answer(programs):
    found = answer(SshReach(host="pi"))
    assert found.reason.startswith(
        "no connection to pi (ssh cannot be started: No such file or directory); "
    )


LIST = "List of devices attached"


@pytest.mark.parametrize(
    ("listed", "serial", "reachable", "reason"),
    [
        ("R58\tdevice", None, True, "R58 is connected, says adb"),
        ("R58\tdevice\nR59\tdevice", "R59", True, "R59 is connected, says adb"),
        ("R58\tdevice\nR59\tdevice", None, False, "several devices (R58, R59)"),
        ("R58\tdevice", "R59", False, "R59 is not listed, says adb"),
        ("", None, False, "a device is not listed, says adb"),
        ("R58\toffline", None, False, "R58 is offline, says adb"),
        ("R58\tunauthorized", "R58", False, "allow debugging on its screen"),
    ],
)
def test_adb_devices(listed, serial, reachable, reason, programs, tmp_path):
    binary = tmp_path / "benchmark_model"
    binary.touch()
    (tmp_path / "list").write_text(f"{LIST}\n{listed}\n\n")
    programs("adb", f"test \"$*\" = devices && cat '{tmp_path}/list'")
    found = answer(AdbReach(serial, benchmark_model=str(binary)))
    assert found.reachable == reachable
    assert reason in found.reason


def test_adb_needs_its_parts(programs, tmp_path):
    assert "no benchmark_model is set" in answer(AdbReach()).reason
    absent = AdbReach(benchmark_model=str(tmp_path / "absent"))
    assert answer(absent).reason == f"reach.benchmark_model {tmp_path}/absent is not there"
    (tmp_path / "absent").touch()
    assert "adb is not on the PATH" in answer(absent).reason
    programs("adb", "echo 'error: no server' >&2; exit 1")
    assert answer(absent).reason == "adb devices: error: no server"


def test_emulation_needs_qemu_and_a_sandbox(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default = EmulatedReach()
    assert "qemu-aarch64-static is not on the PATH" in answer(default).reason
    programs("qemu-aarch64-static", "true")
    folder = tmp_path / "edgeprune" / "arm64-sandbox"
    assert f"no sandbox in {folder}" in answer(default).reason
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "usr" / "bin" / "python3").symlink_to("python3.11")
    assert answer(default).reachable
    assert not answer(EmulatedReach(sandbox=str(tmp_path / "other"))).reachable
