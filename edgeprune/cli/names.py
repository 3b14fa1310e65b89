"""Name options in errors and notes as they are typed, not as Python's arguments."""

import re

import click

# `max_drop` or `quantize='auto'`, as edgeprune.errors has them.
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")
_OPPOSITES = {"clean": "keep_dead", "verify": "no_verify"}
"""Arguments that are flags here, which say the opposite."""


def as_typed_here(text: str) -> str:
    """Like `as_typed`, of the command that runs, if one does."""
    context = click.get_current_context(silent=True)
    return text if context is None else as_typed(text, context.command)


def as_typed(text: str, command: click.Command) -> str:
    """Put a command's options in the place of the arguments that stand in backticks in a text.

    ``max_drop`` becomes ``--max-drop``, ``quantize='auto'`` ``--quantize auto``, and
    ``verify=False`` ``--no-verify`` where that is a flag. What the command has no option for stays.

    Args:
      text: of an error or a note.
      command: whose parameters have the names of Python's arguments.
    """
    options = {option.name: option for option in command.params}

    def replaced(found: re.Match[str]) -> str:
        option = options.get(_OPPOSITES.get(found[1], found[1]))
        if option is None:
            return found[0]
        if isinstance(option, click.Argument):
            return option.human_readable_name
        name = max(option.opts, key=len)
        if found[2] is None or getattr(option, "is_flag", False):
            return name
        return f"{name} {found[2].strip(chr(39))}"

    return _ARGUMENT.sub(replaced, text)
