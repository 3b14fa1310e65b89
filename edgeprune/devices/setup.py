"""Set a device up for benchmarks: look what it has, and install the runtime that it lacks."""

import shlex
from collections.abc import Callable
from pathlib import Path

from edgeprune.devices.check import Check
from edgeprune.devices.connection import Connection
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.reach import EmulatedReach, SshReach
from edgeprune.devices.reachable import probe
from edgeprune.devices.remote import shell_script
from edgeprune.devices.sandbox import make_sandbox
from edgeprune.devices.ssh import ENVIRONMENT, MODULES, OLDEST_PYTHON, Interpreter, find_pythons
from edgeprune.errors import EdgepruneError, InputError

# tflite-runtime's wheels end there, and are built for NumPy 1.
_LAST_FOR_TFLITE_RUNTIME = (3, 11)
_FIRST_FOR_LITERT = (3, 9)
_REQUIREMENTS = {
    "tflite-runtime": ("tflite-runtime>=2.14", "numpy<2"),
    "ai-edge-litert": ("ai-edge-litert>=2.1", "numpy"),
    "tensorflow": ("tensorflow",),
}
_INSTALL_SECONDS = 1800  # TensorFlow on a slow card and a slow line
_PLATFORMS = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_27",
    "manylinux_2_28",
    "manylinux_2_34",
)
_PIP = "-m pip install --quiet --disable-pip-version-check --no-input --retries 1 --timeout 20"

_BEGIN = 'LC_ALL=C; export LC_ALL; e=$HOME/$1; p=$2; case $p in "~" | "~/"*) p=$HOME${p#?};; esac; '
_MAKE = _BEGIN + 'mkdir -p "${e%/*}" && "$p" -m venv --clear "$e" </dev/null >&2'
_FILL = f'{_BEGIN}shift 2; "$e/bin/python" {_PIP} "$@" </dev/null >&2'
_TRY = '"$1" -c "import numpy, sys; sys.argv[1]; __import__(sys.argv[1])" "$2" </dev/null >&2'


def set_up(
    profile: DeviceProfile,
    *,
    wheels: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Look at a device, and make what measuring on it needs.

    On one that is reached by ssh: an environment in the user's home folder there,
    ``~/.cache/edgeprune/venv``, with the runtime that fits its Python, unless one is found.
    Nothing else there is touched. Of an emulated one: its sandbox. For all others: whether they
    can be reached.

    Args:
      profile: of the device.
      wheels: folder here with all that is to be installed, for a device that is not on the
        internet; None lets the device's pip fetch it.
      progress: called with a line of text as the work proceeds.

    Returns:
      What was found and done, in order; the last of them is not ok if it did not work out.
    """
    reach = profile.reach
    if isinstance(reach, EmulatedReach):
        try:
            made = make_sandbox(reach.folder, progress)
        except EdgepruneError as error:
            return [Check("sandbox", False, True, str(error), "")]
        return [Check("sandbox", True, True, f"{made.folder} has what it takes")]
    if not isinstance(reach, SshReach):
        (found,) = probe([profile])
        mend = "" if found.reachable else found.reason
        return [Check(f"{profile.name}", found.reachable, True, found.reason, mend)]
    files = _wheel_files(wheels)
    try:
        with Connection(reach) as connection:
            checks = [Check("connection", True, True, f"{connection.host} answers")]
            say = RunOptions(progress=progress).say
            return checks + _set_up(connection, reach, profile, files, say)
    except EdgepruneError as error:
        return [Check("connection", False, True, str(error), "")]


def _set_up(
    connection: Connection,
    reach: SshReach,
    profile: DeviceProfile,
    wheels: list[Path],
    say: Callable[[str], None],
) -> list[Check]:
    found = find_pythons(connection, reach)
    checks = [_python(found, reach)]
    if not checks[0].ok:
        return checks
    wanted = None if profile.runtime == "any" else profile.runtime
    usable = [own for own in found if own.is_recent and own.has(wanted)]
    if usable:
        return [*checks, _runtime(connection, usable[0], wanted, "was there already")]
    base = found[0]
    runtime = wanted or _fitting(base)
    if runtime == "tflite-runtime" and base.version > _LAST_FOR_TFLITE_RUNTIME:
        told = f"tflite-runtime has no wheels for {base}; its last are for Python 3.11"
        mend = 'set runtime = "ai-edge-litert" or "any" in the profile'
        return [*checks, Check("runtime", False, True, told, mend)]
    say(f"making an environment in ~/{ENVIRONMENT} on {connection.host}")
    made = connection.call(shell_script(_MAKE, ENVIRONMENT, reach.python), _INSTALL_SECONDS)
    if made.code != 0 or made.late:
        mend = (
            f"on the device: sudo apt-get install python3-venv (or what its system calls it); "
            f"then {_again(profile)}"
        )
        told = f"python -m venv failed: {made.said or made.ending}"
        return [*checks, Check("environment", False, True, told, mend)]
    checks.append(Check("environment", True, True, f"made in ~/{ENVIRONMENT}"))
    words = [*_REQUIREMENTS[runtime]]
    if wheels:
        for wheel in wheels:
            say(f"copying {wheel.name} to {connection.host}")
            connection.save(wheel, wheel.name)
        words = ["--no-index", "--find-links", connection.folder, *words]
    say(f"installing {' '.join(_REQUIREMENTS[runtime])} on {connection.host}")
    filled = connection.call(
        shell_script(_FILL, ENVIRONMENT, reach.python, *words), _INSTALL_SECONDS
    )
    if filled.code != 0 or filled.late:
        told = f"pip install failed: {filled.said or filled.ending}"
        return [*checks, Check("runtime", False, True, told, _by_hand(profile, base, runtime))]
    for own in find_pythons(connection, reach):
        if own.has(runtime):
            return [*checks, _runtime(connection, own, runtime, "was installed")]
    told = f"{runtime} was installed but is not found in ~/{ENVIRONMENT}"
    return [*checks, Check("runtime", False, True, told, _again(profile))]


def _python(found: list[Interpreter], reach: SshReach) -> Check:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    mend = f"install Python {oldest} or newer there, or set reach.python to one"
    if not found:
        return Check("python", False, True, f"{reach.python} is no Python there", mend)
    if not found[0].is_recent:
        return Check("python", False, True, f"{found[0]} is older than {oldest}", mend)
    return Check("python", True, True, f"{found[0]} on {found[0].machine}")


def _runtime(connection: Connection, own: Interpreter, wanted: str | None, how: str) -> Check:
    """Import the runtime there: what is installed may still not load."""
    runtime = next(name for name in MODULES if own.has(name) and wanted in (None, name))
    module = f"{MODULES[runtime]}{'' if runtime == 'tensorflow' else '.interpreter'}"
    tried = connection.call(shell_script(_TRY, own.python, module), _INSTALL_SECONDS)
    if tried.code != 0 or tried.late:
        told = f"{runtime} in {own} does not load: {tried.said or tried.ending}"
        mend = (
            f"on the device: remove ~/{ENVIRONMENT} and set it up again, or mend {own.python}: "
            f"it needs {' and '.join(_REQUIREMENTS[runtime])}"
        )
        return Check("runtime", False, True, told, mend)
    return Check("runtime", True, True, f"{runtime} {how}, in {own}")


def _fitting(base: Interpreter) -> str:
    """Choose the runtime: on 64-bit Arm tflite-runtime crashes on int8 models; see `crashes`."""
    arm = base.machine == "aarch64" and base.version >= _FIRST_FOR_LITERT
    old = base.version <= _LAST_FOR_TFLITE_RUNTIME and not arm
    return "tflite-runtime" if old else "ai-edge-litert"


def _by_hand(profile: DeviceProfile, base: Interpreter, runtime: str) -> str:
    """Return the commands that set up a device that is not on the internet."""
    version = ".".join(map(str, base.version))
    platforms = [f"--platform {name}_{base.machine}" for name in _PLATFORMS]
    requirements = " ".join(map(shlex.quote, _REQUIREMENTS[runtime]))
    return (
        "if it is not on the internet, fetch the wheels here: pip download --dest wheels "
        f"--only-binary=:all: --python-version {version} {' '.join(platforms)} {requirements}; "
        f"then {_again(profile)} --wheels wheels"
    )


def _again(profile: DeviceProfile) -> str:
    return f"edgeprune doctor --device {shlex.quote(str(profile.file or profile.name))}"


def _wheel_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    files = sorted(folder.glob("*.whl"))
    if not files:
        raise InputError(f"{folder} has no .whl file; fill it with pip download")
    return files
