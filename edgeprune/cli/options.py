"""Options and habits that several commands share."""

import math
import re
from pathlib import Path
from typing import Any

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
unsafe_option = click.option(
    "--unsafe",
    is_flag=True,
    help="Load a .keras file that holds Python code (Lambda layers); it is run.",
)
# What the command line alone shows to be wrong ends with exit 2, what only the files show with 1.
# Existence is checked where the file is read: one place, one wording, exit 1.
PATH = click.Path(path_type=Path)


class Number(click.FloatRange):
    """A number in a range, which NaN and infinity are not; hints at percentages."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that can be used here.", param, ctx)
        try:
            return float(super().convert(value, param, ctx))
        except click.BadParameter as error:
            percent = self.max == 1 and 1 < number < 100
            meant = f" Did you mean {number / 100:g}?" if percent else ""
            self.fail(error.message + meant, param, ctx)


FRACTION = Number(min=0, max=1, max_open=True)
SHARE = Number(min=0, min_open=True, max=1)
"""What may stay of something: not nothing, and perhaps all."""


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
