"""Prose on a terminal: wrapped at its width; elsewhere a line stays a line, so that grep works."""

import os
import sys
import textwrap
from typing import TextIO

_INDENT = "  "
_USUAL_WIDTH = 80


def print_text(text: str = "", file: TextIO | None = None) -> None:
    """Print lines of text to `file` (standard output by default).

    On a terminal those that are too long for it go on indented, broken between words only: paths
    and options stay whole. Elsewhere they are printed as they are.
    """
    file = file or sys.stdout
    if file.isatty():
        width = _width(file)
        text = "\n".join(_wrapped(line, width) for line in text.splitlines())
    print(text, file=file, flush=True)


def _wrapped(line: str, width: int) -> str:
    own = line[: len(line) - len(line.lstrip())]
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            subsequent_indent=own + _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _width(file: TextIO) -> int:
    """How many places the terminal has; COLUMNS wins, as with other programs."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(file.fileno()).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH
