"""Print what deep compression came to: stages, layers, and modes of conversion."""

from typing import Any

from edgeprune.report.table import Column, print_table


def show(name: str, result: Any) -> None:
    """Print the tables of one model's results, as they are kept."""
    seeds = len(result["runs"])
    mean = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    print_table(
        [
            Column(name),
            Column("bytes", "count"),
            Column("smaller by", "ratio"),
            Column("bits/weight", "fraction"),
            Column("test error, %"),
            Column("std"),
            Column(".tflite", "count"),
            Column("packed", "count"),
        ],
        [
            [
                row["stage"],
                round(row["bytes"]),
                row["ratio"],
                row["bits_per_weight"],
                f"{100 * row['test_error']:.2f}",
                f"{100 * row['test_error_std']:.2f}",
                round(row["tflite_bytes"]),
                round(row["packed_bytes"]),
            ]
            for row in result["stages"]
        ],
        f"{result['task']}; {mean}; {result['note']}",
    )
    print()
    print_table(
        [
            Column("layer"),
            Column("weights", "count"),
            Column("kept", "fraction"),
            Column("clusters"),
            Column("bits/kept, shared", "fraction"),
            Column("bits/kept, coded", "fraction"),
            Column("bytes, coded", "count"),
        ],
        [
            [
                row["layer"],
                row.get("weights"),
                row.get("kept"),
                f"{row['clusters']:g}" if "clusters" in row else None,
                row.get("shared_bits_per_kept"),
                row.get("coded_bits_per_kept"),
                round(row["coded_bytes"]),
            ]
            for row in result["layers"]
        ],
    )
    print()
    print_table(
        ["shared, as", Column("packed", "count"), "test error, %", "runs on"],
        [
            [
                row["mode"],
                round(row["packed_bytes"]),
                f"{100 * row['test_error']:.2f}",
                row["runs_on"],
            ]
            for row in result["modes"]
        ],
    )
    said = "reached" if result["target_met"] else "missed"
    print(
        f"\nat least {result['smallest_ratio']:.1f}x with every seed (dense .tflite file by the "
        f"packed one: {result['file_ratio']:.1f}x); the target, {result['target_ratio']:g}x and no "
        f"more errors than the dense model: {said}\n"
    )
