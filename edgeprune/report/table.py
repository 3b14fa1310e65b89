"""Tables of results: pretty on a terminal, plain and aligned everywhere else.

Rows hold plain values (bytes, milliseconds, fractions); a column says what its values are, and
only here do they become text: bytes as KiB and MiB, a missing figure as a dash.
"""

import math
import sys
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Unit = Literal["text", "count", "bytes", "ms", "ratio", "fraction"]
Cell = str | int | float | None
MISSING = "-"
_GAP = "  "
_FIRST_STYLE = "cyan"
# Places to which a first column, and a last one of text, may be folded before rows become blocks.
_NARROWEST = 16


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      title: its heading; it may have several lines.
      unit: what its values are: ``text`` (left-aligned, all others right-aligned), ``count``
        (12,345), ``bytes`` (12.1 KiB), ``ms`` (three significant digits), ``ratio`` (0.452x) or
        ``fraction`` (0.823).
    """

    title: str
    unit: Unit = "text"


def format_cell(value: Cell, unit: Unit) -> str:
    """Turn a value into text; a string is kept as it is, None becomes a dash."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        # A file's name may hold anything, also what would move the cursor.
        return "".join(letter if letter.isprintable() else "?" for letter in value)
    match unit:
        case "bytes":
            return format_bytes(value)
        case "ms":
            return _three_digits(value)
        case "ratio":
            return f"{_three_digits(value)}x"
        case "fraction":
            return f"{value:.3f}"
        case "count":
            return f"{value:,}"
        case "text":
            return str(value)


def format_bytes(count: float) -> str:
    """Write a number of bytes as B, KiB, MiB or GiB: 1536 -> '1.5 KiB'."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        # 1023.96 would print as 1024.0
        if abs(round(count, 1)) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


def render(
    columns: Sequence[Column | str], rows: Sequence[Sequence[Cell]], title: str | None = None
) -> str:
    """Return the table as plain text: aligned, two spaces between columns, no escape codes.

    Args:
      columns: `Column`, or a string for a column of text.
      rows: one value a column, raw; see `Column`.
      title: a line above.
    """
    heads, cells, right = _prepare(columns, rows)
    widths = _widths(heads, cells)
    lines = [title, ""] if title else []
    for row in [*_stacked(heads), ["-" * width for width in widths], *cells]:
        padded = [
            _pad(text, width, on_right)
            for text, width, on_right in zip(row, widths, right, strict=True)
        ]
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def print_table(
    columns: Sequence[Column | str],
    rows: Sequence[Sequence[Cell]],
    title: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Print the table to `file` (standard output by default).

    On a terminal: with colour (unless NO_COLOR is set), the first column, and the last if it is of
    text, folded where the terminal is narrow, and where it is too narrow for that, each row as a
    block of its own instead of a crushed table. Elsewhere as `render` has it.
    """
    file = file or sys.stdout
    if not file.isatty():
        print(render(columns, rows, title), file=file)
        return
    from rich.console import Console
    from rich.text import Text

    heads, cells, right = _prepare(columns, rows)
    console = Console(file=file, highlight=False)
    if title:
        console.print(Text(title + "\n", style="bold"))
    widths = _widths(heads, cells)
    folded = {0: _NARROWEST}
    if len(widths) > 1 and not right[-1]:
        folded[len(widths) - 1] = _NARROWEST
    needed = sum(min(width, folded.get(at, width)) for at, width in enumerate(widths))
    if needed + len(_GAP) * (len(widths) - 1) < console.width:
        console.print(_rich_table(heads, cells, right, folded))
    else:
        console.print(_rich_blocks(heads, cells))


def _three_digits(value: float) -> str:
    """Write three significant digits, but never drop digits left of the point: 1234 -> 1,234."""
    rounded = float(f"{value:.2e}") if abs(value) < 1000 else value
    decimals = 0 if rounded == 0 else max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def _prepare(
    columns: Sequence[Column | str], rows: Sequence[Sequence[Cell]]
) -> tuple[list[str], list[list[str]], list[bool]]:
    typed = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [
        [format_cell(value, column.unit) for value, column in zip(row, typed, strict=True)]
        for row in rows
    ]
    return [column.title for column in typed], cells, [column.unit != "text" for column in typed]


def _widths(heads: list[str], cells: list[list[str]]) -> list[int]:
    columns = zip(*_stacked(heads), *cells, strict=True)
    return [max(map(_width, column)) for column in columns]


def _stacked(heads: list[str]) -> list[list[str]]:
    """Return the lines of the headings, which all end in the last."""
    lines = [head.split("\n") for head in heads]
    height = max(map(len, lines), default=1)
    padded = [[""] * (height - len(own)) + own for own in lines]
    return [list(row) for row in zip(*padded, strict=True)]


def _width(text: str) -> int:
    """How many places of a terminal the text takes; East Asian letters take two."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def _pad(text: str, width: int, on_right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if on_right else text + space


def _rich_table(
    heads: list[str], cells: list[list[str]], right: list[bool], folded: Collection[int]
) -> "Table":
    from rich import box
    from rich.align import Align
    from rich.table import Table
    from rich.text import Text

    # One blank by this padding and one by the box: the two of _GAP.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, (head, on_right) in enumerate(zip(heads, right, strict=True)):
        justify: Literal["left", "right"] = "right" if on_right else "left"
        table.add_column(
            Align(Text(head), justify, vertical="bottom"),
            justify=justify,
            style=_FIRST_STYLE if number == 0 else "",
            overflow="fold",
            no_wrap=number not in folded,
        )
    for row in cells:
        table.add_row(*map(_value, row))
    return table


def _rich_blocks(heads: list[str], cells: list[list[str]]) -> "Text":
    """Each row as its first value and, indented below, a line for each of the others."""
    from rich.text import Text

    labels = [head.replace("\n", " ") for head in heads[1:]]
    width = max(map(_width, labels), default=0)
    values = max((_width(text) for row in cells for text in row[1:]), default=0)
    blocks = Text()
    for row in cells:
        blocks.append(row[0] + "\n", _FIRST_STYLE)
        for label, text in zip(labels, row[1:], strict=True):
            blocks.append(f"  {_pad(label, width, on_right=False)}{_GAP}", "bold")
            blocks.append(" " * (values - _width(text))).append(_value(text)).append("\n")
    blocks.right_crop(1)
    return blocks


def _value(text: str) -> "Text":
    from rich.text import Text

    return Text(text, style="dim" if text == MISSING else "")
