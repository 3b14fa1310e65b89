"""`edgeprune demo`."""

from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option
from edgeprune.cli.outcome import print_outcome


@click.command()
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("edgeprune-demo"),
    show_default=True,
    help="Folder for all files.",
)
@click.option("--restart", is_flag=True, help="Run it again if the folder holds a finished demo.")
@json_option
def demo(output: Path, restart: bool, as_json: bool) -> None:
    """Run the whole flow on real handwritten digits, in minutes on two cores."""
    from edgeprune.demo import run_demo
    from edgeprune.report.progress import stage_progress

    with stage_progress() as progress:
        report = run_demo(output, restart=restart, progress=progress)
    print_outcome(report, as_json)
