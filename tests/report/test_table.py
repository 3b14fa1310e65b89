import io
import re
import unicodedata

import pytest
import terminal
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.report.table import Column, format_bytes, format_cell, print_table, render

COLUMNS = ["model", Column("median ms", "ms"), Column("size", "bytes")]
ROWS = [["baseline.tflite", 12.345, 3_145_728], ["small.tflite", 0.4567, None]]
PLAIN = """\
model            median ms     size
---------------  ---------  -------
baseline.tflite       12.3  3.0 MiB
small.tflite         0.457        -"""


STACKED = """\
                 board
                    ms
model         measured
------------  --------
small.tflite     0.500"""


def test_headings_of_several_lines_end_in_the_last():
    columns = ["model", Column("board\nms\nmeasured", "ms")]
    assert render(columns, [["small.tflite", 0.5]]) == STACKED


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1_048_523, "1023.9 KiB"),
        (1_048_570, "1.0 MiB"),  # 1023.99 KiB must not print as 1024.0 KiB
        (1_048_576, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0045678, "ms", "0.00457"),
        (0.5, "ms", "0.500"),
        (9.996, "ms", "10.0"),
        (12.345, "ms", "12.3"),
        (999.7, "ms", "1,000"),
        (123456.7, "ms", "123,457"),
        (0, "ms", "0"),
        (1, "ratio", "1.00x"),
        (0.004321, "ratio", "0.00432x"),
        (0.8226, "fraction", "0.823"),
        (12_500_000, "count", "12,500,000"),
        (None, "ms", "-"),
        ("none", "bytes", "none"),
        (3, "text", "3"),
    ],
)
def test_cells(value, unit, text):
    assert format_cell(value, unit) == text


def test_plain_table():
    assert render(COLUMNS, ROWS) == PLAIN


def test_title_stands_above():
    assert render(COLUMNS, ROWS, "On the board") == f"On the board\n\n{PLAIN}"


def test_no_rows_still_show_the_columns():
    assert render(["a", Column("b", "ms")], []) == "a  b\n-  -"


def test_a_row_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        render(COLUMNS, [["only one"]])


def test_wide_letters_keep_the_columns_aligned():
    lines = render(["name", Column("n", "count")], [["模型", 1], ["e\u0301te", 22]]).splitlines()
    assert lines[2:] == ["模型   1", "e\u0301te   22"]


def test_control_characters_of_a_file_name_do_not_reach_the_terminal():
    assert format_cell("a\n\x1b[2Jb", "text") == "a??[2Jb"


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.floats(0, 1e7)), max_size=5))
def test_numbers_end_in_one_column(rows):
    lines = render(["name", Column("ms", "ms")], rows).splitlines()
    numbers = lines[:1] + lines[2:]
    widths = {
        len(line)
        + sum(unicodedata.east_asian_width(c) in "WF" for c in line)
        - sum(unicodedata.combining(c) > 0 for c in line)
        for line in numbers
    }
    assert len(widths) == 1


def test_no_escape_codes_when_piped():
    out = io.StringIO()
    print_table(COLUMNS, ROWS, file=out)
    assert out.getvalue() == PLAIN + "\n"


def on_terminal(width, columns=COLUMNS, rows=ROWS, **environment):
    """What `print_table` shows on a real pseudo-terminal of this width."""
    code = f"""
from edgeprune.report.table import Column, print_table
print_table({columns!r}, {rows!r}, title="On the board")
"""
    return terminal.on_terminal(code, width, **environment)


def uncoloured(text):
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]


@pytest.mark.parametrize("width", [80, 200])
def test_table_on_a_terminal(width):
    shown = on_terminal(width)
    assert "\x1b[1m" in shown
    assert uncoloured(shown) == [
        "On the board",
        "",
        "model            median ms     size",
        "────────────────────────────────────",
        "baseline.tflite       12.3  3.0 MiB",
        "small.tflite         0.457        -",
    ]


def test_narrow_terminal_gets_a_block_for_each_row():
    assert uncoloured(on_terminal(30)) == [
        "On the board",
        "",
        "baseline.tflite",
        "  median ms     12.3",
        "  size       3.0 MiB",
        "small.tflite",
        "  median ms    0.457",
        "  size             -",
    ]


def test_a_last_column_of_text_is_folded_where_the_terminal_is_narrow():
    columns = ["device", Column("median\nms", "ms"), "description"]
    rows = [["board", 0.5, "a processor of four cores, and memory"], ["other", 1.5, "none"]]
    assert uncoloured(on_terminal(42, columns, rows)) == [
        "On the board",
        "",
        "        median",
        "device      ms  description",
        "──────────────────────────────────────────",
        "board    0.500  a processor of four",
        "                cores, and memory",
        "other     1.50  none",
    ]


def test_no_color_is_honoured():
    assert "\x1b[3" not in on_terminal(80, NO_COLOR="1")
