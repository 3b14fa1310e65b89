"""Options and habits that several commands share."""

from pathlib import Path

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
unsafe_option = click.option(
    "--unsafe",
    is_flag=True,
    help="Load a .keras file that holds Python code (Lambda layers); it is run.",
)
# Existence is checked where the file is read: one place, one wording, exit 1.
PATH = click.Path(path_type=Path)
