"""The command line. Results go to stdout as JSON or a table, everything else to stderr.

Exit codes: 0 done, 1 a job, its contact sheet or a check failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from wan_engine import logs, weights
from wan_engine.catalog import CATALOG, CLASSIFIERS, WRITERS
from wan_engine.checks import machine_checks, require, start_checks
from wan_engine.cli.orders import Order, read_jobs
from wan_engine.cli.plan_table import tables
from wan_engine.cli.terminal import err, out, progress_bar
from wan_engine.control import Control
from wan_engine.engine import Engine
from wan_engine.errors import EngineError, InvalidRequest
from wan_engine.media.sheet import choose_frames, write_sheet
from wan_engine.runtime import paths, recipes
from wan_engine.runtime.paths import PathRefused
from wan_engine.runtime.startup import Startup, end_when_told
from wan_engine.schema import VideoRequest, VideoResult
from wan_engine.settings import VERSION, Settings, described
from wan_engine.settings.environment import in_runpod_loop
from wan_engine.storage import LocalStorage

app = typer.Typer(
    name="wan_engine",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn a photo and a prompt into an mp4, on this machine.",
)
_INTERRUPTED = 130
_LEVELS = {"ok": "ok", "warn": "[yellow]warn[/yellow]", "fail": "[red]FAIL[/red]"}


Image = Annotated[str, typer.Option(help="Path, URL or data URI of the picture.")]
Prompt = Annotated[str, typer.Option(help="What is to be seen.")]
Audio = Annotated[str, typer.Option(help="Path, URL or data URI of a WAV or MP3.")]
Size = Annotated[str, typer.Option(help="`1280*720` or `1920*1080`; `720p`, `1080p`.")]
Duration = Annotated[str, typer.Option(help="5, 10 or 15 seconds.")]
ShotType = Annotated[str, typer.Option(help="`single` or `multi`.")]
Seed = Annotated[str, typer.Option(help="0 to 2147483647; -1 is random.")]
ExpandPrompt = Annotated[bool, typer.Option("--expand-prompt", help="Expand the prompt.")]
NegativePrompt = Annotated[str, typer.Option(help="What is not to be seen.")]
NoSafetyChecker = Annotated[
    bool, typer.Option("--no-safety-checker", help="Do not check the content.")
]
Model = Annotated[str, typer.Option(help="Instead of WAN_MODEL.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    end_when_told()
    if version:
        print(VERSION)
        raise typer.Exit


@app.command(
    epilog="Example: `python -m wan_engine generate --image photo.jpg "
    '--prompt "Leaves sway" --out clip.mp4`'
)
def generate(
    image: Image = "",
    prompt: Prompt = "",
    audio: Audio = "",
    size: Size = "1280*720",
    duration: Duration = "5",
    shot_type: ShotType = "single",
    seed: Seed = "-1",
    negative_prompt: NegativePrompt = "",
    expand_prompt: ExpandPrompt = False,
    no_safety_checker: NoSafetyChecker = False,
    model: Model = "",
    out_file: Annotated[str, typer.Option("--out", help="Write the mp4 here.")] = "",
    sheet: Annotated[
        str, typer.Option(help="Write a contact sheet with times and cuts here, as PNG.")
    ] = "",
    jobs: Annotated[
        str,
        typer.Option(
            help="A file (`-`: stdin) with one request a line, as JSON, for one loaded model."
        ),
    ] = "",
) -> None:
    """Render one clip, or with --jobs many; print each result as one line of JSON."""
    given = _given(
        prompt=prompt,
        image=image,
        audio=audio,
        negative_prompt=negative_prompt,
        size=size,
        duration=duration,
        shot_type=shot_type,
        seed=seed,
        enable_prompt_expansion=expand_prompt,
        enable_safety_checker=not no_safety_checker,
        out=out_file,
        sheet=sheet,
    )
    asked = _read_jobs(jobs) if jobs else [Order(given)]
    with _failing_clearly():
        settings = _settings(model)
        # Before the model is loaded: a typing error should not cost minutes.
        wrong = [order.look(settings) for order in asked]
        if not jobs and wrong[0]:
            raise InvalidRequest(wrong[0])
        _tell_wrong(asked, wrong)
        if not all(wrong):
            good = [order for order, why in zip(asked, wrong, strict=True) if not why]
            require(settings, stores=not all(order.payload.get("out") for order in good))
            engine = Engine(settings)
        done = [
            _refused(why) if why else _render(engine, order)
            for order, why in zip(asked, wrong, strict=True)
        ]
    raise typer.Exit(0 if all(done) else 1)


@app.command(
    epilog="Example: `python -m wan_engine plan --image photo.jpg --duration 15 --size 1080p "
    '--prompt "Leaves sway" --json`'
)
def plan(
    image: Image = "",
    prompt: Prompt = "",
    audio: Audio = "",
    size: Size = "1280*720",
    duration: Duration = "5",
    shot_type: ShotType = "single",
    seed: Seed = "-1",
    negative_prompt: NegativePrompt = "",
    expand_prompt: ExpandPrompt = False,
    no_safety_checker: NoSafetyChecker = False,
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Say what `generate` would render, in which pieces and for what price, and render nothing."""
    order = Order(
        _given(
            prompt=prompt,
            image=image,
            audio=audio,
            negative_prompt=negative_prompt,
            size=size,
            duration=duration,
            shot_type=shot_type,
            seed=seed,
            enable_prompt_expansion=expand_prompt,
            enable_safety_checker=not no_safety_checker,
        )
    )
    with _failing_clearly(), order.naming_files():
        settings = _settings(model)
        request = order.request(settings)
        found = Engine(settings).dry_run(request)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for table in tables(found):
            out.print(table)


@app.command(epilog="Example: `python -m wan_engine doctor --timing`")
def doctor(
    as_json: AsJson = False,
    timing: Annotated[
        bool, typer.Option("--timing", help="Start as a worker does and say what took how long.")
    ] = False,
    worker: Annotated[
        bool | None,
        typer.Option(
            "--worker/--no-worker",
            help="Ask what the Runpod loop asks. The default where RUNPOD_WEBHOOK_GET_JOB is set.",
        ),
    ] = None,
) -> None:
    """Say what is here, what was chosen for this machine and why, and what is missing.

    `ok`, `warn` where jobs run but not as promised, `FAIL` where they do not: exit code 1.
    """
    worker = in_runpod_loop() if worker is None else worker
    with _failing_clearly():
        startup = Startup()
        settings = _settings("")
        startup.done("imports")
        checks = list(machine_checks(settings, worker=worker))
        startup.done("checks")
        if timing and all(check.ok for check in checks):
            checks += start_checks(settings, startup, worker=worker)
    if as_json:
        print(json.dumps([{**asdict(check), "ok": check.ok} for check in checks], indent=2))
    else:
        asked = "as a worker of Runpod's" if worker else "on this machine"
        table = Table("", Column("what", no_wrap=True), f"found {asked}", show_edge=False)
        for check in checks:
            table.add_row(_LEVELS[check.level], check.what, Text(check.found))
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command(epilog="Example: `python -m wan_engine models --json`")
def models(as_json: AsJson = False) -> None:
    """List the models of the catalogue, and which of them are on this machine."""
    with _failing_clearly():
        settings = _settings("")
        gpu = recipes.detect(settings.device)
        rows = [
            {
                "name": spec.name,
                "title": spec.title,
                "present": spec.built or weights.locate(spec, settings) is not None,
                "fits": recipes.fits(spec, gpu),
                "download_gb": spec.download_gb,
                "gpu_gb": round(recipes.least_gb(spec), 1),
                "licence": spec.licence,
                "repo": spec.repo,
                "revision": spec.revision,
            }
            for spec in CATALOG.values()
        ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(
        Column("name", no_wrap=True), "present", "fits", "download", "GPU", "what", show_edge=False
    )
    for row in rows:
        marks = ["yes" if row[key] else "no" for key in ("present", "fits")]
        sizes = [f"{row[key]:g} GB" if row["repo"] else "-" for key in ("download_gb", "gpu_gb")]
        table.add_row(str(row["name"]), *marks, *sizes, str(row["title"]))
    out.print(table)
    out.print()
    out.print(_classifiers(settings))


def _classifiers(settings: Settings) -> Table:
    used = weights.configured_classifiers(settings).values()
    table = Table(
        Column("safety classifier", no_wrap=True),
        *("present", "used", "download", "what"),
        show_edge=False,
    )
    for name in dict.fromkeys((*CLASSIFIERS, *used)):
        spec = CLASSIFIERS.get(name)
        present = weights.has_classifier(name, settings)
        size = f"{spec.download_gb:g} GB" if spec and spec.repo else "-"
        title = spec.title if spec else "named by a setting"
        marks = ["yes" if mark else "no" for mark in (present, name in used)]
        table.add_row(name, *marks, size, title)
    return table


@app.command(epilog="Example: `python -m wan_engine download wan2.2-ti2v-5b`")
def download(
    model: Annotated[
        str,
        typer.Argument(
            help="A catalogue name or a Hub id, both with or without `@revision`, or `safety` for "
            "the safety classifiers."
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Fetch nothing; compare each file here with its hash."),
    ] = False,
) -> None:
    """Fetch a model's files at the pinned revision into the Hub's cache (HF_HOME).

    Says size, licence and free disk first; a second call goes on where the first one ended.
    HF_TOKEN is the Hub's key, HF_ENDPOINT a mirror.
    """
    tell = partial(err.print, markup=False, highlight=False, soft_wrap=True)
    row = model.partition("@")[0]
    with _failing_clearly():
        settings = _settings("")
        if verify:
            _verify(weights.resolve(model, settings).folder)
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


@app.command(epilog="Example: `python -m wan_engine schema > input.schema.json`")
def schema() -> None:
    """Print the JSON schema of a request's `input`."""
    print(json.dumps(VideoRequest.model_json_schema(), indent=2))


@app.command(epilog="Example: `python -m wan_engine settings --json`")
def settings(as_json: AsJson = False) -> None:
    """List every environment variable with its default and meaning."""
    rows = described()
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table(Column("variable", no_wrap=True), "default", "meaning", show_edge=False)
    for row in rows:
        table.add_row(row.variable, row.default, row.meaning)
    out.print(table)


@app.command(epilog="Example: `python -m wan_engine serve --port 8080`")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any.")] = 8000,
    model: Model = "",
) -> None:
    """Serve the hosted APIs from this machine, or from a Runpod endpoint."""
    with _failing_clearly():
        from wan_engine.gateway.http import serve as gateway  # a web server, for this command alone

        gateway.serve(_settings(model), host, port)


@app.command(epilog="Example: `python -m wan_engine key alice --weight 2 --max 50`")
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    weight: Annotated[
        float | None, typer.Option(help="Turns that it has for one of another key's.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", help="Jobs of its that may wait at a time.")
    ] = None,
) -> None:
    """Make an API key for the gateway; it is shown this once, and only its hash is kept."""
    from wan_engine.gateway import keys

    with _failing_clearly():
        made, entry = keys.new_entry(name, weight, most)
    err.print("Add the second line to WAN_API_KEYS; give the first to the caller.")
    print(made)
    print(entry)


# --- one clip ----------------------------------------------------------------------------------


def _given(**fields: Any) -> dict[str, Any]:
    """What was said on the command line."""
    return {name: value for name, value in fields.items() if value != ""}


def _read_jobs(source: str) -> list[Order]:
    try:
        return read_jobs(source)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--jobs") from error


def _tell_wrong(orders: Sequence[Order], wrong: Sequence[str | None]) -> None:
    """What will not be rendered, for whoever watches."""
    for order, why in zip(orders, wrong, strict=True):
        if why:
            place = f"{order.place}: " if order.place and not why.startswith(order.place) else ""
            err.print(f"{place}{why}", style="red", markup=False, highlight=False, soft_wrap=True)


def _refused(why: str) -> bool:
    print(json.dumps({"error": why}), flush=True)
    return False


def _render(engine: Engine, order: Order) -> bool:
    """Render one request and print its result; False when it failed, or its contact sheet."""
    try:
        target, sheet = order.target("out"), order.target("sheet")
        request = order.request(engine.settings)
        with progress_bar() as on_progress, order.naming_files():
            seconds = engine.settings.job_seconds
            control = Control(deadline_seconds=seconds, on_progress=on_progress)
            result = _generate_to(engine, request, control, target)
    except (EngineError, PathRefused) as error:
        _tell_error(str(error))
        return _refused(str(error))
    output = {**result.output(), "model": engine.spec.name}
    if result.expanded_prompt:
        output["expanded_prompt"] = result.expanded_prompt
    print(json.dumps(output), flush=True)
    return sheet is None or _draw_sheet(result, sheet)


def _tell_error(sentence: str) -> None:
    """To stderr, unless stdout shows it on the same terminal."""
    if not (out.is_terminal and err.is_terminal):
        err.print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)


def _generate_to(
    engine: Engine, request: VideoRequest, control: Control, target: Path | None
) -> VideoResult:
    """Render to where the settings say, or to the file `target`."""
    if target is None:
        return engine.generate(request, control)
    configured = engine.storage
    with paths.refusing(target):
        beside = tempfile.TemporaryDirectory(prefix=".wan-", dir=target.parent)
    with beside as folder:
        engine.storage = LocalStorage(Path(folder))
        try:
            result = engine.generate(request, control)
        finally:
            engine.storage = configured
        with paths.refusing(target):
            next(Path(folder).glob("*.mp4")).replace(target)
    return replace(result, video_url=target.as_uri())


def _draw_sheet(result: VideoResult, target: Path) -> bool:
    """A sheet that cannot be drawn is told, and costs nothing but itself."""
    assert result.plan is not None
    plan = result.plan
    shown = choose_frames(plan.frames, plan.fps, plan.cut_seconds)
    try:
        write_sheet(Path(unquote(urlsplit(result.video_url).path)), shown, plan.fps, target)
    except (EngineError, PathRefused) as error:
        err.print(f"--sheet: {error}; the clip is whole", style="yellow", markup=False)
        return False
    return True


# --- what every command needs -------------------------------------------------------------------


def _settings(model: str) -> Settings:
    """The environment's settings with --model put over them, and logging to stderr."""
    settings = Settings.load()
    handler: logging.Handler = logging.StreamHandler()
    layout = "%(levelname)-7s| %(message)s"
    if err.is_terminal:
        handler, layout = RichHandler(console=err, show_path=False), "%(message)s"
    logs.set_up(settings, handler, logs.RedactingFormatter(layout, logs.secrets_of(settings)))
    return settings.model_copy(update={"model": model}) if model else settings


@contextmanager
def _failing_clearly() -> Iterator[None]:
    """Errors become one sentence and exit code 1, an interrupt becomes exit code 130."""
    try:
        yield
    except EngineError as error:
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(_INTERRUPTED) from None


if __name__ == "__main__":
    app()
