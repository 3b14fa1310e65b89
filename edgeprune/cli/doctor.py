"""`edgeprune doctor`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option


@click.command()
@click.option(
    "--device",
    metavar="NAME",
    help="Set this device up: a name that `edgeprune devices` lists, or a profile's .toml file.",
)
@click.option(
    "--wheels",
    metavar="FOLDER",
    type=PATH,
    help="With --device: install from the .whl files in this folder, where the device is not on "
    "the internet.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, device: str | None, wheels: Path | None, as_json: bool) -> None:
    """Say what is installed, what is missing, and how to mend it.

    With --device it looks at the device instead. One that is reached by ssh gets an environment
    with a TFLite runtime, in ~/.cache/edgeprune/venv there, unless it has a runtime already.
    """
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    if wheels is not None and device is None:
        raise click.UsageError("--wheels needs --device")
    if device is None:
        from edgeprune.environment import check_environment

        checks = check_environment()
    else:
        from edgeprune.devices.lookup import load_profile
        from edgeprune.devices.setup import set_up

        checks = set_up(
            load_profile(device),
            wheels=wheels,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        rows = [(check.name, "ok" if check.ok else "missing", check.found) for check in checks]
        print_table(["check", "state", "found"], rows)
        for check in checks:
            if check.mend:
                print_text(f"to mend {check.name}: {check.mend}")
    if any(check.needed and not check.ok for check in checks):
        ctx.exit(1)
