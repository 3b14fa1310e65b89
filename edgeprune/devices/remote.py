"""The one place where text becomes a command for a shell on a device."""

import re
from collections.abc import Sequence

from edgeprune.errors import InputError
from edgeprune.toml_data import shown

# Written outside of quotes: fish reads a backslash inside single quotes, the others do not.
_APART = {"'": "\\'", "\\": "\\\\"}


def remote_command(words: Sequence[str]) -> str:
    """Return one line that a shell splits into exactly these words.

    The shell may be a POSIX one (sh, dash, bash, zsh, Android's) or fish: every word is in single
    quotes, in which these read nothing at all but the closing quote (fish: and backslashes, so
    both stand outside). Words that begin with ``-`` stay as they are: what a program takes for an
    option is its caller's to see to.

    Raises:
      InputError: a word has a line break or another letter that cannot be printed, which no
        path or setting needs and terminals and logs suffer from.
    """
    return " ".join(map(_quoted, words))


def shell_script(script: str, *arguments: str) -> list[str]:
    """Return the words that run a POSIX script, whatever the user's shell is, with $1, $2, ..."""
    return ["sh", "-c", script, "sh", *arguments]


def _quoted(word: str) -> str:
    if not word.isprintable():
        raise InputError(f"{shown(word)} cannot be sent to a device: use printable text only")
    runs = re.findall(r"[^'\\]+|['\\]", word)
    return "".join(_APART.get(run, f"'{run}'") for run in runs) or "''"
