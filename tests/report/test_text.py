"""Prose on a real terminal, and piped."""

import io

from terminal import on_terminal

from edgeprune.report.text import print_text

LINE = "note: a line of prose is wrapped between words, and /paths/of/any-length/stay-whole"
CODE = f"""
from edgeprune.report.text import print_text
print_text({LINE!r} + "\\n  why\\n\\nshort")
"""


def test_lines_are_wrapped_at_the_width_of_a_terminal():
    assert on_terminal(CODE, 34).splitlines() == [
        "note: a line of prose is wrapped",
        "  between words, and",
        "  /paths/of/any-length/stay-whole",
        "  why",
        "",
        "short",
    ]


def test_what_goes_on_is_indented_further_than_its_own_line():
    code = "from edgeprune.report.text import print_text\nprint_text('  one two three four')"
    assert on_terminal(code, 12).splitlines() == ["  one two", "    three", "    four"]


def test_columns_wins_over_the_terminal():
    assert on_terminal(CODE, 34, COLUMNS="120").splitlines()[0] == LINE


def test_lines_stay_whole_where_they_are_piped():
    out = io.StringIO()
    print_text(LINE + "\nshort", out)
    assert out.getvalue() == LINE + "\nshort\n"
