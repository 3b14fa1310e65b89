"""Benchmark on a device in the network: the script and the models go there by ssh, figures back."""

import json
import re
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeprune.devices import script
from edgeprune.devices.connection import Connection, ConnectionLostError
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.profiling_script import archives, with_profiles
from edgeprune.devices.reach import SshReach
from edgeprune.devices.remote import shell_script
from edgeprune.errors import EdgepruneError, UnsupportedError
from edgeprune.files import sha256

ENVIRONMENT = ".cache/edgeprune/venv"
"""Where `edgeprune doctor --device` makes an environment, under the home folder there."""

OLDEST_PYTHON = (3, 9)
MODULES = {
    "ai-edge-litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
    "tensorflow": "tensorflow",
}
_KILLED = 128
_SIGNALS = {9: "SIGKILL", 11: "SIGSEGV", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS"}

_PROBE = (
    "import json,platform,sys,importlib.util as u;"
    "print(sys.argv[1],json.dumps({'python':sys.argv[2],'version':list(sys.version_info[:2]),"
    "'machine':platform.machine(),'modules':[n for n in sys.argv[3:] if u.find_spec(n)]}))"
)
# Each candidate is asked, also one that is no Python at all.
_ASK = (
    "LC_ALL=C; export LC_ALL; e=$HOME/$1; c=$2; p=$3; m=$4; shift 4; "
    'case $p in "~/"*) p=$HOME${p#?};; esac; '
    'for x in "$p" "$e/bin/python"; do printf "\\n"; "$x" -c "$c" "$m" "$x" "$@" </dev/null; done '
    "2>/dev/null; :"
)
# The program ends when this shell's input does: the connection, or the one who asked, is gone.
_RUN = (
    'LC_ALL=C; export LC_ALL; m=$1; shift; exec 3<&0; printf "\\n%s\\n" "$m"; '
    '"$@" </dev/null 3<&- & p=$!; '
    '{ cat <&3; kill "$p"; sleep 3; kill -9 "$p"; } >/dev/null 2>&1 & w=$!; '
    'wait "$p"; c=$?; exec 3<&-; kill "$w"; printf "\\n%s %s\\n" "$m" "$c"'
)


@dataclass(frozen=True)
class Interpreter:
    """A Python on a device.

    Attributes:
      python: its path.
      version: major and minor.
      machine: the processor's architecture.
      modules: which were found of those asked for.
    """

    python: str
    version: tuple[int, int]
    machine: str
    modules: tuple[str, ...]

    @property
    def is_recent(self) -> bool:
        """Whether the script runs on it."""
        return self.version >= OLDEST_PYTHON

    def has(self, runtime: str | None) -> bool:
        """Whether it has NumPy and a runtime, or any if None."""
        wanted = [MODULES[runtime]] if runtime else MODULES.values()
        return "numpy" in self.modules and any(name in self.modules for name in wanted)

    def __str__(self) -> str:
        return f"{self.python} ({self.version[0]}.{self.version[1]})"


def run(models: Sequence[str], profile: DeviceProfile, options: RunOptions) -> list[ModelBenchmark]:
    """Time .tflite models on the device of a profile, interleaved, and compare with the first.

    The script and the models are sent into a fresh temporary folder there, which is removed
    afterwards, whatever happens. A connection that breaks is made anew once.

    Args:
      models: paths on this machine.
      profile: of a device with backend ``ssh``.
      options: for the run.

    Raises:
      InputError: no host is set, its key is not known, a model is not usable, or an argument is
        wrong.
      UnsupportedError: there is no runtime there, or it lacks an operator.
      EdgepruneError: the device cannot be reached, has no room, or did not end in time.
    """
    names_for(models, options)
    try:
        return _attempt(models, profile, options)
    except ConnectionLostError as error:
        options.say(f"{error}; trying once more")
    try:
        return _attempt(models, profile, options)
    except ConnectionLostError as error:
        raise EdgepruneError(
            f"{error}, twice; check its power supply and network, then run again"
        ) from error


def find_pythons(connection: Connection, reach: SshReach) -> list[Interpreter]:
    """Return the Pythons there: the profile's, and that of the environment made by the doctor."""
    mark = secrets.token_hex(8)
    words = [ENVIRONMENT, _PROBE, reach.python, mark, *MODULES.values(), "numpy"]
    ended = connection.call(shell_script(_ASK, *words))
    found = []
    for line in ended.output.splitlines():
        if line.startswith(mark):
            interpreter = _interpreter(line.removeprefix(mark))
            found += [interpreter] if interpreter else []
    return found


def choose_python(
    found: Sequence[Interpreter], profile: DeviceProfile, runtime: str | None
) -> Interpreter:
    """Return the first Python that can run models.

    Raises:
      UnsupportedError: none can.
    """
    for interpreter in found:
        if interpreter.is_recent and interpreter.has(runtime):
            return interpreter
    set_up = f"set it up with: edgeprune doctor --device {profile.file or profile.name}"
    assert isinstance(profile.reach, SshReach)
    if not found:
        raise UnsupportedError(
            f"{profile.reach.host}: {profile.reach.python} is no Python there; install Python 3.9 "
            f"or newer, or set reach.python, then {set_up}"
        )
    told = ", ".join(map(str, found))
    raise UnsupportedError(
        f"{profile.reach.host}: no {runtime or 'TFLite runtime'} with NumPy in {told}; {set_up}"
    )


def _attempt(
    models: Sequence[str], profile: DeviceProfile, options: RunOptions
) -> list[ModelBenchmark]:
    reach = profile.reach
    assert isinstance(reach, SshReach)
    with Connection(reach, options.stop) as connection:
        options.say(f"connected to {connection.host}")
        found = find_pythons(connection, reach)
        interpreter = choose_python(found, profile, options.runtime_on(profile))
        program = connection.save(script.bench_script(), "bench_on_device.py")
        files = []
        for number, model in enumerate(models):
            options.say(f"copying {Path(model).name} to {connection.host}")
            files.append(connection.save(Path(model), f"model-{number}.tflite"))
        with archives(models, options) as cut:
            parts = [connection.save(archive, archive.name) for archive in cut]
        arguments = script.arguments(models, files, parts, profile, options)
        command = [interpreter.python, program, *arguments]
        try:
            rows = _measure(connection, command, models, profile, options)
        except ConnectionLostError:
            raise
        except EdgepruneError as error:
            raise type(error)(_with_local_names(str(error), files, models)) from error
    for row, model in zip(rows, models, strict=True):
        if row.sha256 != sha256(Path(model)):
            raise EdgepruneError(
                f"{connection.host} measured another file than {model}: its copy there was "
                "damaged, or the file was changed meanwhile; run it again"
            )
    return with_profiles(rows, options)


def _measure(
    connection: Connection,
    command: Sequence[str],
    models: Sequence[str],
    profile: DeviceProfile,
    options: RunOptions,
) -> list[ModelBenchmark]:
    mark = secrets.token_hex(8)
    limit = options.limit_seconds(len(models))
    ended = connection.call(
        shell_script(_RUN, mark, *command),
        limit,
        stdin=subprocess.PIPE,
        on_line=partial(script.take_progress, options),
    )
    host = connection.host
    if ended.late:
        raise EdgepruneError(f"{host}: {script.too_late(limit)}")
    if ended.endless:
        raise EdgepruneError(f"{host} sent text without end in place of a result; run it again")
    # Start-up files and runtimes may print anything before and after.
    framed = re.search(rf"^{mark}\n(.*)\n{mark} (\d+)$", ended.output, re.DOTALL | re.MULTILINE)
    if framed is None:
        raise ConnectionLostError(f"the connection to {host} was lost before the result was there")
    text, code = framed[1], int(framed[2])
    if code > _KILLED:
        name = _SIGNALS.get(code - _KILLED, f"signal {code - _KILLED}")
        raise EdgepruneError(
            f"the benchmark was killed on {host} ({name}): its memory may be too small; measure "
            "fewer or smaller models at once"
        )
    return script.results(text, code, ended.said, models, profile, options, host)


def _with_local_names(text: str, files: Sequence[str], models: Sequence[str]) -> str:
    """Name models in an error by their paths on this machine."""
    for file, model in zip(files, models, strict=True):
        text = text.replace(file, model)
    return text


def _interpreter(text: str) -> Interpreter | None:
    try:
        said = json.loads(text)
        major, minor = map(int, said["version"])
        modules = tuple(map(str, said["modules"]))
        python, machine = str(said["python"]), str(said["machine"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not (python and python.isprintable()):
        return None
    return Interpreter(python, (major, minor), machine, modules)
