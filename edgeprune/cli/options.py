"""Options and habits that several commands share."""

import re
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


def _input_shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """Read ``64,64,3`` (the only input) or ``image=64,64,3`` (one of several)."""
    named: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        if not re.fullmatch(r"[1-9]\d*([,x][1-9]\d*)*", sizes) or name in named:
            raise click.BadParameter(
                f"{value!r} is not a shape without the batch, such as 64,64,3 or NAME=64,64,3"
            )
        named[name] = tuple(int(size) for size in re.split("[,x]", sizes))
    if "" in named and len(named) > 1:
        raise click.BadParameter("name every shape when there are several: NAME=64,64,3")
    return named.get("", named or None)


input_shape_option = click.option(
    "--input-shape",
    metavar="[NAME=]SHAPE",
    multiple=True,
    callback=_input_shapes,
    help="Sizes of unknown dimensions, without the batch: 64,64,3. Repeat for several inputs.",
)
