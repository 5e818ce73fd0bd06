"""`generate`: renders one clip, or one for each line of a file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from wan_engine.checks import require
from wan_engine.cli.local_requests import LocalRequest, read_jobs
from wan_engine.cli.options import RequestOptions, with_request_options
from wan_engine.cli.terminal import err, failing_clearly, load_settings, out, progress_bar
from wan_engine.control import Control, Preview
from wan_engine.engine import Engine
from wan_engine.errors import EngineError, InvalidRequest
from wan_engine.media.sheet import choose_frames, write_sheet
from wan_engine.runtime import paths
from wan_engine.runtime.paths import PathRefused
from wan_engine.schema import Request, VideoResult
from wan_engine.storage import LocalStorage

EXAMPLE = '--image photo.jpg --prompt "Leaves sway" --out clip.mp4'


@with_request_options
def generate(
    options: RequestOptions,
    out_file: Annotated[str, typer.Option("--out", help="Path of the mp4.")] = "",
    sheet: Annotated[
        str, typer.Option(help="Path of a contact sheet with times and cuts, as PNG.")
    ] = "",
    preview: Annotated[
        str,
        typer.Option(help="Path of a small animated picture of the unfinished clip, as WEBP."),
    ] = "",
    jobs: Annotated[
        str,
        typer.Option(
            help="File with one request as JSON per line (`-`: stdin). The model is loaded once."
        ),
    ] = "",
) -> None:
    """Render one clip, or many with --jobs. Each result is one line of JSON."""
    one = LocalRequest({**options.payload(), "out": out_file, "sheet": sheet, "preview": preview})
    asked = _read_jobs(jobs) if jobs else [one]
    with failing_clearly():
        settings = load_settings(options.model)
        # Before the model is loaded: a typing error should not cost minutes.
        wrong = [request.look(settings) for request in asked]
        if not jobs and wrong[0]:
            raise InvalidRequest(wrong[0])
        _tell_wrong(asked, wrong)
        if not all(wrong):
            good = [request for request, why in zip(asked, wrong, strict=True) if not why]
            require(settings, stores=not all(request.payload.get("out") for request in good))
            engine = Engine(settings)
        done = [
            _refused(why) if why else _render(engine, request)
            for request, why in zip(asked, wrong, strict=True)
        ]
    raise typer.Exit(0 if all(done) else 1)


def _read_jobs(source: str) -> list[LocalRequest]:
    try:
        return read_jobs(source)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--jobs") from error


def _tell_wrong(asked: Sequence[LocalRequest], wrong: Sequence[str | None]) -> None:
    """Print which requests will not be rendered, and why."""
    for place, why in zip((request.place for request in asked), wrong, strict=True):
        if why:
            told = why if why.startswith(place) else f"{place}: {why}"
            err.print(told, style="red", markup=False, highlight=False, soft_wrap=True)


def _refused(why: str) -> bool:
    print(json.dumps({"error": why}), flush=True)
    return False


def _render(engine: Engine, asked: LocalRequest) -> bool:
    """Render one request and print its result. False if it or its contact sheet failed."""
    try:
        target, sheet = asked.target("out"), asked.target("sheet")
        request = asked.request(engine.settings)
        with progress_bar() as on_progress, asked.naming_files():
            seconds = engine.settings.job_seconds
            preview = asked.target("preview")
            control = Control(
                deadline_seconds=seconds,
                on_progress=on_progress,
                on_preview=partial(_replace, preview) if preview else None,
            )
            result = _generate_to(engine, request, control, target)
    except (EngineError, PathRefused) as error:
        _tell_error(str(error))
        return _refused(str(error))
    output = {**result.output(), "model": result.model}
    if result.expanded_prompt:
        output["expanded_prompt"] = result.expanded_prompt
    print(json.dumps(output), flush=True)
    return sheet is None or _draw_sheet(result, sheet)


def _replace(target: Path, preview: Preview) -> None:
    """Write the preview, so that a viewer never sees half of one."""
    beside = target.with_name(f".{target.name}.part")
    beside.write_bytes(preview.content)
    beside.replace(target)


def _tell_error(sentence: str) -> None:
    """Print to stderr, unless stdout shows the sentence on the same terminal."""
    if not (out.is_terminal and err.is_terminal):
        err.print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)


def _generate_to(
    engine: Engine, request: Request, control: Control, target: Path | None
) -> VideoResult:
    """Render to the storage of the settings, or to the file `target`."""
    if target is None:
        return engine.generate(request, control)
    with paths.refusing(target):
        beside = tempfile.TemporaryDirectory(prefix=".wan-", dir=target.parent)
    with beside as folder:
        result = engine.generate(request, control, LocalStorage(Path(folder)))
        with paths.refusing(target):
            next(Path(folder).glob("*.mp4")).replace(target)
    return replace(result, video_url=target.as_uri())


def _draw_sheet(result: VideoResult, target: Path) -> bool:
    """Draw the contact sheet. If that fails, say so and keep the clip."""
    assert result.plan is not None
    plan = result.plan
    shown = choose_frames(plan.frames, plan.fps, plan.cut_seconds)
    try:
        write_sheet(Path(unquote(urlsplit(result.video_url).path)), shown, plan.fps, target)
    except (EngineError, PathRefused) as error:
        err.print(f"--sheet: {error}; the clip is whole", style="yellow", markup=False)
        return False
    return True
