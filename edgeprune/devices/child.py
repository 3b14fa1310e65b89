"""Run a program to its end, whatever it does: crash, print without end, or hang."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_MOST_TEXT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
      code: its exit code; negative for a signal.
      output: what it wrote to stdout, the last 16 MiB of it.
      errors: what it wrote to stderr, likewise.
      timed_out: whether it was ended for taking too long.
    """

    code: int
    output: str
    errors: str
    timed_out: bool

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.timed_out:
            return "was stopped for taking too long"
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        with contextlib.suppress(ValueError):
            return f"crashed ({signal.Signals(-self.code).name})"
        return f"crashed (signal {-self.code})"


def run(command: Sequence[str], folder: Path, seconds: float) -> Outcome:
    """Run a command without a shell, with nothing to read, and end it with all it started.

    Args:
      command: program and arguments.
      folder: to run in.
      seconds: until it is stopped.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                # Its session is its own, so this reaches its children and nothing else.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return Outcome(code, _text(output), _text(errors), timed_out)


def _text(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _MOST_TEXT))
    return stream.read().decode("utf-8", "replace")
