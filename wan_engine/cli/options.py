"""Options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

Model = Annotated[str, typer.Option(help="Instead of WAN_MODEL.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]

P = ParamSpec("P")


@dataclass(frozen=True)
class RequestOptions:
    """A request as the command line has it: an option a field."""

    image: Annotated[str, typer.Option(help="Path, URL or data URI of the picture.")] = ""
    prompt: Annotated[str, typer.Option(help="What is to be seen.")] = ""
    audio: Annotated[str, typer.Option(help="Path, URL or data URI of a WAV or MP3.")] = ""
    size: Annotated[str, typer.Option(help="`1280*720` or `1920*1080`; `720p`, `1080p`.")] = (
        "1280*720"
    )
    duration: Annotated[str, typer.Option(help="5, 10 or 15 seconds.")] = "5"
    shot_type: Annotated[str, typer.Option(help="`single` or `multi`.")] = "single"
    seed: Annotated[str, typer.Option(help="0 to 2147483647; -1 is random.")] = "-1"
    negative_prompt: Annotated[str, typer.Option(help="What is not to be seen.")] = ""
    expand_prompt: Annotated[bool, typer.Option("--expand-prompt", help="Expand the prompt.")] = (
        False
    )
    no_safety_checker: Annotated[
        bool, typer.Option("--no-safety-checker", help="Do not check the content.")
    ] = False
    model: Model = ""

    def payload(self) -> dict[str, Any]:
        """The request's fields that were said; `model` is none of them."""
        said = {name: value for name, value in asdict(self).items() if value != ""}
        said.pop("model", None)
        said["enable_prompt_expansion"] = said.pop("expand_prompt")
        said["enable_safety_checker"] = not said.pop("no_safety_checker")
        return said


def with_request_options(
    command: Callable[Concatenate[RequestOptions, P], None],
) -> Callable[..., None]:
    """`command` with all of `RequestOptions` in front of its own options, as typer reads them from
    its signature."""
    names = [field.name for field in fields(RequestOptions)]

    def taken(*args: Any, **given: Any) -> None:
        options = RequestOptions(**{name: given.pop(name) for name in names})
        command(options, *args, **given)

    kinds = get_type_hints(RequestOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=kinds[field.name],
        )
        for field in fields(RequestOptions)
    ]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    taken.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    taken.__annotations__ = {}
    taken.__name__, taken.__doc__ = command.__name__, command.__doc__
    return taken
