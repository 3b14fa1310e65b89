"""Keep TensorFlow's native chatter off the terminal."""

import faulthandler
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from edgeprune.cli.names import as_typed_here
from edgeprune.report.text import print_text


@contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Send what native code writes to file descriptor 2 to a scratch file while inside.

    TensorFlow logs from C++ before any of its own switches are read, so the descriptor itself
    is turned away; Python's `sys.stderr` goes on to the terminal, and so does a crash report.
    """
    if not hasattr(sys.stderr, "fileno"):
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    outer = sys.stderr
    with tempfile.TemporaryFile() as scratch:
        os.dup2(scratch.fileno(), 2)
        sys.stderr = os.fdopen(
            terminal, "w", buffering=1, encoding=outer.encoding, errors="replace"
        )
        faulthandler.enable(sys.stderr)
        _hear_edgeprune_only()
        try:
            yield
        finally:
            faulthandler.disable()
            sys.stderr.flush()
            os.dup2(terminal, 2)
            sys.stderr.close()
            sys.stderr = outer


def _hear_edgeprune_only() -> None:
    """Let through what edgeprune has to say, a line each, and nothing that others log."""
    for name in ("tensorflow", "absl", "tf_keras"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", module=r"edgeprune\.")
    logging.captureWarnings(True)
    handler = _OneLine()
    for name in ("edgeprune", "py.warnings"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == "py.warnings":
            # "path:line: Category: message", then the line of code that raised it
            text = text.splitlines()[0].split(": ", 2)[-1]
        # Looked up now: a progress bar puts itself in the place of sys.stderr while it is shown.
        print_text(f"Note: {as_typed_here(text)}", sys.stderr)
