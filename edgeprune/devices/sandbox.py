"""A user space of 64-bit Arm in a folder: Debian's Python, NumPy and two TFLite runtimes.

Nothing of it is installed: the packages are only unpacked, and apt works on a state of its own,
so that neither the machine's packages nor its list of architectures change. No rights are needed.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.devices import process
from edgeprune.devices.rows import ending
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.files import sha256

QEMU = "qemu-aarch64-static"
MAKE = "edgeprune doctor --device"

# qemu 7.2 gets the sums of XNNPACK's kernels for SME wrong; few processors have that extension.
CPU = "max,sme=off"

# For Python 3.11, which is Debian 12's. tflite-runtime 2.14.0 is the last, and needs NumPy 1;
# ai-edge-litert from 2.2 on crashes at start under qemu 7.2.
WHEELS = {
    "numpy": ("1.26.4", "7ab55401287bfec946ced39700c053796e7cc0e3acbef09993a9ad2adba6ca6e"),
    "ai-edge-litert": (
        "2.1.6",
        "8475d18c73698d9244380ad72f67caf540e5c72d9a80c66d17c4b81ca81a21c8",
    ),
    "tflite-runtime": (
        "2.14.0",
        "ce9fa5d770a9725c746dcbf6f59f3178233b3759f09982e8b2db8d2234c333b0",
    ),
}
RUNTIMES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
"""Those inside, the preferred one first -> what Python imports."""
DEBIAN = "bookworm"
MIRROR = "http://deb.debian.org"
PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8"),
    *("libbz2-1.0", "liblzma5", "libssl3"),
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
)
PYTHON = "usr/bin/python3.11"
_WHEELS_FOLDER = "usr/local/lib/python3.11/dist-packages"
_PLATFORMS = (
    *("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64"),
    "manylinux_2_34_aarch64",
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RECORD = "sandbox.json"  # written last: what is without is no sandbox
_FORMAT = 1
_SECONDS = 900


@dataclass(frozen=True)
class Sandbox:
    """One that is whole.

    Attributes:
      folder: where it is.
      record: what it was made of: ``debian``, ``packages`` (name -> version and SHA-256),
        ``wheels`` (likewise), ``format``.
    """

    folder: Path
    record: dict[str, Any]

    def version(self, runtime: str) -> str:
        """Return the version of one of `RUNTIMES` inside."""
        return str(self.record["wheels"][runtime]["version"])

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs the Python inside, by itself, with arguments.

        Args:
          arguments: of Python, after ``-I``.
        """
        # This machine's libraries are of no use in there.
        apart = ["-U", "LD_PRELOAD", "-U", "LD_LIBRARY_PATH"]
        inside = [str(self.folder / PYTHON), "-I", *arguments]
        return [QEMU, "-cpu", CPU, *apart, "-L", str(self.folder), *inside]


def find_sandbox(folder: str | os.PathLike[str]) -> Sandbox | None:
    """Return the sandbox in a folder, or None where there is no whole and recent one."""
    place = Path(folder).absolute()
    try:
        record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    current = isinstance(record, dict) and record.get("format") == _FORMAT
    if not current or _pins(record) != _pins(_wanted({})):
        return None
    return Sandbox(place, record) if (place / PYTHON).is_file() else None


def make_sandbox(
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None = None,
    *,
    mirror: str = MIRROR,
) -> Sandbox:
    """Make the sandbox of the emulated device, unless it is there: 48 MB to fetch, 145 MB on disk.

    It is made beside its place and moved there whole. The wheels are pinned by version and hash;
    Debian's packages are what its stable release has, signed by Debian; their versions and
    hashes are recorded.

    Args:
      folder: where it is to be.
      progress: called with a line of text as the work proceeds.
      mirror: of Debian, which has ``/debian`` and ``/debian-security``.

    Raises:
      InputError: the folder holds something else, or cannot be written.
      UnsupportedError: apt, dpkg, pip, qemu or Debian's keys are missing here.
      EdgepruneError: something cannot be fetched, or does not run.
    """
    if found := find_sandbox(folder):
        return found
    place = Path(folder).absolute()
    _check_tools()
    _check_place(place)
    say = progress or (lambda line: None)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".arm64-sandbox-", dir=place.parent) as scratch:
            root = Path(scratch) / "root"
            record = _fill(root, Path(scratch), mirror, say)
            say("starting it once")
            _try(Sandbox(root, record))
            (root / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            _move(root, place, Path(scratch) / "old")
    except OSError as error:
        raise InputError(
            f"cannot make the sandbox {place}: {error.strerror or error}; "
            "choose a folder that you may write, on a disk with 200 MB to spare"
        ) from error
    made = find_sandbox(place)
    if made is None:
        raise EdgepruneError(f"the sandbox {place} was changed while it was made; make it again")
    say(f"made {place}")
    return made


def _wanted(packages: dict[str, Any]) -> dict[str, Any]:
    wheels = {name: {"version": pin[0], "sha256": pin[1]} for name, pin in WHEELS.items()}
    return {"format": _FORMAT, "debian": DEBIAN, "packages": packages, "wheels": wheels}


def _pins(record: dict[str, Any]) -> tuple[Any, Any]:
    return record.get("debian"), record.get("wheels")


def _check_tools() -> None:
    for program, package in (
        (QEMU, "qemu-user-static"),
        ("apt-get", "apt"),
        ("dpkg-deb", "dpkg"),
    ):
        if shutil.which(program) is None:
            raise UnsupportedError(
                f"{program} is not on the PATH; on Debian or Ubuntu: apt-get install {package}"
            )
    if not _KEYRING.is_file():
        raise UnsupportedError(
            f"Debian's keys are not in {_KEYRING}; apt-get install debian-archive-keyring"
        )


def _check_place(place: Path) -> None:
    """Refuse to replace what is not an earlier sandbox."""
    if place.is_dir() and ((place / _RECORD).is_file() or not any(place.iterdir())):
        return
    if place.exists() or place.is_symlink():
        raise InputError(f"{place} is there and is no sandbox; remove it, or name another folder")


def _fill(root: Path, scratch: Path, mirror: str, say: Callable[[str], None]) -> dict[str, Any]:
    debs = scratch / "packages"
    debs.mkdir()
    say(f"fetching {len(PACKAGES)} packages of Debian {DEBIAN} for 64-bit Arm")
    _fetch_packages(scratch / "apt", debs, mirror)
    packages: dict[str, Any] = {}
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)])
        name, version = _run(
            ["dpkg-deb", "-W", "--showformat=${Package} ${Version}", str(deb)]
        ).split()
        packages[name] = {"version": version, "sha256": sha256(deb)}
    say(f"fetching wheels: {', '.join(f'{name} {pin[0]}' for name, pin in WHEELS.items())}")
    wheels = _fetch_wheels(scratch)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / _WHEELS_FOLDER)
    return _wanted(packages)


def _fetch_packages(state: Path, target: Path, mirror: str) -> None:
    """Have apt fetch the packages of another architecture, and look at their signatures."""
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    sources = [
        f"deb [signed-by={_KEYRING}] {mirror}/{archive} {suite} main"
        for archive, suite in (("debian", DEBIAN), ("debian-security", f"{DEBIAN}-security"))
    ]
    (state / "sources.list").write_text("".join(f"{line}\n" for line in sources))
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "APT::Update::Error-Mode": "any",  # apt takes an old list for a small matter
        "Acquire::Languages": "none",
        "Dir::State": str(state),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
        "Dir::Etc::parts": "/dev/null",  # hooks that clean this machine's caches are in there
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::sourcelist": str(state / "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
    }
    lines = [f'{key} "{value}";' for key, value in settings.items()]
    # How to reach the network from here, such as by a proxy, stays as it is set up.
    network = ("Acquire::http::", "Acquire::https::")
    dumped = _run(["apt-config", "dump", "Acquire"]).splitlines()
    lines += [line for line in dumped if line.startswith(network)]
    (state / "apt.conf").write_text("".join(f"{line}\n" for line in lines))
    environment = {"APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}
    _run(["apt-get", "-q", "update"], environment)
    _run(["apt-get", "-q", "download", *PACKAGES], environment, target)


def _fetch_wheels(scratch: Path) -> list[Path]:
    folder, requirements = scratch / "wheels", scratch / "requirements.txt"
    requirements.write_text(
        "".join(f"{name}=={pin[0]} --hash=sha256:{pin[1]}\n" for name, pin in WHEELS.items())
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311"]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    _run([*command, f"--dest={folder}", f"--requirement={requirements}"])
    return sorted(folder.glob("*.whl"))


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a program to its end and return what it printed.

    Raises:
      EdgepruneError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise EdgepruneError(
            f"{shlex.join(command[:3])} did not end within {_SECONDS} s; is the network there?"
        ) from error
    if done.returncode != 0:
        lines = [line.strip() for line in process.plain(done.stderr).splitlines() if line.strip()]
        # The first error has the cause, what follows it has the consequences.
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))]
        told = [*errors[:1], *lines[-1:], f"exit code {done.returncode}"][0]
        raise EdgepruneError(f"{shlex.join(command[:3])} failed: {told}")
    return done.stdout


def _try(sandbox: Sandbox) -> None:
    """Refuse one whose runtimes do not start."""
    wanted = ", ".join(f"{module}.interpreter" for module in RUNTIMES.values())
    ended = process.run(sandbox.command("-c", f"import numpy, {wanted}"), _SECONDS)
    if ended.code != 0:
        raise EdgepruneError(f"the new sandbox {ending(ended)}: {ended.said}")


def _move(root: Path, place: Path, old: Path) -> None:
    """Put the new sandbox in its place, and an earlier one out of it."""
    if find_sandbox(place) is not None:
        return  # another process was quicker, and what it made is as good
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    try:
        root.rename(place)
    except OSError:
        if find_sandbox(place) is None:
            raise
