"""Print what a run of the flow ended with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.names import as_typed_here
from edgeprune.report.text import print_text

if TYPE_CHECKING:
    from edgeprune.comparison import WayResult, WaysReport
    from edgeprune.outcome import CompressionReport


def print_outcome(report: "CompressionReport", as_json: bool) -> None:
    """Print the report as JSON, or as a table with the models in rows."""
    if as_json:
        click.echo(report.to_json())
        return
    from edgeprune.errors import listed
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
    sized = report.rows[0].macs is not None
    if sized:
        columns += [Column("MACs", "count"), Column("parameters", "count")]
    rows = [
        (
            row.name,
            row.score,
            row.bytes,
            row.gzip_bytes,
            row.sparsity,
            row.latency_ms,
            row.relative_latency,
            *((row.macs, row.parameters) if sized else ()),
        )
        for row in report.rows
    ]
    print_table(columns, rows)
    print_text("\nms: median latency of one inference, measured on this machine, 1 thread")
    for stage in report.stages:
        _print_fewer_values(stage.get("kernels", ()))
        if counts := stage.get("distinct_in_channel"):
            layers = listed([f"{name} {count}" for name, count in counts.items()])
            print_text(
                f"note: {report.result.file} has at most so many values, zero among them, in an "
                f"output channel: {layers}"
            )
        if tables := stage.get("look_up_tables"):
            print_text(
                f"note: {tables['file']} needs an arena of {tables['arena_bytes']:,} bytes, "
                f"{report.result.file} of {tables['plain_arena_bytes']:,} (simulated)"
            )
    dead = report.dead_channels
    for told in (dead, dead.get("file", {})):
        if told.get("channels_removed"):
            print_text(f"note: {report.result.file}: {told['summary'].splitlines()[0]}")
    if report.devices:
        _print_devices(report)
    tables = report.tables and f"; for TFLite Micro: {report.tables.file}"
    print_text(f"Files: {report.output}/ (result: {report.result.file}{tables or ''})")


def _print_fewer_values(kernels: Sequence[dict[str, Any]]) -> None:
    """Name the kernels that had fewer values than clusters, which is as good."""
    from edgeprune.errors import listed

    few = [kernel for kernel in kernels if kernel["distinct"] < kernel["clusters"]]
    if few:
        names = listed([f"{kernel['name']} ({kernel['distinct']})" for kernel in few])
        print_text(f"note: fewer distinct values than the {few[0]['clusters']} clusters: {names}")


def _print_devices(report: "CompressionReport") -> None:
    """Print what the devices chose, and what the models do on each."""
    from edgeprune.devices.measurement import Benchmark
    from edgeprune.report.table import print_table

    names = ", ".join(entry.device for entry in report.devices)
    choices = [
        (choice.name, _plain(choice.value), choice.reason) for choice in report.device_choices
    ]
    click.echo()
    print_table(["choice", "value", "because"], choices, f"Chosen for {names}")
    measured = Benchmark([row for entry in report.devices for row in entry.results])
    for title, columns, rows in measured.tables():
        click.echo()
        print_table(columns, rows, title)
    click.echo()
    for note in measured.notes:
        print_text(f"note: {note}")
    for entry in report.devices:
        for row in entry.results:
            if row.model == report.result.file and (encoded := row.details.get("weights")):
                print_text(
                    f"note: {entry.device}: Vela encodes the {encoded['original_bytes']:,} bytes "
                    f"of weights in {encoded['encoded_bytes']:,}; gzip makes "
                    f"{report.result.gzip_bytes:,} of the file's {report.result.bytes:,}"
                )
        if entry.verdict:
            print_text(f"{entry.device}: {entry.verdict}")


def _plain(value: str | int | bool | None) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)


def print_ways(report: "WaysReport", as_json: bool) -> None:
    """Print the comparison as JSON, or as a table with the ways in rows."""
    if as_json:
        click.echo(report.to_json())
        return
    from edgeprune.report.table import Column, print_table

    columns = [
        Column("way"),
        Column(report.score_name, "count"),
        Column("spread", "count"),
        Column("difference", "count"),
        Column("MACs", "count"),
        Column("parameters", "count"),
        Column("epochs", "count"),
        Column("compute", "ratio"),
    ]
    # Errors may be of any size, fractions are read by their places.
    figure = ("{:.4f}" if report.score_name == "accuracy" else "{:.4g}").format
    rows = [
        (
            way.name,
            figure(way.mean),
            None if way.std is None else f"±{figure(way.std)}",
            None if way.way == "dense" else _difference(way, figure),
            way.macs,
            way.parameters,
            f"{way.epochs:g}",
            way.compute,
        )
        for way in report.ways
    ]
    print_table(columns, rows)
    seeds = len(report.seeds)
    print_text(
        f"\n{report.score_name}: on the validation data, mean of {seeds} seed"
        f"{'' if seeds == 1 else 's'}; spread: standard deviation; difference: to the unpruned "
        "model of the same seed; compute: of all training, by that of the unpruned model"
    )
    for note in report.notes:
        print_text(note)
    print_text(f"Files: {report.output}/")


def _difference(way: "WayResult", figure: Callable[[float], str]) -> str:
    spread = "" if way.difference_std is None else f" ±{figure(way.difference_std)}"
    return f"{'-' if way.difference < 0 else '+'}{figure(abs(way.difference))}{spread}"


def plot_ways(report: "WaysReport", path: Path) -> None:
    """Draw the comparison's scores with their spread."""
    from edgeprune.report.plots import ScoreBar, plot_scores

    whole = report.ways[0]
    bars = [
        ScoreBar(
            way.name,
            f"{way.macs / whole.macs:.2f}x MACs · {way.epochs:g} epochs · "
            f"{way.compute:.2f}x compute",
            way.scores,
            way.mean,
            way.std,
        )
        for way in report.ways
    ]
    plot_scores(bars, path, report.score_name, "Ways to a smaller model")


def print_pruned(figures: dict[str, Any], what: str, output: Path | None) -> None:
    """Print what each group lost, what was kept and why, and the totals."""
    from edgeprune.report.table import Column, format_cell, print_table

    if figures["groups"] and what == "layers":
        blocks = [
            (
                group["label"],
                len(group["layers"]),
                None if group["score"] is None else f"{group['score']:.4g}",
                "leaves" if group["removed"] else "stays",
            )
            for group in figures["groups"]
        ]
        print_table(["block", Column("layers", "count"), "score", ""], blocks)
        click.echo()
    elif figures["groups"]:
        columns = [Column("layers"), Column(what, "count"), Column("after", "count")]
        rows = [
            (_layers(group), before, after, 1 - after / before)
            for group in figures["groups"]
            for before, after in [_counts(group)]
        ]
        print_table([*columns, Column("removed", "fraction")], rows)
        click.echo()
    if figures["refused"]:
        kept = [(refusal["layer"], refusal["reason"]) for refusal in figures["refused"]]
        print_table(["kept", "because"], kept)
        click.echo()
    for note in figures.get("notes", ()):
        print_text(f"Note: {as_typed_here(note)}")
    for name, key in (("parameters", "parameters"), ("MACs", "macs")):
        before, after = figures[f"{key}_before"], figures[f"{key}_after"]
        share = f" ({after / before:.3f}x)" if before and after is not None else ""
        print_text(
            f"{name}: {format_cell(before, 'count')} -> {format_cell(after, 'count')}{share}"
        )
    if "score_name" in figures:
        before, after = figures["score_before"], figures["score_after"]
        print_text(
            f"{figures['score_name']}: {before:.4g} -> {after:.4g} on validation data: "
            f"{figures['validation']}"
        )
    print_text("No model was written." if output is None else f"File: {output}")


def plot_groups(figures: dict[str, Any], what: str, path: Path) -> None:
    """Draw what each group had and has."""
    from edgeprune.report.plots import ChannelBar, plot_channels
    from edgeprune.report.table import format_cell

    bars = [
        ChannelBar(group.get("label", group["name"]), *_counts(group))
        for group in figures["groups"]
    ]
    totals = [
        f"{format_cell(figures[f'{key}_before'], 'count')} → "
        f"{format_cell(figures[f'{key}_after'], 'count')} {name}"
        for name, key in (("parameters", "parameters"), ("MACs", "macs"))
    ]
    plot_channels(bars, path, " · ".join(totals), what)


def _counts(group: dict[str, Any]) -> tuple[int, int]:
    """How many channels or heads a group had and has, or layers of a block."""
    if "removed" in group:
        count = len(group["layers"])
        return count, 0 if group["removed"] else count
    return group["channels_before"], group["channels_after"]


def _layers(group: dict[str, Any]) -> str:
    more = len(group["layers"]) - 1
    return f"{group['name']} and {more} more" if more > 0 else group["name"]
