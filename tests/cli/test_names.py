"""Errors name options as they are typed, in the words that Python's errors have."""

import click
import pytest
from terminal import on_terminal

from edgeprune.cli import cli
from edgeprune.cli.names import as_typed


@click.command()
@click.argument("model")
@click.option("--max-drop", type=float)
@click.option("-o", "--output")
@click.option("--quantize")
@click.option("--ratio", "pruning_ratio")
@click.option("--unsafe", is_flag=True)
@click.option("--no-verify", is_flag=True)
def command(**options):
    pass


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("`max_drop` is a fraction, got 2", "--max-drop is a fraction, got 2"),
        ("`quantize='auto'` and `output`", "--quantize auto and --output"),
        ("`pruning_ratio=2` is outside", "--ratio 2 is outside"),
        ("pass `unsafe=True`", "pass --unsafe"),
        ("`verify=False` accepts it", "--no-verify accepts it"),
        ("`model` is missing", "MODEL is missing"),
        # What is no option of the command, and words that are no arguments, stay as they are.
        ("`clean=False`, `edgeprune pack`, max_drop", "`clean=False`, `edgeprune pack`, max_drop"),
    ],
)
def test_arguments_become_options(text, typed):
    assert as_typed(text, command) == typed


def test_an_error_is_wrapped_on_a_terminal_and_ends_with_2():
    code = (
        "import sys\n"
        "from edgeprune.cli import main\n"
        "sys.argv = ['edgeprune', 'convert', 'm.keras', '-o', 'm.tflite', '--batch', '0']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
    )
    shown = on_terminal(code, 60).splitlines()
    assert shown == [
        "Usage: edgeprune convert [OPTIONS] MODEL",
        "Try 'edgeprune convert --help' for help.",
        "",
        "Error: Invalid value for '--batch': '0' is not a whole",
        "  number above 0 or 'dynamic'",
        "2",
    ]


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_no_option_of_a_number_takes_nan(name):
    for option in cli.commands[name].params:
        if isinstance(option.type, click.types.FloatParamType):
            with pytest.raises(click.BadParameter, match="nan"):
                option.type.convert("nan", option, None)
