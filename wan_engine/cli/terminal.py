"""Sets up the terminal for all commands: two streams, the log, the progress bar, and failures in
one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.logging import RichHandler
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
from wan_engine.errors import EngineError
from wan_engine.runtime import logs
from wan_engine.settings import Settings

_INTERRUPTED = 130

err = Console(stderr=True)
out = Console()


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """On a terminal, a bar with stage, step and time left. Elsewhere, one line per stage."""
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


def load_settings(model: str = "") -> Settings:
    """Read the settings, put --model over them, and log to stderr."""
    settings = Settings.load()
    handler: logging.Handler = logging.StreamHandler()
    layout = "%(levelname)-7s| %(message)s"
    if err.is_terminal:
        handler, layout = RichHandler(console=err, show_path=False), "%(message)s"
    logs.set_up(settings, handler, logs.RedactingFormatter(layout, logs.secrets_of(settings)))
    return settings.model_copy(update={"model": model}) if model else settings


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn errors into one sentence and exit code 1, an interrupt into exit code 130."""
    try:
        yield
    except EngineError as error:
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(_INTERRUPTED) from None
