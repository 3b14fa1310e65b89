"""Show how far a long run is: a bar a stage on a terminal, a line a stage elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stage_progress() -> Iterator[Callable[[str, float, str], None]]:
    """Yield a function (stage, fraction done, note) that shows progress on stderr."""
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
        TextColumn("{task.fields[note]}"),
        console=Console(file=sys.stderr),
    ) as bars:

        def show(stage: str, fraction: float, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None, note="")
            # Until there is a fraction to show, the bar only moves.
            total = 1.0 if fraction else None
            bars.update(tasks[stage], completed=fraction, total=total, note=note)

        yield show


@contextmanager
def step_status() -> Iterator[Callable[[str], None]]:
    """Yield a function (step) that shows on a terminal's stderr what is being done."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(file=sys.stderr).status("") as status:
        yield lambda step: status.update(step)


def _tell_ends(stage: str, fraction: float, note: str) -> None:
    if fraction == 0:
        print(f"{stage} ...", file=sys.stderr, flush=True)
    elif fraction == 1:
        print(f"{stage} done{': ' if note else ''}{note}", file=sys.stderr, flush=True)
