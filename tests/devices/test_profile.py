"""Profiles: what ships, what a user's own may say, and what is refused by name."""

import configparser
import os
import string
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.devices.lookup import list_profiles, load_profile, shipped_folder
from edgeprune.devices.profile import (
    KEYS,
    KINDS,
    REACHES,
    RUNTIMES,
    DeviceProfile,
    Limits,
    Rewards,
    statements,
)
from edgeprune.devices.reach import AdbReach, SshReach, VelaReach
from edgeprune.errors import InputError

FAMILY = {
    "local": "measured",
    "raspberry-pi-4": "measured",
    "raspberry-pi-5": "measured",
    "raspberry-pi-zero-2w": "measured",
    "android": "measured",
    "cortex-m4": "simulated",
    "cortex-m7": "simulated",
    "cortex-m55": "simulated",
    "ethos-u55-128": "predicted",
    "ethos-u65-512": "predicted",
    "ethos-u85-256": "predicted",
    "emulated-arm64": "simulated",
}
FILES = sorted(path.name for path in shipped_folder().glob("*.toml"))
MINIMAL = 'description = "a board"\nbackend = "ssh"\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder, with an empty configuration."""
    folder = tmp_path / "work"
    (folder / "devices").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "edgeprune" / "devices").mkdir(parents=True)
    return folder


def write(text, name="mine", folder=Path("devices")):
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_family_ships_with_its_kinds_of_figures(here):
    found = {entry.name: entry.profile.kind for entry in list_profiles()}
    assert found == FAMILY


@pytest.mark.parametrize("file", FILES)
def test_a_shipped_profile_says_all_and_where_from(file):
    document = tomllib.loads((shipped_folder() / file).read_text(encoding="utf-8"))
    profile = DeviceProfile.from_dict(document, "shipped", file)

    assert profile.unsourced == ()
    assert {"runtime", "threads", "channel_multiple"} <= set(statements(document))
    assert None not in vars(profile.rewards).values()
    assert set(profile.sources) == set(statements(document))
    for key, source in profile.sources.items():
        assert "https://" in source or source.startswith("measured for this project"), key


def test_facts_of_boards(here):
    """STM32L4R5ZI, STM32H7A3ZI and STM32N657 with their boards' flash, as their makers have it."""
    kib = 1024
    assert load_profile("cortex-m4").limits == Limits(2048 * kib, 640 * kib)
    m7 = load_profile("cortex-m7").limits
    assert m7 == Limits(2048 * kib, (1024 + 128 + 32) * kib, 1024 * kib)
    assert m7.largest_arena_bytes == 1024 * kib
    assert load_profile("cortex-m55").limits == Limits(65536 * kib, 4096 * kib)
    assert load_profile("cortex-m55").limits.largest_arena_bytes == 4096 * kib
    assert load_profile("raspberry-pi-zero-2w").limits.ram_bytes == 512 * kib * kib


@pytest.mark.parametrize("name", [name for name in FAMILY if name.startswith("ethos")])
def test_vela_knows_the_names_that_ship(name, here):
    from ethosu.vela.architecture_features import Accelerator

    ini = configparser.ConfigParser()
    ini.read_string((resources.files("ethosu") / "config_files/Arm/vela.ini").read_text())
    reach = load_profile(name).reach
    assert isinstance(reach, VelaReach)
    assert reach.accelerator == name
    assert reach.accelerator in Accelerator.member_list()
    assert f"System_Config.{reach.system_config}" in ini
    assert f"Memory_Mode.{reach.memory_mode}" in ini


def test_rewards_as_sets():
    rewards = Rewards(float16="size", int8="both", sparse_float="speed", sparse_int8="none")
    assert rewards.faster == {"int8", "sparse_float"}
    assert rewards.smaller == {"float16", "int8"}
    assert rewards.of("weight_clustering") is None


@pytest.mark.parametrize(
    ("machine", "sparse_float"),
    [("x86_64", "size"), ("AMD64", "size"), ("aarch64", "both"), ("arm64", "both")],
)
def test_local_knows_the_processor(machine, sparse_float, here, monkeypatch):
    """XNNPACK's sparse kernels pay on 64-bit Arm and are off on x86 with AVX."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    profile = load_profile("local")
    assert profile.name == "local"
    assert profile.rewards.sparse_float == sparse_float


def test_a_profile_that_changes_only_the_host(here):
    write('extends = "raspberry-pi-4"\n[reach]\nhost = "192.168.1.7"\n')
    mine, base = load_profile("mine"), load_profile("raspberry-pi-4")

    assert mine.name == "mine"
    assert mine.reach == SshReach(host="192.168.1.7")
    assert (mine.rewards, mine.limits, mine.sources) == (base.rewards, base.limits, base.sources)
    assert mine.unsourced == ()


def test_what_is_stated_anew_does_not_keep_the_old_source(here):
    write(
        'extends = "raspberry-pi-4"\nthreads = 4\n'
        '[rewards]\nint8 = "size"\n[sources]\nrewards.int8 = "my own stopwatch"\n'
    )
    mine = load_profile("mine")

    assert (mine.threads, mine.rewards.int8, mine.rewards.float16) == (4, "size", "size")
    assert mine.unsourced == ("threads",)
    assert mine.sources["rewards.int8"] == "my own stopwatch"
    assert mine.sources["rewards.float16"].startswith("https://")


def test_another_backend_takes_nothing_from_the_old_ways_settings(here):
    write(
        'extends = "ethos-u55-128"\nbackend = "tflm"\nruntime = "tflite-micro"\n'
        '[sources]\nruntime = "of TFLite Micro"\n'
    )
    mine = load_profile("mine")
    assert type(mine.reach) is REACHES["tflm"]
    assert mine.limits == load_profile("ethos-u55-128").limits


def test_a_chain_is_followed(here):
    write('extends = "raspberry-pi-5"\n[reach]\nhost = "pi"\nuser = "me"\n', "pi")
    write('extends = "pi"\ncpus = [3]\n[reach]\nuser = "you"\n', "pinned")
    pinned = load_profile("pinned")
    assert pinned.cpus == (3,)
    assert pinned.reach == SshReach(host="pi", user="you")
    assert pinned.channel_multiple == load_profile("raspberry-pi-5").channel_multiple


def test_a_file_may_extend_what_it_hides(here):
    write('extends = "android"\n[reach]\nserial = "R58"\n', "android")
    profile = load_profile("android")
    assert profile.reach == AdbReach(serial="R58")
    assert profile.runtime == "benchmark_model"


def test_a_profile_that_differs_does_not_describe_what_it_extends(here):
    write('extends = "cortex-m4"\nthreads = 1\n[limits]\nflash_bytes = 262144\n')
    assert load_profile("mine").description == (
        "like cortex-m4, but threads = 1, limits.flash_bytes = 262144"
    )
    write('extends = "cortex-m4"\ndescription = "ours"\n[limits]\nflash_bytes = 9\n')
    assert load_profile("mine").description == "ours"
    # Another way to the same device is no other device.
    write('extends = "raspberry-pi-4"\n[reach]\nhost = "pi.local"\n')
    assert load_profile("mine").description == load_profile("raspberry-pi-4").description


def test_profiles_are_looked_for_in_order(here, tmp_path):
    config = tmp_path / "config" / "edgeprune" / "devices"
    write(MINIMAL.replace("a board", "of the configuration"), "cortex-m4", config)
    assert load_profile("cortex-m4").description == "of the configuration"
    write(MINIMAL.replace("a board", "of this folder"), "cortex-m4")
    assert load_profile("cortex-m4").description == "of this folder"
    assert load_profile(config / "cortex-m4.toml").description == "of the configuration"
    assert [entry.name for entry in list_profiles()].count("cortex-m4") == 1


def test_without_xdg_the_configuration_is_at_home(here, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / ".config" / "edgeprune" / "devices"
    folder.mkdir(parents=True)
    write(MINIMAL, "at-home", folder)
    assert load_profile("at-home").file == folder / "at-home.toml"


def test_defaults_are_the_backends_own(here):
    write(MINIMAL)
    profile = load_profile("mine")
    assert (profile.runtime, profile.threads, profile.cpus) == ("any", 1, None)
    assert profile.rewards == Rewards()
    assert profile.limits == Limits()
    write('description = "a phone"\nbackend = "adb"\n')
    assert load_profile("mine").runtime == "benchmark_model"
    assert set(KINDS) == set(REACHES) == set(RUNTIMES)


def test_paths_are_those_of_the_file_that_names_them(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    write(MINIMAL + '[reach]\nidentity = "keys/id $(x)"\nknown_hosts = "~/known"\n')
    write('extends = "mine"\n[reach]\nhost = "pi"\n', "other", here)
    reach = load_profile(here / "other.toml").reach
    assert reach.identity == str(here / "devices" / "keys/id $(x)")
    assert reach.known_hosts == str(here / "home" / "known")


BAD = {
    "unknown key": ("speed = 3\n", "unknown key 'speed'; the keys here are extends, description"),
    "unknown reward": ('[rewards]\nint4 = "both"\n', "rewards: unknown key 'int4'"),
    "reward of another kind": ("[rewards]\nint8 = true\n", "rewards: int8 must be one of none"),
    "threads as text": ('threads = "4"\n', "threads must be a whole number; got '4'"),
    "no thread": ("threads = 0\n", "threads must be 1 to 1024, got 0"),
    "threads without end": (f"threads = 0x{'f' * 9000}\n", "threads must be 1 to 1024, got a num"),
    "threads as truth": ("threads = true\n", "threads must be a whole number; got True"),
    "multiple": ("channel_multiple = 0\n", "channel_multiple must be at least 1, got 0"),
    "no cpu": ("cpus = []\n", "cpus must be numbers from 0, at least one; got ()"),
    "cpu": ("cpus = [-1]\n", "cpus must be numbers from 0"),
    "cpus": ('cpus = "0"\n', "cpus must be a list of whole numbers; got '0'"),
    "limit": ("[limits]\nflash_bytes = 0\n", "limits.flash_bytes must be at least 1, got 0"),
    "limits": ("limits = 5\n", "limits must be a table, got 5"),
    "runtime": ('runtime = "onnx"\n', "runtime must be one of any, ai-edge-litert"),
    "runtime elsewhere": (
        'runtime = "tflite-micro"\n',
        "runtime 'tflite-micro' does not run on backend 'ssh'; supported: any, ai-edge-litert",
    ),
    "reach": ('[reach]\nserial = "x"\n', "reach: unknown key 'serial'; the keys here are host"),
    "port": ("[reach]\nport = 70000\n", "reach.port must be 1 to 65535, got 70000"),
    "source of nothing": ('[sources]\nthreads = "x"\n', "sources: 'threads' is not stated"),
    "source in lines": (
        'threads = 1\n[sources]\nthreads = "a\\nb"\n',
        "sources: threads must be one line of text",
    ),
    "extends nothing": ('extends = "raspberry-pi-9"\n', "extends must name another profile"),
    "extends a path": ('extends = "../x"\n', "extends must name another profile"),
    "extends a number": ("extends = 5\n", "extends must name another profile; got 5"),
    "extends itself": ('extends = "mine"\n', "extends must name another profile; got 'mine'"),
    "no TOML": ("threads =\n", "is not TOML"),
    "too deep": (f"threads = {'[' * 5000}\n", "it is nested too deeply"),
    "escape codes": ('[reach]\nfolder = "\\u001b[2J"\n', "reach.folder must be printable text"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_by_name(case, here):
    text, message = BAD[case]
    head, _, tail = text.partition("[")
    tables = f"[{tail}" if tail and not head else ""
    path = write(MINIMAL + (tables or text))
    with pytest.raises(InputError) as raised:
        load_profile("mine")
    said = str(raised.value)
    assert message in said
    assert said.startswith(f"device profile {path}")
    assert "\n" not in said.replace(str(path), "")


@pytest.mark.parametrize("key", ["description", "backend"])
def test_what_must_be_said(key, here):
    write("".join(line for line in MINIMAL.splitlines(True) if not line.startswith(key)))
    with pytest.raises(InputError, match=f"key '{key}' is missing"):
        load_profile("mine")


SHELL = [
    "-oProxyCommand=id",
    "$(x)",
    "`x`",
    "a;x",
    "a|x",
    "a&x",
    "a'x",
    'a"x',
    "a\\x",
    "a b",
    "a\nb",
]
HOSTILE = {
    "host": [*SHELL, "a/b", ""],
    "user": [*SHELL, ""],
    "identity": ["a\nb", "\u202egnp.exe", ""],
    "python": ["-c", "py\0thon", ""],
    "folder": ["-rf", "/tmp/\x1b[2J"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values]
)
def test_settings_that_a_program_could_take_for_more_are_refused(key, value, here):
    with pytest.raises(InputError, match=f"reach.{key} must be"):
        SshReach(**{key: value})


@pytest.mark.parametrize("serial", ["-s", "a b", "$(x)", "a;b", ""])
def test_a_serial_is_no_option(serial):
    with pytest.raises(InputError, match=r"reach\.serial must be"):
        AdbReach(serial=serial)


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("ssh", {"host": "::1", "port": 22}),
        ("ssh", {"host": "fe80::1%eth0", "user": "pi@example.org"}),
        ("ssh", {"host": "raspberrypi.local", "folder": '/tmp/it\'s "quoted" $(touch pwned)'}),
        ("adb", {"serial": "192.168.1.5:5555", "folder": "/data/my folder"}),
    ],
)
def test_what_real_devices_are_called_is_kept_as_it_is(backend, settings):
    document = {"description": "x", "backend": backend, "reach": settings}
    reach = DeviceProfile.from_dict(document, "x", "file").reach
    assert {key: getattr(reach, key) for key in settings} == settings


def test_reach_and_backend_agree():
    with pytest.raises(InputError, match="reach must be SshReach for backend 'ssh'; got AdbReach"):
        DeviceProfile("x", "x", "ssh", "any", reach=AdbReach())


def test_an_unknown_name_is_told_the_known_ones(here):
    with pytest.raises(InputError, match="unknown device 'pi'; known: android, cortex-m4, "):
        load_profile("pi")
    with pytest.raises(InputError, match=r"unknown device '../../etc/passwd'"):
        load_profile("../../etc/passwd")
    with pytest.raises(InputError, match=r"device profile no\.toml does not exist"):
        load_profile("no.toml")
    with pytest.raises(InputError, match="rename it"):
        load_profile(write(MINIMAL, "my board"))


def test_a_folder_or_a_pipe_is_no_profile(here):
    os.mkfifo("pipe.toml")
    with pytest.raises(InputError, match=r"pipe\.toml is not a file"):
        load_profile("pipe.toml")


def test_a_broken_file_is_listed_with_what_is_wrong(here):
    write("threads = 0\n", "broken")
    (entry,) = [entry for entry in list_profiles() if entry.name == "broken"]
    assert entry.profile is None
    assert "key 'description' is missing" in entry.error


KEY = st.sampled_from(
    [*KEYS, "host", "port", "int8", "flash_bytes", "accelerator", "sandbox", "rewards.int8"]
) | st.text(max_size=5)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*KINDS, "any", "both", "x"])
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=12,
)


def refusal(document):
    """Return what is said against a document, None if nothing is."""
    try:
        DeviceProfile.from_dict(document, "x", "file")
    except InputError as error:
        return str(error)
    return None


@given(st.dictionaries(KEY, JUNK, max_size=8))
def test_junk_is_a_profile_or_refused(document):
    said = refusal({"description": "x", **document})
    if said is None:
        assert document["backend"] in KINDS
    else:
        assert said.startswith("file: ")


SHIPPED = [tomllib.loads((shipped_folder() / file).read_text(encoding="utf-8")) for file in FILES]


@given(st.sampled_from(SHIPPED), st.data())
def test_a_shipped_profile_with_one_value_spoilt(document, data):
    """Whatever stands in the place of one value, it is a profile, or the error names the key."""
    table = data.draw(st.sampled_from([None, "rewards", "limits", "reach", "sources"]))
    spoilt = {key: dict(v) if isinstance(v, dict) else v for key, v in document.items()}
    inside = spoilt if table is None else spoilt.setdefault(table, {})
    key = data.draw(st.sampled_from([*inside, "extra"]))
    inside[key] = data.draw(JUNK)
    said = refusal(spoilt)
    # Another backend asks for other settings: then it is those that are named.
    assert said is None or key in said or (key == "backend" and "reach" in said)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode))
def test_any_file_is_a_profile_or_refused(tmp_path, content):
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"any\.toml"):
        load_profile(path)
