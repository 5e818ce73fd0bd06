"""Draws the SVG files of the docs: the line from a request to an mp4, the gateway, and the masks of
segments.

These files look the same on GitHub and on the website, and load nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
_MARGIN = 12
_LABEL = 118  # width of the column with the names of the rows
_BOX_HEIGHT = 44
_GAP = 22
_TEXT = "#1f2933"
_MUTED = "#5b6773"
_STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:13px;"
    f"fill:{_TEXT}}}"
    ".file{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:10.5px;"
    f"fill:{_MUTED}}}"
    f".note{{font-size:11px;fill:{_MUTED}}}"
    ".row{font-weight:600}"
)


@dataclass(frozen=True)
class Box:
    """A step, and its file below `wan_engine/`. `then`: an arrow leads to the next box of the
    row."""

    text: str
    file: str = ""
    then: bool = True


@dataclass(frozen=True)
class Row:
    """A band with a name, a note below the name, and boxes."""

    name: str
    note: str
    boxes: Sequence[Box]
    fill: str


_GREY, _BLUE, _GREEN, _AMBER, _PINK = "#eceff2", "#e3eefb", "#e2f3e6", "#fdf0d8", "#f9e4ec"

LINE = (
    Row(
        "ask",
        "one request",
        (
            Box("Runpod's loop", "handler.py", then=False),
            Box("command line", "cli/generate.py", then=False),
            Box("gateway", "gateway/backends/", then=False),
            Box("your Python", "Engine.generate", then=False),
        ),
        _GREY,
    ),
    Row(
        "choose",
        "one shape for all",
        (Box("request to order", "schema/requests.py"), Box("choose the model", "choice.py")),
        _GREY,
    ),
    Row(
        "prepare",
        "network and CPU",
        (
            Box("check prompt", "safety.py"),
            Box("fetch", "media/fetch.py"),
            Box("image, check", "media/images.py"),
            Box("open sound", "media/audio.py"),
            Box("expand", "prompts/"),
        ),
        _BLUE,
    ),
    Row(
        "plan",
        "arithmetic only",
        (Box("sizes, shots, segments, frames, seeds", "plan.py"),),
        _GREY,
    ),
    Row(
        "render",
        "GPU, one at a time",
        (
            Box("wait, load model", "pool.py"),
            Box("denoise: latents", "families/i2v.py"),
            Box("decode: frames", "families/base.py"),
            Box("join segments", "media/joins.py"),
        ),
        _GREEN,
    ),
    Row(
        "stream",
        "a few frames each",
        (
            Box("check frames", "safety.py"),
            Box("upscale", "media/upscale.py"),
            Box("interpolate", "media/retime.py"),
            Box("encode: mp4", "media/video.py"),
        ),
        _GREEN,
    ),
    Row(
        "publish",
        "network",
        (Box("upload", "storage/s3.py"), Box("URL, cost, seed, warnings", "schema/clip.py")),
        _AMBER,
    ),
)

GATEWAY = (
    Row(
        "call",
        "HTTP",
        (
            Box("limit bytes, seconds", "http/connection.py"),
            Box("key, rate, size", "http/guard.py"),
        ),
        _GREY,
    ),
    Row(
        "door",
        "one API each",
        (
            Box("Runpod", "doors/runpod/", then=False),
            Box("AI/ML API", "doors/aiml/", then=False),
            Box("Oxen", "doors/oxen/", then=False),
        ),
        _BLUE,
    ),
    Row(
        "accept",
        "stored: it will end",
        (
            Box("check, find a place", "jobs/service.py"),
            Box("keep its pictures", "jobs/requests.py"),
            Box("store the job", "jobs/store.py"),
        ),
        _PINK,
    ),
    Row(
        "run",
        "keys take turns",
        (
            Box("wait for a turn", "jobs/fair_queue.py"),
            Box("claim, hand over", "jobs/dispatch.py"),
        ),
        _PINK,
    ),
    Row(
        "render",
        "one of the two",
        (
            Box("engine, own process", "backends/local.py", then=False),
            Box("Runpod endpoint", "backends/endpoint.py", then=False),
        ),
        _GREEN,
    ),
    Row(
        "tell",
        "once it has ended",
        (
            Box("complete or fail", "jobs/service.py"),
            Box("status, with a link", "links.py", then=False),
            Box("webhook", "jobs/webhooks.py", then=False),
        ),
        _AMBER,
    ),
)


def line() -> str:
    """The drawing of the line from a request to an mp4."""
    return _bands(LINE, "From a request to an mp4: ask, choose, prepare, plan, render, publish")


def gateway() -> str:
    """The drawing of a job's way through the gateway."""
    return _bands(GATEWAY, "A job's way through the gateway: call, door, accept, run, render, tell")


def _bands(rows: Sequence[Row], title: str) -> str:
    height, parts = _MARGIN, []
    for index, row in enumerate(rows):
        if index:
            height += 18
            x = _MARGIN + _LABEL + (WIDTH - _LABEL - 2 * _MARGIN) / 2
            parts.append(_arrow(x, height - 16, x, height - 2))
        parts += _band(row, height)
        height += _BOX_HEIGHT + 20
    return _page(height + _MARGIN, title, parts)


def _band(row: Row, top: float) -> Iterator[str]:
    middle = top + (_BOX_HEIGHT + 20) / 2
    yield _rectangle(_MARGIN, top, WIDTH - 2 * _MARGIN, _BOX_HEIGHT + 20, row.fill, stroke="none")
    yield _text(_MARGIN + 12, middle - 2, row.name, "row")
    yield _text(_MARGIN + 12, middle + 14, row.note, "note")
    room = WIDTH - _LABEL - 4 * _MARGIN - (len(row.boxes) - 1) * _GAP
    width, x = room / len(row.boxes), _MARGIN + _LABEL + _MARGIN
    for index, box in enumerate(row.boxes):
        yield _rectangle(x, top + 10, width, _BOX_HEIGHT, "#ffffff")
        yield _text(x + width / 2, top + 28, box.text, anchor="middle")
        yield _text(x + width / 2, top + 44, box.file, "file", anchor="middle")
        x += width
        if box.then and index + 1 < len(row.boxes):
            yield _arrow(x + 3, middle, x + _GAP - 3, middle)
        x += _GAP


# --- what segments are given -------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """The first latents of a segment: the content of each (a key of `CELLS`), and whether the model
    is told that it is known."""

    kind: str
    way: str
    latents: Sequence[str]
    known: Sequence[bool]


CELLS = {
    "image": ("#8ec5f0", "image"),
    "frames": ("#a5d6a7", "last five frames, encoded"),
    "latent": ("#f6c667", "last latents, as they are"),
    "grey": ("#c3c9d0", "grey, encoded behind them"),
    "zero": ("#ffffff", "zeros"),
    "noise": ("#efe3f7", "noise alone"),
}
_SHOWN = 5  # of 21: the others are like the last of these

MASKS = (
    Segment("A14B", "first segment", ("image", *["grey"] * 4), (True, *[False] * 4)),
    Segment("A14B", "last_frames", (*["frames"] * 2, *["grey"] * 3), (*[True] * 2, *[False] * 3)),
    Segment("A14B", "svi", ("image", "latent", *["zero"] * 3), (True, *[False] * 4)),
    Segment("TI2V", "first segment", ("image", *["noise"] * 4), (True, *[False] * 4)),
    Segment("TI2V", "last_frames", (*["frames"] * 2, *["noise"] * 3), (*[True] * 2, *[False] * 3)),
    Segment("TI2V", "latents", (*["latent"] * 2, *["noise"] * 3), (*[True] * 2, *[False] * 3)),
)
"""`families/continuation.py` fills these; its tests compare it with this table."""


def masks() -> str:
    """The drawing of a segment's first latents, by kind of model and continuation."""
    cell, left, parts, top = 78, 210, [], 34.0
    for number in range(_SHOWN):
        heading = f"latent {number}" if number < _SHOWN - 1 else f"{number} to 20"
        parts.append(_text(left + cell * number + 37, 24, heading, "note", anchor="middle"))
    for index, segment in enumerate(MASKS):
        if index and segment.kind != MASKS[index - 1].kind:
            top += 14
        parts.append(_text(_MARGIN + 4, top + 26, segment.kind, "row"))
        parts.append(_text(_MARGIN + 62, top + 26, segment.way))
        for number, (name, known) in enumerate(zip(segment.latents, segment.known, strict=True)):
            x = left + cell * number
            border = {"stroke": "#1f2933", "width": 2.5} if known else {}
            parts.append(_rectangle(x, top + 3, cell - 4, 34, CELLS[name][0], **border))
            parts.append(_text(x + 37, top + 25, "known" if known else "", "note", anchor="middle"))
        told = "mask channels" if segment.kind == "A14B" else "in place of noise"
        parts.append(_text(left + cell * _SHOWN + 12, top + 25, told, "note"))
        top += 44
    top += 10
    for index, (colour, meaning) in enumerate(CELLS.values()):
        x, y = _MARGIN + 4 + index % 3 * 245, top + index // 3 * 24
        parts += [_rectangle(x, y, 18, 16, colour), _text(x + 26, y + 13, meaning)]
    return _page(top + 56, "What the first latents of a segment are given", parts)


# --- shapes --------------------------------------------------------------------------------------


def _page(height: float, title: str, parts: Sequence[str]) -> str:
    """A drawing on its own light background, because the page around it may be dark."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n"
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{_MUTED}"/></marker>'
        "</defs>\n"
        f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="#fbfcfd"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _rectangle(
    x: float,
    y: float,
    w: float,
    h: float,
    fill: str,
    *,
    stroke: str = "#b8c1cb",
    width: float = 1,
) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{width:g}"/>'
    )


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{kind} text-anchor="{anchor}">{escape(text)}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="{_MUTED}" stroke-width="1.5" '
        'marker-end="url(#end)"/>'
    )


DRAWINGS = {"line.svg": line, "gateway.svg": gateway, "masks.svg": masks}
"""The drawings by their file in `docs/`."""
