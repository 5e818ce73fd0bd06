"""`download`: fetches a model's files from the Hub, or verifies the files that are here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from wan_engine import weights
from wan_engine.catalog import CLASSIFIERS, WRITERS
from wan_engine.cli.terminal import err, failing_clearly, load_settings

EXAMPLE = "wan2.2-ti2v-5b"


def download(
    model: Annotated[
        str,
        typer.Argument(
            help="A catalogue name or a Hub id, with or without `@revision`; or `safety` for the "
            "safety classifiers."
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Download nothing; compare each file with its hash."),
    ] = False,
) -> None:
    """Download a model into the Hugging Face cache (HF_HOME).

    It takes the revision that the catalogue pins, or the newest if it pins none.

    Prints size, licence and free disk space first. Run it again to continue after an interruption.
    HF_TOKEN is your Hub token, HF_ENDPOINT a mirror.
    """
    tell = partial(err.print, markup=False, highlight=False, soft_wrap=True)
    row = model.partition("@")[0]
    with failing_clearly():
        settings = load_settings()
        if verify:
            located = weights.resolve(model, settings)
            _verify(located.fetched or located.folder)
        elif model == "safety":
            for kind, name in weights.configured_classifiers(settings).items():
                print(weights.download_classifier(name, kind, settings, tell).folder)
        elif spec := CLASSIFIERS.get(row):
            print(weights.download_classifier(model, spec.kind, settings, tell).folder)
        elif row in WRITERS:
            print(weights.download_writer(model, settings, tell))
        else:
            print(weights.download(model, settings, tell).folder)


def _verify(folder: Path) -> None:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=total)
        weights.verify(folder, lambda size: bar.advance(task, size))
    print(folder)
