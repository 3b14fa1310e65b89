"""What is sent to a shell on a device comes out as the same words, in real shells."""

import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeprune.devices.remote import remote_command, shell_script
from edgeprune.errors import InputError

SHELLS = [shell for shell in ("sh", "bash", "dash", "zsh", "fish") if shutil.which(shell)]
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "\\'; touch pwned; \\'",
    "\\",
    "\\\\'",
    "a\\",
    "'",
    "''",
    "",
    " ",
    "~",
    "~root",
    "*",
    "{a,b}",
    "-rf",
    "--",
    "=ls",
    "%self",
    "!!",
    "#",
    "&& touch pwned",
    "| touch pwned",
    "> pwned",
    "$HOME",
    "é ☃",
]
printable = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" '\\\"$`"))


def said_by(shell, command, folder):
    return subprocess.run(
        [shell, "-c", command], capture_output=True, check=True, cwd=folder
    ).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_hostile_words_are_only_words(shell, tmp_path):
    words = shell_script('printf "%s\\0" "$@"', *HOSTILE)
    said = said_by(shell, remote_command(words), tmp_path)
    assert said.decode().split("\0")[:-1] == HOSTILE
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(printable, min_size=1, max_size=8))
@example(["\\'\\\\''\\"])
def test_any_words_are_only_words(words):
    command = remote_command(shell_script('printf "%s\\0" "$@"', *words))
    for shell in SHELLS:
        assert said_by(shell, command, "/").decode().split("\0")[:-1] == words


@pytest.mark.parametrize("word", ["a\nb", "a\rb", "\0", "\x1b[2J", "a\tb", "\x7f", "\ud800"])
def test_what_cannot_be_printed_is_refused(word):
    with pytest.raises(InputError, match="cannot be sent to a device") as caught:
        remote_command(["echo", word])
    assert str(caught.value).isprintable()
