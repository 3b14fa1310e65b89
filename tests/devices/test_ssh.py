"""Measuring over a real ssh connection, and what goes wrong on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeprune.devices import ssh
from edgeprune.devices.run import benchmark
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

SHORT = {"min_seconds": 0.05, "min_runs": 20, "warmup_seconds": 0.01, "starts": 1}
HOSTILE = "it's \"my\" $(touch pwned) `touch pwned` ; & | > pwned * ~ \\ \\' é %h !! $HOME -x"


def python_that(folder, what):
    """A stand-in for the device's Python: asked what it is, it answers; else it does `what`."""
    path = folder / "python-stand-in"
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {REAL} "$@"\n{what}\n')
    path.chmod(0o755)
    return str(path)


REAL = '"$HOME/.cache/edgeprune/venv/bin/python"'


def test_two_models(device, tiny_model, tmp_path):
    said = []
    results = benchmark(
        [tiny_model, tiny_model], device=device.profile(tmp_path), progress=said.append, **SHORT
    )
    first, second = results
    assert [row.model for row in results] == ["tiny.tflite", "tiny.tflite (2)"]
    assert (first.device, first.kind, first.runtime) == ("board", "measured", "tflite-runtime")
    assert first.path == str(tiny_model)
    assert first.relative_latency == 1.0
    assert second.relative_latency > 0
    assert first.environment["numpy"].startswith("1.")
    assert first.protocol["backend"] == "ssh"
    assert said[0] == "connected to 127.0.0.1"
    assert any(line.startswith("measuring 2 models") for line in said)
    assert device.temporary_folders() == []


def test_time_by_operator(device, tiny_model, tmp_path):
    options = {**SHORT, "profile": True}
    found = benchmark([tiny_model, tiny_model], device=device.profile(tmp_path), **options)
    for row in found:
        (only,) = row.per_operator["operators"]
        assert (row.runtime, only["op"], only["share"]) == ("tflite-runtime", "FULLY_CONNECTED", 1)
        assert row.per_operator["whole_ms"] == row.latency_ms.median
    assert device.temporary_folders() == []


def test_the_profiles_threads_cpus_and_python(device, device_environment, tiny_model, tmp_path):
    cpu = min(os.sched_getaffinity(0))
    (device.home / ".cache" / "edgeprune" / "venv").unlink()
    profile = device.profile(
        tmp_path,
        reach=f"threads = 2\ncpus = [{cpu}]\n",
        python=str(device_environment / "bin" / "python"),
    )
    (result,) = benchmark(tiny_model, device=profile, **SHORT)
    assert result.threads == 2
    assert result.environment["affinity"] == [cpu]


@pytest.mark.parametrize("shell", ["dash", "fish", "bash --posix", "tcsh", "zsh"])
def test_other_shells(shell, shell_server, device_environment, tiny_model, tmp_path):
    if shutil.which(shell.split()[0]) is None:
        shell = "sh"  # the words are the same for every shell; see test_remote
    server = shell_server(shell)
    folder = server.folder / HOSTILE
    folder.mkdir()
    profile = server.profile(
        tmp_path, folder=str(folder), python=str(device_environment / "bin" / "python")
    )
    (result,) = benchmark(tiny_model, device=profile, **SHORT)
    assert result.latency_ms.runs >= 20
    assert list(folder.iterdir()) == []
    assert not list(server.folder.rglob("pwned"))


def test_paths_that_a_shell_would_read(device, device_environment, tiny_model, tmp_path):
    folder = device.folder / HOSTILE
    folder.mkdir()
    (folder / "environment").symlink_to(device_environment)
    model = tmp_path / f"{HOSTILE.replace('/', '')}.tflite"
    shutil.copy(tiny_model, model)
    profile = device.profile(
        tmp_path, folder=str(folder), python=str(folder / "environment" / "bin" / "python")
    )
    (result,) = benchmark(model, device=profile, names=[HOSTILE], **SHORT)
    assert (result.model, result.path) == (HOSTILE, str(model))
    assert [path.name for path in folder.iterdir()] == ["environment"]
    assert not list(tmp_path.rglob("pwned"))
    assert not list(device.folder.rglob("pwned"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("key", ["python", "folder"])
def test_a_hostile_profile_runs_nothing(key, device, tiny_model, tmp_path):
    hostile = f"{device.folder}/x'; touch {device.folder}/pwned; $(touch {device.folder}/pwned) '"
    profile = device.profile(tmp_path, **{key: hostile})
    if key == "python":  # there is another one
        benchmark(tiny_model, device=profile, **SHORT)
    else:
        with pytest.raises(EdgepruneError, match=r"set reach\.folder to one") as caught:
            benchmark(tiny_model, device=profile, **SHORT)
        assert "No such file" in str(caught.value)
    assert not list(device.folder.rglob("pwned"))


def test_a_path_from_home(device, tiny_model, tmp_path):
    profile = device.profile(tmp_path, python="~/.cache/edgeprune/venv/bin/python", folder="~")
    (result,) = benchmark(tiny_model, device=profile, **SHORT)
    assert result.runtime == "tflite-runtime"
    assert device.temporary_folders(device.home) == []


def test_no_runtime_there(device, tiny_model, tmp_path):
    (device.home / ".cache" / "edgeprune" / "venv").unlink()
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    profile = device.profile(tmp_path, python=str(bare / "bin" / "python"))
    with pytest.raises(UnsupportedError) as caught:
        benchmark(tiny_model, device=profile, **SHORT)
    assert str(caught.value).startswith("127.0.0.1: no tflite-runtime with NumPy in ")
    assert str(caught.value).endswith(f"set it up with: edgeprune doctor --device {profile}")
    assert device.temporary_folders() == []


def test_no_python_there(device, tiny_model, tmp_path):
    (device.home / ".cache" / "edgeprune" / "venv").unlink()
    with pytest.raises(UnsupportedError, match="absent is no Python there"):
        benchmark(tiny_model, device=device.profile(tmp_path, python="absent"), **SHORT)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(device, small_disk, tiny_model, tmp_path):
    large = tmp_path / "large.tflite"
    large.write_bytes(tiny_model.read_bytes() + bytes(1 << 20))
    if small_disk is None:  # without the right to mount: files there may not grow
        (device.home / ".bashrc").write_text("ulimit -f 200\n")
    folder = small_disk or device.folder / "tmp"
    with pytest.raises(EdgepruneError) as caught:
        benchmark(large, device=device.profile(tmp_path, folder=str(folder)), **SHORT)
    assert "no room for large.tflite" in str(caught.value)
    assert "set reach.folder to a folder on another disk" in str(caught.value)
    assert list(folder.iterdir()) == []


def test_files_that_may_not_grow(device, tiny_model, tmp_path):
    (device.home / ".bashrc").write_text("ulimit -f 4\n")
    with pytest.raises(EdgepruneError, match="no room for bench_on_device"):
        benchmark(tiny_model, device=device.profile(tmp_path), **SHORT)
    assert device.temporary_folders() == []


def test_a_host_key_that_has_changed(device, tiny_model, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True
    )
    key = (tmp_path / "other.pub").read_text().split()[1]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{device.port} ssh-ed25519 {key}\n")
    profile = device.profile(tmp_path, known_hosts=str(tmp_path / "known"))
    with pytest.raises(
        InputError, match=r"host key of 127\.0\.0\.1 is not the one known"
    ) as caught:
        benchmark(tiny_model, device=profile, **SHORT)
    assert "ssh-keygen -R" in str(caught.value)


def test_a_host_key_that_is_not_known(device, tiny_model, tmp_path):
    (tmp_path / "known").touch()
    profile = device.profile(tmp_path, known_hosts=str(tmp_path / "known"))
    with pytest.raises(InputError, match="not known yet: connect once with `ssh"):
        benchmark(tiny_model, device=profile, **SHORT)


def test_a_key_that_is_not_let_in(device, tiny_model, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True
    )
    profile = device.profile(tmp_path, identity=str(tmp_path / "other"))
    with pytest.raises(EdgepruneError, match=r"does not let this user in.*ssh-copy-id"):
        benchmark(tiny_model, device=profile, **SHORT)


def test_no_host_and_no_server(tiny_model, tmp_path):
    with pytest.raises(InputError, match="no host is set"):
        benchmark(tiny_model, device="raspberry-pi-5", **SHORT)
    (tmp_path / "off.toml").write_text(
        'description = "off"\nbackend = "ssh"\n[reach]\nhost = "127.0.0.1"\nport = 1\n'
    )
    with pytest.raises(EdgepruneError, match=r"^127\.0\.0\.1 is there.*refused\); start"):
        benchmark(tiny_model, device=str(tmp_path / "off.toml"), **SHORT)


def test_garbage_before_and_after_the_result(device, tiny_model, tmp_path):
    (device.home / ".bashrc").write_text(
        "echo Welcome to your board; printf 'no newline \\377\\000[{'\ntrap 'echo [bye]' EXIT\n"
    )
    (result,) = benchmark(tiny_model, device=device.profile(tmp_path), **SHORT)
    assert result.latency_ms.runs >= 20


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("echo nonsense", "what came back from 127.0.0.1 is not JSON"),
        ("echo '[]'", "sent results of 0 models, not of 1"),
        ("echo '[{}]'", "entry 1: key 'model' is missing"),
        ("printf '[{\"model\"'", "is not JSON"),
        ("exit 3", "ended with exit code 3: no message"),
        ("echo out of luck >&2; exit 1", "ended with exit code 1: out of luck"),
        ("kill -9 $$", r"killed on 127.0.0.1 \(SIGKILL\): its memory may be too small"),
        ("kill -11 $$", r"killed on 127.0.0.1 \(SIGSEGV\)"),
        ("yes '[bench] '", "sent text without end"),
    ],
)
def test_what_is_no_result(does, message, device, tiny_model, tmp_path):
    profile = device.profile(tmp_path, python=python_that(tmp_path, does))
    with pytest.raises(EdgepruneError, match=message) as caught:
        benchmark(tiny_model, device=profile, **SHORT)
    assert "\n" not in str(caught.value)
    assert device.temporary_folders() == []


def test_a_result_for_another_file(device, tiny_model, tmp_path):
    profile = device.profile(
        tmp_path,
        python=python_that(
            tmp_path,
            f'{REAL} "$@" | sed \'s/"sha256": "./"sha256": "x/\'',
        ),
    )
    with pytest.raises(EdgepruneError, match=r"measured another file than .*tiny\.tflite"):
        benchmark(tiny_model, device=profile, **SHORT)


def test_what_a_device_says_cannot_move_the_cursor(device, tiny_model, tmp_path):
    """Nor can it give its results other names."""
    lie = (
        "import json,sys; rows=json.load(sys.stdin); row=rows[0]; row['model']='\\x1b[2J'; "
        "row['device']='other'; row['kind']='predicted'; row['warnings']=['a\\x1b[2J\\nb']; "
        "row['runtime']='\\x07x'; json.dump(rows, sys.stdout)"
    )
    does = f'{REAL} "$@" | {REAL} -c "{lie}"'
    profile = device.profile(tmp_path, python=python_that(tmp_path, does))
    results = benchmark(tiny_model, device=profile, **SHORT)
    (row,) = results
    assert (row.model, row.device, row.kind) == ("tiny.tflite", "board", "measured")
    assert (row.runtime, row.warnings) == ("x", ("a[2J b",))
    says = 'printf \'{"kind": "input", "error": "a\\\\u001b[2J\\\\nb"}\'; exit 1'
    profile = device.profile(tmp_path, python=python_that(tmp_path, says))
    with pytest.raises(InputError, match=r"^a\[2J b$"):
        benchmark(tiny_model, device=profile, **SHORT)


def test_a_model_that_is_none_has_its_own_name(device, tiny_model, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(tiny_model.read_bytes()[:100])
    with pytest.raises(EdgepruneError, match=f"^{damaged}: .*(crashed on it|not a usable)"):
        benchmark(damaged, device=device.profile(tmp_path), **SHORT)


def test_a_hang_is_ended_there_too(device, tiny_model, tmp_path):
    alive = tmp_path / "alive"
    python = python_that(tmp_path, f"trap '' TERM; echo $$ > {alive}; while :; do sleep 0.1; done")
    profile = device.profile(tmp_path, python=python)
    with pytest.raises(EdgepruneError, match=r"did not end within 1 s.*--timeout"):
        benchmark(tiny_model, device=profile, timeout_seconds=1, **SHORT)
    assert ended(int(alive.read_text()))
    assert device.temporary_folders() == []


def test_a_connection_that_breaks_is_made_anew(device, tiny_model, tmp_path):
    said = []

    def progress(line):
        if line.startswith("measuring") and not any("once more" in old for old in said):
            device.drop()
        said.append(line)

    (result,) = benchmark(
        tiny_model,
        device=device.profile(tmp_path),
        progress=progress,
        **{**SHORT, "min_seconds": 1},
    )
    assert result.latency_ms.runs >= 20
    assert sum("was lost" in line and "trying once more" in line for line in said) == 1
    assert no_folders(device)


def test_a_connection_that_breaks_twice_is_given_up(device, tiny_model, tmp_path):
    def progress(line):
        if line.startswith("measuring"):
            device.drop()

    with pytest.raises(EdgepruneError, match=r"was lost .*, twice; check its power") as caught:
        benchmark(
            tiny_model,
            device=device.profile(tmp_path),
            progress=progress,
            **{**SHORT, "min_seconds": 30},
        )
    assert "\n" not in str(caught.value)
    # The device cleans up by itself when it has lost us.
    assert no_folders(device)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_there(number, device, tiny_model, tmp_path):
    profile = device.profile(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune", "benchmark", tiny_model, "--device", profile],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "measuring" in line:
            break
    assert len(device.temporary_folders()) == 1
    process.send_signal(number)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert no_folders(device)
    assert not running(device.folder)


def test_killed_outright_the_device_cleans_up(device, tiny_model, tmp_path):
    profile = device.profile(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune", "benchmark", tiny_model, "--device", profile],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "measuring" in line:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    device.drop()  # the network notices, at the latest when ssh's keep-alive ends
    assert no_folders(device)
    assert not running(device.folder)


@pytest.mark.slow
def test_one_failing_device_does_not_lose_the_other(device, tiny_model, tmp_path):
    good = device.profile(tmp_path, "good")
    bad = device.profile(tmp_path, "bad", python=python_that(tmp_path, "exit 3"))
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "edgeprune", "benchmark", "--quick", tiny_model]
    devices = ["--device", bad, "--device", good, "--output", output]
    ran = subprocess.run([*command, *devices], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "good: measured with tflite-runtime" in ran.stdout
    errors = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == ["Error: bad: the benchmark ended with exit code 3: no message"]
    assert "good: measuring 1 model" in ran.stderr
    first, second = json.loads(output.read_text())
    assert (first["device"], first["latency_ms"]) == ("bad", None)
    assert first["error"].endswith("no message")
    assert second["latency_ms"]["runs"] >= 20


@pytest.mark.slow
def test_the_same_device_is_compared_with_before(device, tiny_model, tmp_path):
    profile = device.profile(tmp_path)
    old = tmp_path / "old.json"
    benchmark_command = [sys.executable, "-m", "edgeprune", "benchmark", tiny_model]
    command = [*benchmark_command, "--quick", "--device", profile]
    subprocess.run([*command, "-o", old], capture_output=True, check=True)
    ran = subprocess.run([*command, "--compare", old], capture_output=True, text=True, check=True)
    assert f"compared with {old}" in ran.stdout
    assert "same file" in ran.stdout


def test_devices_run_at_the_same_time(device, tiny_model, tmp_path):
    """Each waits for the other to have begun."""
    begun = threading.Barrier(2, timeout=30)

    def progress(line):
        if line.endswith("connected to 127.0.0.1"):
            begun.wait()

    profiles = [device.profile(tmp_path, name) for name in ("a", "b")]
    results = benchmark(tiny_model, device=profiles, progress=progress, **SHORT)
    assert [row.device for row in results] == ["a", "b"]
    assert results.failures == {}


def test_ctrl_c_ends_all_devices(device, tiny_model, tmp_path):
    profiles = [device.profile(tmp_path, name) for name in ("a", "b")]
    command = [sys.executable, "-m", "edgeprune", "benchmark", tiny_model]
    for profile in profiles:
        command += ["--device", profile]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    measuring = set()
    for line in process.stderr:
        if "measuring" in line:
            measuring.add(line[0])
        if len(measuring) == 2:
            break
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in rest
    assert no_folders(device)
    assert not running(device.folder)


def test_what_python_says_of_itself_is_checked():
    assert ssh._interpreter("{") is None
    assert ssh._interpreter('{"python": "/p", "version": [3], "modules": []}') is None
    assert (
        ssh._interpreter('{"python": "a\\nb", "version": [3, 9], "machine": "", "modules": []}')
        is None
    )
    found = ssh._interpreter('{"python": "/p", "version": [3, 8], "machine": "x", "modules": []}')
    assert not found.is_recent
    assert not found.has(None)


def ended(process):
    return eventually(lambda: not Path(f"/proc/{process}").exists())


def no_folders(device):
    return eventually(lambda: not device.temporary_folders())


def running(folder):
    """Whether a process whose command names the folder goes on."""

    def found():
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{folder}/tmp".encode() in line.read_bytes():
                    return True
            except OSError:
                continue
        return False

    return not eventually(lambda: not found())


def eventually(holds):
    deadline = time.monotonic() + 15
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
