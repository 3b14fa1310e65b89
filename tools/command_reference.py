"""Write the README's command reference from the commands' own help.

python tools/command_reference.py          rewrites it
python tools/command_reference.py --check  exits 1 if it is out of date
"""

import sys
from pathlib import Path

import click

from edgeprune.cli import cli

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- command reference: written by tools/command_reference.py -->\n"
END = "<!-- end of command reference -->\n"


def reference() -> str:
    """Return the help of every command, at 80 columns, as Markdown."""
    blocks = []
    for name, command in sorted(cli.commands.items()):
        context = click.Context(
            command,
            info_name=f"edgeprune {name}",
            terminal_width=80,
            max_content_width=80,
            help_option_names=cli.context_settings["help_option_names"],
        )
        blocks.append(f"### `edgeprune {name}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(blocks)


def updated(text: str) -> str:
    """Return the README's text with the reference between its two marks renewed."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{reference()}\n{END}{tail}"


def main() -> int:
    """Rewrite the README, or check it."""
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        return int(updated(text) != text)
    README.write_text(updated(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
