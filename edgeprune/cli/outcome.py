"""Print what a run of the flow ended with."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeprune.pipeline import CompressionReport


def print_outcome(report: "CompressionReport", as_json: bool) -> None:
    """Print the report as JSON, or as a table with the models in rows."""
    if as_json:
        click.echo(report.to_json())
        return
    from edgeprune.report.table import Column, print_table

    columns = [
        Column("model"),
        Column(report.rows[0].score_name, "fraction"),
        Column("file", "bytes"),
        Column("gzip", "bytes"),
        Column("sparsity", "fraction"),
        Column("ms", "ms"),
        Column("relative", "ratio"),
    ]
    rows = [
        (
            row.name,
            row.score,
            row.bytes,
            row.gzip_bytes,
            row.sparsity,
            row.latency_ms,
            row.relative_latency,
        )
        for row in report.rows
    ]
    print_table(columns, rows)
    click.echo("\nms: median latency of one inference, measured on this machine, 1 thread")
    click.echo(f"Files: {report.output}/ (result: {report.rows[-1].file})")
