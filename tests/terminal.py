"""Run Python on a real pseudo-terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def on_terminal(code, width, **environment):
    """Return what some code prints, standard error included, on a terminal of this width."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {key: os.environ[key] for key in os.environ if key not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 4096)
        except OSError:  # Linux: the other end was closed
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0, shown
    os.close(controller)
    return shown.decode()
