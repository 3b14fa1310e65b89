"""A device of one's own: a real OpenSSH server on this machine, with a home that has a runtime."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeprune.devices.sandbox import QEMU, make_sandbox

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@dataclass
class Server:
    """What a test can know and change of the device."""

    folder: Path
    home: Path
    port: int
    identity: Path
    known_hosts: Path
    process: subprocess.Popen

    def connections(self):
        """The processes that serve connections."""
        return _children(self.process.pid)

    def drop(self):
        """Break all connections, as a device does that loses its power."""
        for child in self.connections():
            for process in [*_descendants(child), child]:
                _kill(process)

    def temporary_folders(self, folder=None):
        return list(Path(folder or self.folder / "tmp").glob("edgeprune-*"))

    def profile(self, where, name="board", reach="", **changes):
        """Write a profile and return its path."""
        settings = {
            "host": "127.0.0.1",
            "port": self.port,
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "folder": str(self.folder / "tmp"),
            **changes,
        }
        lines = [f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None]
        path = Path(where) / f"{name}.toml"
        path.write_text(
            'description = "loopback"\nbackend = "ssh"\nruntime = "tflite-runtime"\n'
            f"{reach}[reach]\n" + "\n".join(lines) + "\n"
        )
        return str(path)


@pytest.fixture(scope="session")
def device_environment(tmp_path_factory):
    """An environment as a device has it: tflite-runtime, NumPy 1 and nothing else."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "tflite-runtime", "numpy<2"]
    subprocess.run(pip, check=True)
    return folder


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory):
    yield from _serve(tmp_path_factory.mktemp("sshd"))


@pytest.fixture
def bare_device(ssh_server):
    """The server with a home as new."""
    shutil.rmtree(ssh_server.home, ignore_errors=True)
    ssh_server.home.mkdir()
    (ssh_server.folder / "tmp").mkdir(exist_ok=True)
    yield ssh_server
    deadline = time.monotonic() + 10
    while ssh_server.connections() and time.monotonic() < deadline:
        time.sleep(0.02)
    ssh_server.drop()


@pytest.fixture
def device(bare_device, device_environment):
    """A device with a runtime where the doctor puts it."""
    (bare_device.home / ".cache" / "edgeprune").mkdir(parents=True)
    (bare_device.home / ".cache" / "edgeprune" / "venv").symlink_to(device_environment)
    return bare_device


@pytest.fixture(scope="session")
def shell_server(tmp_path_factory):
    """Return a function that starts a server whose users have another shell."""
    running = []

    def start(shell):
        server = _serve(tmp_path_factory.mktemp("sshd"), shell)
        running.append(server)
        return next(server)

    yield start
    for server in running:
        next(server, None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A .tflite file of one small layer."""
    import numpy as np
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).standard_normal((64, 64)), tf.float32)
    function = tf.function(
        lambda x: tf.nn.relu(tf.matmul(x, weights)),
        input_signature=[tf.TensorSpec((1, 64), tf.float32)],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    path = tmp_path_factory.mktemp("tiny") / "tiny.tflite"
    path.write_bytes(converter.convert())
    return path


def _serve(folder, shell=None):
    assert SSHD, "the tests of ssh need a server: apt-get install openssh-server"
    home = folder / "home"
    home.mkdir()
    (folder / "tmp").mkdir()
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
        subprocess.run(command, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    public = (folder / "user.pub").read_text()
    (folder / "authorized").write_text(f'environment="HOME={home}" {public}')
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nPermitUserEnvironment yes\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPrintMotd no\n"
        + (f'ForceCommand exec {shell} -c "$SSH_ORIGINAL_COMMAND"\n' if shell else "")
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "config"],
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(port, process, folder / "log")
        yield Server(folder, home, port, folder / "user", folder / "known", process)
    finally:
        for child in _descendants(process.pid):
            _kill(child)
        process.terminate()
        process.wait(10)


def _wait_for(port, process, log):
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def _children(process):
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _descendants(process):
    return [found for child in _children(process) for found in (child, *_descendants(child))]


def _kill(process):
    try:
        if Path(f"/proc/{process}/exe").resolve().name.startswith("sshd"):
            os.kill(process, signal.SIGKILL)
    except OSError:
        pass


def _toml(value):
    return str(value) if isinstance(value, int) else '"' + _escaped(value) + '"'


def _escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"')


@pytest.fixture(scope="session")
def arm64_sandbox(request):
    """The emulated device's sandbox: fetched once, then kept in pytest's cache."""
    needs = "the tests of the emulated device need: apt-get install "
    assert shutil.which(QEMU), f"{needs}qemu-user-static"
    folder = request.config.cache.mkdir("emulated-arm64") / "sandbox"
    return make_sandbox(folder)
