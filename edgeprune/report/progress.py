"""Show how far a long run is: a bar a stage on a terminal, a line a stage elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stage_progress() -> Iterator[Callable[[str, float], None]]:
    """Yield a function (stage, fraction done) that shows progress on stderr."""
    if not sys.stderr.isatty():
        yield _tell_ends
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    tasks: dict[str, TaskID] = {}
    with Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
    ) as bars:

        def show(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            # Until there is a fraction to show, the bar only moves.
            bars.update(tasks[stage], completed=fraction, total=1.0 if fraction else None)

        yield show


def _tell_ends(stage: str, fraction: float) -> None:
    if fraction == 0:
        print(f"{stage} ...", file=sys.stderr, flush=True)
    elif fraction == 1:
        print(f"{stage} done", file=sys.stderr, flush=True)
