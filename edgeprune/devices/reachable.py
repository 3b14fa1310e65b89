"""Whether devices can be reached now, and if not, what to do. Nothing is imported or run on them.

A device in the network is asked for one no-op over ssh, one behind adb is looked for in its list;
each within seconds, all at the same time.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from typing import assert_never

from edgeprune.devices import process
from edgeprune.devices.profile import DeviceProfile, Runtime
from edgeprune.devices.reach import (
    AdbReach,
    EmulatedReach,
    LocalReach,
    SshReach,
    TflmReach,
    VelaReach,
)
from edgeprune.devices.ssh_errors import explained, last_line

SSH_SECONDS = 8
ADB_SECONDS = 8
_CONNECT_SECONDS = 5
QEMU = "qemu-aarch64-static"
_MODULES = {
    "ai-edge-litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
    "tensorflow": "tensorflow",
    "tflite-micro": "tflite_micro",
    "ethos-u-vela": "ethosu",
}


@dataclass(frozen=True)
class Reachability:
    """The answer.

    Attributes:
      reachable: whether models could be run there now, as far as can be seen from here.
      reason: what was found, or what is missing and how to mend it.
    """

    reachable: bool
    reason: str


def probe(profiles: Sequence[DeviceProfile]) -> list[Reachability]:
    """Look for devices, all at the same time; the answers are in their order."""
    if not profiles:
        return []
    with ThreadPoolExecutor(max_workers=min(len(profiles), 32)) as pool:
        return list(pool.map(_probe, profiles))


def _probe(profile: DeviceProfile) -> Reachability:
    reach = profile.reach
    match reach:
        case LocalReach():
            runtimes = ["ai-edge-litert", "tflite-runtime", "tensorflow"]
            wanted = runtimes if profile.runtime == "any" else [profile.runtime]
            return _packages(wanted, "pip install ai-edge-litert")
        case TflmReach():
            return _packages([profile.runtime], "pip install 'edgeprune[mcu]'")
        case VelaReach():
            return _packages([profile.runtime], "pip install 'edgeprune[npu]'")
        case EmulatedReach():
            return _emulated(reach)
        case SshReach():
            return _ssh(reach)
        case AdbReach():
            return _adb(reach)
        case _:
            assert_never(reach)


def _packages(names: Sequence[Runtime | str], mend: str) -> Reachability:
    for name in names:
        # Finding a module's place does not import it.
        if util.find_spec(_MODULES[name]) is not None:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                version = "of unknown version"
            return Reachability(True, f"{name} {version} is installed")
    return Reachability(False, f"{' or '.join(names)} is not installed; {mend}")


def _emulated(reach: EmulatedReach) -> Reachability:
    if shutil.which(QEMU) is None:
        return Reachability(False, f"{QEMU} is not on the PATH; install qemu-user-static")
    if not any(reach.folder.glob("usr/bin/python3*")):
        return Reachability(
            False, f"no sandbox in {reach.folder}; edgeprune doctor --device NAME makes it"
        )
    return Reachability(True, f"{QEMU} and the sandbox in {reach.folder} are there")


def ssh_options(reach: SshReach) -> list[str]:
    """Return the arguments of ssh before the host: no questions asked, nothing forwarded."""
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    for name in ("ForwardAgent", "ForwardX11", "PermitLocalCommand"):
        options += ["-o", f"{name}=no"]
    options += ["-o", "ClearAllForwardings=yes"]
    if reach.known_hosts is not None:
        options += ["-o", f"UserKnownHostsFile={_quoted(reach.known_hosts)}"]
    if reach.identity is not None:
        # -i would ask for the file before percent signs are read, which have a meaning there.
        options += ["-o", f"IdentityFile={_quoted(reach.identity)}", "-o", "IdentitiesOnly=yes"]
    if reach.port is not None:
        options += ["-p", str(reach.port)]
    if reach.user is not None:
        options += ["-l", reach.user]
    return options


def _quoted(path: str) -> str:
    """Write a path as ssh's own parser of options reads it; no shell is involved."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _ssh(reach: SshReach) -> Reachability:
    if reach.host is None:
        return Reachability(
            False,
            "no host is set; write devices/my-device.toml with extends = "
            '"raspberry-pi-4" (say) and reach.host = "its address"',
        )
    command = ["ssh", *ssh_options(reach), "-o", "ControlPersist=no", "--", reach.host, "true"]
    code, said = _run(command, SSH_SECONDS)
    if code == 0:
        return Reachability(True, f"{reach.host} answers")
    return Reachability(False, explained(reach.host, said))


def _adb(reach: AdbReach) -> Reachability:
    if reach.benchmark_model is None:
        return Reachability(
            False,
            "no benchmark_model is set; write devices/my-phone.toml with extends = "
            '"android" and reach.benchmark_model = "the path of TFLite\'s binary"',
        )
    if not os.access(reach.benchmark_model, os.R_OK):
        return Reachability(False, f"reach.benchmark_model {reach.benchmark_model} is not there")
    if shutil.which("adb") is None:
        return Reachability(False, "adb is not on the PATH; install Android's platform tools")
    code, said = _run(["adb", "devices"], ADB_SECONDS)
    if code != 0:
        return Reachability(False, f"adb devices: {last_line(said)}")
    states = dict(line.split("\t", 1) for line in said.splitlines() if "\t" in line)
    if reach.serial is None and len(states) > 1:
        return Reachability(
            False, f"several devices ({', '.join(states)}); name one as reach.serial"
        )
    serial = reach.serial or next(iter(states), "a device")
    state = states.get(serial, "not listed").strip()
    return Reachability(state == "device", f"{serial} is {_STATES.get(state, state)}, says adb")


_STATES = {"device": "connected", "unauthorized": "unauthorized (allow debugging on its screen)"}


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """Run a program and return its exit code with all it printed.

    What it leaves in the background (a connection kept open, adb's server) may hold its output
    open, so that goes to a file; what it starts beside itself ends with it when the time is up.
    """
    with tempfile.TemporaryFile() as output:
        try:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return -1, f"{command[0]} cannot be started: {error.strerror}"
        try:
            code = started.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
        output.seek(0)
        # A server may say anything.
        text = process.plain(output.read(1 << 16).decode(errors="replace"))
    if code is None:
        return -1, f"no answer within {seconds:g} s"
    return code, text if code == 0 or text.strip() else f"exit code {code}"
