"""What people see of the command line: the two streams, and a bar for a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from wan_engine.control import Progress

err = Console(stderr=True)
out = Console()


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar with stage, step and time left on a terminal; elsewhere a line for each stage."""
    stages: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, disable=not err.is_terminal) as bar:

        def show(progress: Progress) -> None:
            if progress.stage not in stages:
                for task in stages.values():
                    bar.update(task, visible=False)
                stages[progress.stage] = bar.add_task(progress.stage, total=progress.steps)
                if not err.is_terminal:
                    err.print(f"{progress.stage} ...")
            bar.update(stages[progress.stage], completed=progress.step, visible=True)

        yield show
