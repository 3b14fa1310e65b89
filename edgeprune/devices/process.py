"""Run programs that may hang, talk without end, or have to be ended from another thread."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from edgeprune.errors import EdgepruneError

MOST_BYTES = 1 << 26  # of a program's output
_LONGEST_LINE = 1 << 16
_CHUNK = 1 << 16
_GENTLE_SECONDS = 5
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has the latter only


class Stop:
    """Ends every program that runs under it, now and from now on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_set = False

    def set(self) -> None:
        """End what runs; what is started later ends at once."""
        with self._lock:
            self._is_set = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)

    @property
    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._is_set

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        """Take a program among those that `set` ends."""
        with self._lock:
            self._running.add(process)
            late = self._is_set
        if late:
            _signal(process, signal.SIGTERM)

    def remove(self, process: "subprocess.Popen[bytes]") -> None:
        """Leave a program alone again."""
        with self._lock:
            self._running.discard(process)


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    Attributes:
      code: its exit code; negative for the number of the signal that ended it.
      output: its standard output, with what is no UTF-8 replaced.
      said: the last line on its standard error that `on_line` did not take.
      late: whether it was ended because its time was up.
      endless: whether it was ended because it printed too much.
    """

    code: int
    output: str
    said: str
    late: bool
    endless: bool

    @property
    def ending(self) -> str:
        """How it ended, in words: ``ended with exit code 3``, ``died of SIGKILL``."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        return f"died of {signal.Signals(-self.code).name}"


def run(
    command: Sequence[str],
    seconds: float,
    *,
    stop: Stop | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    on_line: Callable[[str], bool] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Ended:
    """Run a program to its end, or to the end of its time; it never outlives the call.

    It is the leader of a session of its own, so that Ctrl-C in a terminal reaches this process
    alone, which ends what it started in the order that cleaning up needs.

    Args:
      command: the program and its arguments.
      seconds: after which it is ended.
      stop: ends it from another thread.
      stdin: what it reads; `subprocess.PIPE` is a pipe that stays open and empty until its end.
      on_line: is given each line of its standard error, and says whether it took it.
      most_bytes: of standard output, beyond which it is ended.

    Raises:
      EdgepruneError: it cannot be started, or was ended by `stop`.
    """
    process = start(command, stdin=stdin)
    flags: dict[str, bool] = {"late": False, "endless": False}
    output: list[bytes] = []
    said = [""]

    def end(flag: str) -> None:
        flags[flag] = True
        _signal(process, _KILL)  # what hangs in native code hears nothing gentler

    def read_output() -> None:
        assert process.stdout is not None
        size = 0
        while chunk := os.read(process.stdout.fileno(), _CHUNK):
            size += len(chunk)
            if size > most_bytes:
                end("endless")
                return
            output.append(chunk)

    def read_errors() -> None:
        assert process.stderr is not None
        while line := process.stderr.readline(_LONGEST_LINE):
            text = plain(line.decode(errors="replace")).strip()
            if text and not (on_line is not None and on_line(text)):
                said[0] = text

    readers = [threading.Thread(target=read, daemon=True) for read in (read_output, read_errors)]
    timer = threading.Timer(seconds, end, ("late",))
    timer.daemon = True
    if stop is not None:
        stop.add(process)
    try:
        for thread in (*readers, timer):
            thread.start()
        code = process.wait()
        for reader in readers:
            reader.join(_GENTLE_SECONDS)
    finally:
        timer.cancel()
        if stop is not None:
            stop.remove(process)
        finish(process)
        for reader, pipe in zip(readers, (process.stdout, process.stderr), strict=True):
            # What the program left behind may hold a pipe open; then it stays with its reader.
            if reader.ident is None or not reader.is_alive():
                assert pipe is not None
                pipe.close()
    if stop is not None and stop.is_set:
        raise EdgepruneError("interrupted")
    return Ended(code, b"".join(output).decode(errors="replace"), said[0], **flags)


def start(command: Sequence[str], *, stdin: int | IO[Any]) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, its output and errors piped.

    Raises:
      EdgepruneError: it cannot be started.
    """
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise EdgepruneError(f"{command[0]} cannot be started: {error.strerror}") from error


def finish(process: "subprocess.Popen[bytes]") -> None:
    """End a program with all that it started, gently first; close its pipes."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(_GENTLE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, _KILL)
            process.wait()


def plain(text: str) -> str:
    """Take out what could move a terminal's cursor: a device may say anything."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(OSError):
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
