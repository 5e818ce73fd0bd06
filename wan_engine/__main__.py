"""The command line. Results go to stdout as JSON or a table, everything else to stderr.

Exit codes: 0 done, 1 the job or a check failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column, Table

from wan_engine import acceleration, logs, weights
from wan_engine.catalog import CATALOG, CLASSIFIERS, WRITERS
from wan_engine.checks import machine_checks, start_checks
from wan_engine.control import Control, Progress
from wan_engine.engine import Engine
from wan_engine.errors import EngineError, InvalidRequest
from wan_engine.media.fetch import data_uri
from wan_engine.media.sheet import choose_frames, write_sheet
from wan_engine.outline import tables
from wan_engine.schema import VideoRequest, VideoResult
from wan_engine.settings import VERSION, Settings, described
from wan_engine.startup import Startup
from wan_engine.storage import LocalStorage

app = typer.Typer(
    name="wan_engine",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn a photo and a prompt into an mp4, on this machine.",
)
err = Console(stderr=True)
out = Console()

_INTERRUPTED = 130


Image = Annotated[str, typer.Option(help="Path, URL or data URI of the picture.")]
Prompt = Annotated[str, typer.Option(help="What is to be seen.")]
Audio = Annotated[str, typer.Option(help="Path, URL or data URI of a WAV or MP3.")]
Size = Annotated[str, typer.Option(help="`1280*720` or `1920*1080`; `720p`, `1080p`.")]
Duration = Annotated[str, typer.Option(help="5, 10 or 15 seconds.")]
ShotType = Annotated[str, typer.Option(help="`single` or `multi`.")]
Seed = Annotated[str, typer.Option(help="0 to 2147483647; -1 is random.")]
ExpandPrompt = Annotated[bool, typer.Option("--expand-prompt", help="Expand the prompt.")]
Model = Annotated[str, typer.Option(help="Instead of WAN_MODEL.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
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
    negative_prompt: Annotated[str, typer.Option(help="What is not to be seen.")] = "",
    expand_prompt: ExpandPrompt = False,
    no_safety_checker: Annotated[
        bool, typer.Option("--no-safety-checker", help="Do not check the content.")
    ] = False,
    model: Model = "",
    out_file: Annotated[str, typer.Option("--out", help="Write the mp4 here.")] = "",
    sheet: Annotated[
        str, typer.Option(help="Write a contact sheet with times and cuts here, as PNG.")
    ] = "",
    jobs: Annotated[
        str,
        typer.Option(help="A file with one request a line, as JSON, rendered on one loaded model."),
    ] = "",
) -> None:
    """Render one clip, or with --jobs many; print each result as one line of JSON."""
    request = _given(
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
    requests = _read_jobs(Path(jobs)) if jobs else [request]
    with _failing_clearly():
        settings = _settings(model)
        if not jobs:
            _check(request)  # before the model is loaded: a typing error should not cost minutes
        engine = Engine(settings)
        rendered = [_render(engine, payload) for payload in requests]
    raise typer.Exit(0 if all(rendered) else 1)


@app.command(
    epilog="Example: `python -m wan_engine plan --image photo.jpg --duration 15 --size 1080p "
    '--prompt "Leaves sway" --json`'
)
def plan(
    image: Image = "",
    prompt: Prompt = "",
    size: Size = "1280*720",
    duration: Duration = "5",
    shot_type: ShotType = "single",
    seed: Seed = "-1",
    expand_prompt: ExpandPrompt = False,
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Say what `generate` would render, in which pieces and for what price, and render nothing."""
    request = _given(
        prompt=prompt,
        image=image,
        size=size,
        duration=duration,
        shot_type=shot_type,
        seed=seed,
        enable_prompt_expansion=expand_prompt,
    )
    with _failing_clearly():
        found = Engine(_settings(model)).dry_run(VideoRequest.parse(_with_files(request)))
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
) -> None:
    """Say what is here, what was chosen for this machine and why, and what is missing."""
    with _failing_clearly():
        startup = Startup()
        settings = _settings("")
        startup.done("imports")
        checks = list(machine_checks(settings))
        startup.done("checks")
        if timing and all(check.ok for check in checks):
            checks += start_checks(settings, startup)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table("", "what", "found", show_edge=False)
        for check in checks:
            table.add_row("ok" if check.ok else "[red]FAIL[/red]", check.what, check.found)
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command(epilog="Example: `python -m wan_engine models --json`")
def models(as_json: AsJson = False) -> None:
    """List the models of the catalogue, and which of them are on this machine."""
    with _failing_clearly():
        settings = _settings("")
        gpu = acceleration.detect(settings.device)
        rows = [
            {
                "name": spec.name,
                "title": spec.title,
                "present": spec.built or weights.locate(spec, settings) is not None,
                "fits": acceleration.fits(spec, gpu),
                "download_gb": spec.download_gb,
                "gpu_gb": round(acceleration.least_gb(spec), 1),
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
        typer.Argument(help="A catalogue name, a Hub id, or `safety` for the safety classifiers."),
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
    with _failing_clearly():
        settings = _settings("")
        if verify:
            _verify(weights.resolve(model, settings).folder)
        elif model == "safety":
            for kind, name in weights.configured_classifiers(settings).items():
                print(weights.download_classifier(name, kind, settings, tell).folder)
        elif spec := CLASSIFIERS.get(model):
            print(weights.download_classifier(model, spec.kind, settings, tell).folder)
        elif model in WRITERS:
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
    table = Table("variable", "default", "meaning", show_edge=False)
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
        from wan_engine.gateway import serve as gateway  # a web server, for this command alone

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


def _check(payload: Mapping[str, Any]) -> None:
    VideoRequest.parse(_with_files(payload))
    _target(payload, "out")
    _target(payload, "sheet")


def _render(engine: Engine, payload: Mapping[str, Any]) -> bool:
    """Render one request and print its result; False when it failed."""
    try:
        target, sheet = _target(payload, "out"), _target(payload, "sheet")
        request = VideoRequest.parse(_with_files(payload))
        with _progress() as on_progress:
            seconds = engine.settings.job_seconds
            control = Control(deadline_seconds=seconds, on_progress=on_progress)
            result = _generate_to(engine, request, control, target)
        if sheet is not None:
            _draw_sheet(result, sheet)
    except EngineError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        err.print(str(error), style="red", markup=False)
        return False
    output = {**result.output(), "model": engine.spec.name}
    if result.expanded_prompt:
        output["expanded_prompt"] = result.expanded_prompt
    print(json.dumps(output), flush=True)
    return True


def _generate_to(
    engine: Engine, request: VideoRequest, control: Control, target: Path | None
) -> VideoResult:
    """Render to where the settings say, or to the file `target`."""
    if target is None:
        return engine.generate(request, control)
    configured = engine.storage
    with tempfile.TemporaryDirectory(prefix=".wan-", dir=target.parent) as folder:
        engine.storage = LocalStorage(Path(folder))
        try:
            result = engine.generate(request, control)
        finally:
            engine.storage = configured
        next(Path(folder).glob("*.mp4")).replace(target)
    return replace(result, video_url=target.as_uri())


def _draw_sheet(result: VideoResult, target: Path) -> None:
    address = urlsplit(result.video_url)
    if address.scheme != "file":
        raise InvalidRequest("--sheet: the clip is in the bucket; keep it here with --out")
    if result.plan is None:
        raise InvalidRequest("--sheet: the clip was made before, and its plan is not known")
    plan = result.plan
    shown = choose_frames(plan.frames, plan.fps, plan.cut_seconds)
    write_sheet(Path(unquote(address.path)), shown, plan.fps, target)


def _target(payload: Mapping[str, Any], field: str) -> Path | None:
    """The file that --out or --sheet, or `out` or `sheet` in a jobs file, names."""
    if not payload.get(field):
        return None
    path = Path(str(payload[field])).expanduser().resolve()
    if not path.parent.is_dir():
        raise InvalidRequest(f"--{field}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise InvalidRequest(f"--{field}: {path} is a folder, not a file")
    return path


def _with_files(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The request with local paths made into data URIs, which is all that a request may carry."""
    request = {key: value for key, value in payload.items() if key not in ("out", "sheet")}
    for field in ("image", "audio"):
        value = request.get(field)
        if isinstance(value, str) and value and not _is_address(value):
            try:
                request[field] = data_uri(Path(value).expanduser())
            except (OSError, RuntimeError, ValueError) as error:
                shown = value if len(value) < 200 else value[:60] + "..."
                raise InvalidRequest(f"{field}: there is no file {shown}") from error
    return request


def _is_address(value: str) -> bool:
    return value.lower().startswith(("http:", "https:", "data:"))


def _read_jobs(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; paths in them are relative to the working directory."""
    jobs = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = json.loads(line)
        except ValueError as error:
            raise typer.BadParameter(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(job, dict):
            raise typer.BadParameter(f"{path} line {number} is not an object")
        jobs.append(job)
    return jobs


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
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
