"""`edgeprune devices` as a process: what it prints, and what a hostile profile cannot do."""

import json
import os
import subprocess
import sys

import pytest

KEYS = [
    "name",
    "kind",
    "backend",
    "runtime",
    "description",
    "reachable",
    "reason",
    "unsourced",
    "file",
]


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the command in a folder of its own."""
    folder = tmp_path / "work"
    (folder / "devices").mkdir(parents=True)
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}

    def run(*arguments, **profiles):
        for name, text in profiles.items():
            (folder / "devices" / f"{name}.toml").write_text(text)
        command = [sys.executable, "-m", "edgeprune", "devices", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    run.folder = folder
    return run


def test_json_is_all_that_is_printed(run):
    ran = run("--json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    records = {record["name"]: record for record in json.loads(ran.stdout)}
    assert all(list(record) == KEYS for record in records.values())
    assert len(records) == 12

    local = records["local"]
    assert (local["kind"], local["backend"], local["reachable"]) == ("measured", "local", True)
    assert local["file"].endswith(".toml")
    emulated = records["emulated-arm64"]
    assert (emulated["kind"], emulated["reachable"]) == ("simulated", False)
    assert records["ethos-u65-512"]["kind"] == "predicted"
    assert records["raspberry-pi-5"]["reason"].startswith("no host is set")
    assert not any(record["unsourced"] for record in records.values())


def test_the_table_and_the_reasons(run):
    ran = run(pi='extends = "raspberry-pi-4"\nthreads = 4\n')
    assert ran.returncode == 0, ran.stderr
    head, _, first, *rest = ran.stdout.splitlines()
    assert head.split() == ["device", "figures", "reachable", "description"]
    assert first.split()[:3] == ["pi", "measured", "no"]
    assert "local" in [line.split()[0] for line in rest if line]
    # Devices that lack the same thing share a line.
    pis = "not reachable: pi, raspberry-pi-4, raspberry-pi-5, raspberry-pi-zero-2w"
    assert rest[rest.index(pis) + 1].startswith("  no host is set; write devices/my-device.toml")


def test_a_broken_profile_does_not_hide_the_others(run):
    ran = run("--json", broken="threads = 0\n", mine='extends = "raspberry-pi-4"\nthreads = 4\n')
    assert ran.returncode == 0, ran.stderr
    records = {record["name"]: record for record in json.loads(ran.stdout)}
    assert len(records) == 14
    assert records["broken"]["kind"] is None
    assert not records["broken"]["reachable"]
    assert records["broken"]["reason"] == (
        "device profile devices/broken.toml: key 'description' is missing"
    )
    assert records["mine"]["unsourced"] == ["threads"]


def test_a_hostile_profile_runs_nothing(run):
    """Settings that look like options or commands are refused, or stay text."""
    ssh = 'description = "x"\nbackend = "ssh"\n[reach]\n'
    closed = f'{ssh}host = "127.0.0.1"\nport = 1\n'
    adb = 'description = "x"\nbackend = "adb"\n[reach]\n'
    ran = run(
        "--json",
        option=f'{ssh}host = "-oProxyCommand=touch pwned"\n',
        shell=f'{ssh}host = "localhost;touch pwned"\n',
        user=f'{closed}user = "$(touch pwned)"\n',
        folder=f'{closed}folder = "/tmp/$(touch pwned)"\n',
        python=f'{closed}python = "touch pwned;"\n',
        known=f'{closed}known_hosts = "\\" -oProxyCommand=touch pwned"\n',
        serial=f'{adb}serial = "x; touch pwned"\n',
        binary=f'{adb}benchmark_model = "$(touch pwned)"\n',
        escape='description = "\\u001b[2J"\nbackend = "local"\n',
    )
    assert ran.returncode == 0, ran.stderr
    reasons = {record["name"]: record["reason"] for record in json.loads(ran.stdout)}
    assert "reach.host must be a host name or an address" in reasons["option"]
    assert "reach.host must be a host name or an address" in reasons["shell"]
    assert "reach.user must be a user name" in reasons["user"]
    assert "reach.serial must be" in reasons["serial"]
    assert "description must be printable text" in reasons["escape"]
    for name in ("folder", "python", "known"):
        assert reasons[name].startswith("127.0.0.1 is there, but no ssh server answers")
        assert "refused" in reasons[name]
    assert reasons["binary"].endswith("$(touch pwned) is not there")
    assert "\x1b" not in ran.stdout
    assert not list(run.folder.parent.rglob("*pwned*"))
