"""Defines the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

Model = Annotated[str, typer.Option(help="Model to use instead of WAN_MODEL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@dataclass(frozen=True)
class RequestOptions:
    """A request on the command line: one option per field."""

    image: Annotated[str, typer.Option(help="Path, URL or data URI of the picture.")] = ""
    prompt: Annotated[str, typer.Option(help="What you want to see.")] = ""
    last_image: Annotated[
        str, typer.Option(help="Path, URL or data URI of the picture to end with.")
    ] = ""
    first_clip: Annotated[
        str,
        typer.Option(
            help="Path, URL or data URI of an MP4 or MOV to continue, instead of --image. "
            "--duration is then the length of both, or of the new part with "
            "--no-keep-first-clip."
        ),
    ] = ""
    keep_first_clip: Annotated[
        bool | None,
        typer.Option(
            help="Start the result with --first-clip, or return only the new part.",
            show_default=False,
        ),
    ] = None
    reference: Annotated[
        list[str],
        typer.Option(
            help="Path, URL or data URI of a picture or video of a subject, instead of --image. "
            "Repeat it for the next subject."
        ),
    ] = field(default_factory=list)
    lora: Annotated[
        list[str],
        typer.Option(
            help="LoRA of WAN_LORA_DIR, as NAME, NAME:SCALE or NAME:SCALE:EXPERT (`high`, `low`, "
            "`both`). Repeat it for the next one."
        ),
    ] = field(default_factory=list)
    audio: Annotated[str, typer.Option(help="Path, URL or data URI of a WAV or MP3.")] = ""
    size: Annotated[
        str,
        typer.Option(
            help="`1280*720` (`720p`) or `1920*1080` (`1080p`): a number of pixels. The clip keeps "
            "the shape of the picture."
        ),
    ] = "1280*720"
    duration: Annotated[str, typer.Option(help="2 to 15 seconds.")] = "5"
    shot_type: Annotated[str, typer.Option(help="`single`, or `multi` with --expand-prompt.")] = (
        "single"
    )
    seed: Annotated[str, typer.Option(help="0 to 2147483647; -1 is random.")] = "-1"
    negative_prompt: Annotated[str, typer.Option(help="What you do not want to see.")] = ""
    generate_audio: Annotated[
        bool | None,
        typer.Option(
            help="Whether a clip without --audio gets a sound track. Default: WAN_GENERATE_AUDIO.",
            show_default=False,
        ),
    ] = None
    expand_prompt: Annotated[
        bool, typer.Option("--expand-prompt", help="Let a model rewrite the prompt.")
    ] = False
    no_safety_checker: Annotated[
        bool, typer.Option("--no-safety-checker", help="Do not check prompt, image and clip.")
    ] = False
    model: Model = ""

    def payload(self) -> dict[str, Any]:
        """The fields of the request that were given, without `model`."""
        said = {name: value for name, value in asdict(self).items() if value not in ("", None, [])}
        if "reference" in said:
            said["references"] = said.pop("reference")
        if "lora" in said:
            said["loras"] = [_lora(one) for one in said.pop("lora")]
        said.pop("model", None)
        said["enable_prompt_expansion"] = said.pop("expand_prompt")
        said["enable_safety_checker"] = not said.pop("no_safety_checker")
        return said


def _lora(text: str) -> dict[str, Any]:
    """The entry of `loras` for NAME:SCALE:EXPERT. `VideoRequest` reports its errors."""
    name, _, rest = text.partition(":")
    scale, _, expert = rest.partition(":")
    try:
        number: float | str = float(scale)
    except ValueError:
        number = scale
    given = {"name": name, "scale": number, "expert": expert}
    return {key: value for key, value in given.items() if value != ""}


def with_request_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(options, ...)` with an option for each field of `RequestOptions` before its own
    options. typer reads them from the signature."""
    kinds = get_type_hints(RequestOptions, include_extras=True)
    shared = [
        Parameter(
            one.name,
            Parameter.KEYWORD_ONLY,
            default=[] if one.default is MISSING else one.default,
            annotation=kinds[one.name],
        )
        for one in fields(RequestOptions)
    ]
    _, *own = signature(command, eval_str=True).parameters.values()

    def taken(**said: Any) -> None:
        options = RequestOptions(**{option.name: said.pop(option.name) for option in shared})
        command(options, **said)

    own = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in own]
    taken.__signature__ = Signature([*shared, *own])  # type: ignore[attr-defined]
    taken.__annotations__ = {}  # otherwise typer would read those of `said`
    taken.__doc__ = command.__doc__
    return taken
