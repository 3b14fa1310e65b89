"""Keep what TensorFlow's native code prints: off the terminal, and at hand for errors."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class NativeLog:
    """What native code wrote to file descriptor 2; filled in when the capture ends."""

    text: str = ""


@contextmanager
def captured_stderr() -> Iterator[NativeLog]:
    """Send file descriptor 2 and TensorFlow's Python logs and warnings to a `NativeLog`.

    The converter writes its diagnostics there from C++, past `sys.stderr`.
    """
    log = NativeLog()
    sys.stderr.flush()
    try:
        terminal = os.dup(2)
    except OSError:  # a program without a standard error has nothing to keep clean
        yield log
        return
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with tempfile.TemporaryFile() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        os.dup2(scratch.fileno(), 2)
        try:
            yield log
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            scratch.seek(0)
            log.text = scratch.read().decode("utf-8", "replace")
