"""`edgeprune doctor`."""

import json
from dataclasses import asdict

import click

from edgeprune.cli.options import json_option


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what is installed, what is missing, and how to mend it."""
    from edgeprune.environment import check_environment
    from edgeprune.report.table import print_table

    checks = check_environment()
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        rows = [(check.name, "ok" if check.ok else "missing", check.found) for check in checks]
        print_table(["check", "state", "found"], rows)
        for check in checks:
            if check.mend:
                click.echo(f"to mend {check.name}: {check.mend}")
    if any(check.needed and not check.ok for check in checks):
        ctx.exit(1)
