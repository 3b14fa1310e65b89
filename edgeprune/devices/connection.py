"""A connection by the system's ssh, shared by all calls, with a folder there that goes with it.

One ssh process holds the connection; the others go through its socket. A second one keeps a
temporary folder on the device: the shell there removes it when its input ends, so also when this
process is killed or the connection breaks.
"""

import contextlib
import queue
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgeprune.devices import process
from edgeprune.devices.process import Ended
from edgeprune.devices.reach import SshReach
from edgeprune.devices.reachable import ssh_options
from edgeprune.devices.remote import remote_command, shell_script
from edgeprune.devices.ssh_errors import explained, is_about_the_key, last_line
from edgeprune.errors import EdgepruneError, InputError

CONNECT_SECONDS = 30  # jump hosts and slow boards included
CALL_SECONDS = 60
_POLL_SECONDS = 0.02
_LOST = 255  # ssh's own exit code
_MOST_SOCKET_LETTERS = 80  # of 104 at least; ssh adds 17
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
# RemoteCommand of the user's configuration would stand against ours.
_OPTIONS = ("-o", "ControlPersist=no", "-o", "RemoteCommand=none", *_ALIVE)
_LOST_WORDS = ("closed by", "reset by", "Broken pipe", "timed out during banner")

_KEEPER = (
    'LC_ALL=C; export LC_ALL; trap "" HUP; umask 077; '
    'case $1 in "") f=${TMPDIR:-/tmp};; "~" | "~/"*) f=$HOME${1#?};; *) f=$1;; esac; '
    'd=$(mktemp -d "$f/edgeprune-XXXXXXXX") || exit 73; '
    'printf "\\n%s %s\\n" "$2" "$d"; cat >/dev/null; rm -rf -- "$d"'
)
_SAVE = 'LC_ALL=C; export LC_ALL; cat >"$1"'
_NO_ROOM = (
    "No space left",
    "File too large",
    "File size limit",
    "Disk quota exceeded",
    "Read-only file system",
)


class ConnectionLostError(EdgepruneError):
    """The connection broke, though it might be made again."""


class Connection:
    """A connection with a temporary folder on the device, `folder`; a context manager.

    Raises:
      InputError: no host is set, or its key is not the one known.
      EdgepruneError: it cannot be reached, or has no folder for temporary files.
    """

    def __init__(self, reach: SshReach, stop: process.Stop | None = None) -> None:
        if reach.host is None:
            raise InputError(
                "no host is set; write devices/my-device.toml with extends = "
                '"raspberry-pi-4" (say) and reach.host = "its address"'
            )
        self.host = reach.host
        self.folder = ""
        self._reach = reach
        self._stop = stop
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Connection":
        with contextlib.ExitStack() as stack:
            private = Path(tempfile.mkdtemp(prefix="ep-", dir=_socket_parent()))
            stack.callback(shutil.rmtree, private, ignore_errors=True)
            self._socket = private / "s"
            self._hold(stack, private)
            self._keep_folder(stack)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def call(
        self,
        words: Sequence[str],
        seconds: float = CALL_SECONDS,
        *,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        on_line: Callable[[str], bool] | None = None,
    ) -> Ended:
        """Run a program on the device.

        Raises:
          ConnectionLostError: the connection broke.
          EdgepruneError: it did not end in time.
        """
        ended = process.run(
            self._command(words), seconds, stop=self._stop, stdin=stdin, on_line=on_line
        )
        if ended.code == _LOST and not ended.late:
            raise ConnectionLostError(f"the connection to {self.host} was lost ({ended.said})")
        return ended

    def save(self, source: Path, name: str) -> str:
        """Copy a file into the folder there, and return its path.

        Raises:
          ConnectionLostError: the connection broke.
          EdgepruneError: there is no room, or it took too long.
        """
        target = f"{self.folder}/{name}"
        size = source.stat().st_size
        with source.open("rb") as stream:
            seconds = CALL_SECONDS + size / 100_000
            ended = self.call(shell_script(_SAVE, target), seconds, stdin=stream)
        if any(words in ended.said for words in _NO_ROOM):
            raise EdgepruneError(
                f"{self.host}: no room for {source.name} ({size} bytes) in {self.folder} "
                f"({ended.said}); make some, or set reach.folder to a folder on another disk"
            )
        if ended.code != 0 or ended.late:
            what = "it took too long" if ended.late else ended.said or f"exit code {ended.code}"
            raise EdgepruneError(f"{self.host}: copying {source.name} failed: {what}")
        return target

    def _command(self, words: Sequence[str]) -> list[str]:
        options = ["-S", str(self._socket), "-o", "ControlMaster=no", *_OPTIONS]
        return ["ssh", *options, *ssh_options(self._reach), "--", self.host, remote_command(words)]

    def _hold(self, stack: contextlib.ExitStack, private: Path) -> None:
        """Start the ssh process that holds the connection, and wait until it does."""
        options = ["-M", "-N", "-S", str(self._socket), *_OPTIONS]
        errors = private / "errors"
        with errors.open("wb") as stream:
            try:
                holder = subprocess.Popen(
                    ["ssh", *options, *ssh_options(self._reach), "--", self.host],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    start_new_session=True,
                )
            except OSError as error:
                raise EdgepruneError(f"ssh cannot be started: {error.strerror}") from error
        stack.callback(process.finish, holder)
        deadline = time.monotonic() + CONNECT_SECONDS
        while not self._socket.exists():
            if holder.poll() is not None:
                raise _refusal(self.host, errors.read_text(errors="replace"))
            if self._stop is not None and self._stop.is_set:
                raise EdgepruneError("interrupted")
            if time.monotonic() > deadline:
                raise EdgepruneError(
                    f"{self.host} did not answer within {CONNECT_SECONDS} s; is it switched on "
                    "and in this network?"
                )
            time.sleep(_POLL_SECONDS)

    def _keep_folder(self, stack: contextlib.ExitStack) -> None:
        """Have a shell there make a folder, which it removes when its input ends."""
        mark = secrets.token_hex(8)
        script = shell_script(_KEEPER, self._reach.folder or "", mark)
        keeper = process.start(self._command(script), stdin=subprocess.PIPE)
        stack.callback(_release, keeper)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            # A shell's start-up files may print anything before; it is all read, or it would
            # block, but only the marked line counts.
            assert keeper.stdout is not None
            while line := keeper.stdout.readline(1 << 16):
                if line.startswith(mark.encode()):
                    lines.put(line.decode(errors="replace").rstrip("\r\n"))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            line = lines.get(timeout=CONNECT_SECONDS)
        except queue.Empty:
            raise EdgepruneError(
                f"{self.host}: its shell did not answer within {CONNECT_SECONDS} s; try "
                f"`ssh {self.host} true`"
            ) from None
        if line is None:
            assert keeper.stderr is not None
            said = last_line(keeper.stderr.read().decode(errors="replace"))
            if keeper.wait() == _LOST:
                raise ConnectionLostError(f"the connection to {self.host} was lost ({said})")
            raise EdgepruneError(
                f"{self.host}: no temporary folder can be made in "
                f"{self._reach.folder or 'its usual place'} ({said}); "
                "set reach.folder to one with room that may be written"
            )
        self.folder = line.partition(" ")[2]
        if not (self.folder.startswith("/") and self.folder.isprintable()):
            raise EdgepruneError(
                f"{self.host}: its temporary folder is {self.folder!r}, which cannot be; set "
                "reach.folder"
            )


def _release(keeper: "subprocess.Popen[bytes]") -> None:
    """End the folder's keeper by the end of its input, and give it time to clean up."""
    assert keeper.stdin is not None
    with contextlib.suppress(OSError):
        keeper.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(CONNECT_SECONDS)
    process.finish(keeper)


def _refusal(host: str, said: str) -> EdgepruneError:
    """Return the error for a connection that was not made."""
    text = explained(host, said)
    if is_about_the_key(said):
        return InputError(text)
    lost = any(word in said for word in _LOST_WORDS)
    return ConnectionLostError(text) if lost else EdgepruneError(text)


def _socket_parent() -> str | None:
    """Return where to put the socket: the system's folder, unless its name is too long for one."""
    return None if len(tempfile.gettempdir()) < _MOST_SOCKET_LETTERS - 20 else "/tmp"
