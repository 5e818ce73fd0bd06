"""Draws the SVG files of the docs: the line from a request to an mp4, the gateway, and the masks of
segments.

These files look the same on GitHub and on the website, and load nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 440  # as wide as a phone shows without making the text small
_MARGIN = 12
_HEAD = 34  # height of a band's name
_BOX_HEIGHT = 54
_GAP = 24
_COLUMNS = 2
_TEXT = "#1f2933"
_MUTED = "#5b6773"
_STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:16px;"
    f"fill:{_TEXT}}}"
    ".file{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;"
    f"fill:{_MUTED}}}"
    f".note{{font-size:14px;fill:{_MUTED}}}"
    ".row{font-weight:600}"
)


@dataclass(frozen=True)
class Box:
    """A step, and its file below `wan_engine/`. `then`: an arrow leads to the next box."""

    text: str
    file: str = ""
    then: bool = True


@dataclass(frozen=True)
class Row:
    """A band with a name, a note beside the name, and boxes, two in a line."""

    name: str
    note: str
    boxes: Sequence[Box]
    fill: str


_GREY, _BLUE, _GREEN, _AMBER, _PINK = "#eceff2", "#e3eefb", "#e2f3e6", "#fdf0d8", "#f9e4ec"

LINE = (
    Row(
        "ask",
        "four entries",
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
        "same for all APIs",
        (Box("request to order", "schema/requests.py"), Box("choose the model", "choice.py")),
        _GREY,
    ),
    Row(
        "prepare",
        "network and CPU",
        (
            Box("run these steps", "prepare.py"),
            Box("check prompt", "safety.py"),
            Box("fetch", "media/fetch.py"),
            Box("image, check", "media/images.py"),
            Box("decode sound", "media/audio.py"),
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
            Box("make sound", "media/made_sound.py"),
        ),
        _GREEN,
    ),
    Row(
        "publish",
        "network",
        (Box("upload", "storage/s3.py"), Box("URL, cost, warnings", "schema/clip.py")),
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
            Box("OpenAI", "doors/openai/", then=False),
            Box("DashScope", "doors/dashscope/", then=False),
        ),
        _BLUE,
    ),
    Row(
        "accept",
        "stored before the answer",
        (
            Box("reserve a place", "jobs/service.py"),
            Box("store its media", "jobs/kept_requests.py"),
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
            Box("engine, own process", "backends/own_engine.py", then=False),
            Box("Runpod endpoint", "backends/endpoint.py", then=False),
        ),
        _GREEN,
    ),
    Row(
        "tell",
        "after its end",
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
    top, parts = float(_MARGIN), list[str]()
    for index, row in enumerate(rows):
        if index:
            parts.append(_arrow((WIDTH / 2, top + 2), (WIDTH / 2, top + 18)))
            top += 20
        parts += _band(row, top)
        top += _height(row)
    return _page(top + _MARGIN, title, parts)


def _height(row: Row) -> float:
    lines = -(-len(row.boxes) // _COLUMNS)
    return _HEAD + lines * _BOX_HEIGHT + (lines - 1) * _GAP + _MARGIN


def _band(row: Row, top: float) -> Iterator[str]:
    yield _rectangle(_MARGIN, top, WIDTH - 2 * _MARGIN, _height(row), row.fill, stroke="none")
    yield _text(2 * _MARGIN, top + 23, row.name, "row")
    yield _text(WIDTH - 2 * _MARGIN, top + 23, row.note, "note", anchor="end")
    columns = min(_COLUMNS, len(row.boxes))
    width = (WIDTH - 4 * _MARGIN - (columns - 1) * _GAP) / columns
    for index, box in enumerate(row.boxes):
        line, column = divmod(index, columns)
        x = 2 * _MARGIN + column * (width + _GAP)
        y = top + _HEAD + line * (_BOX_HEIGHT + _GAP)
        yield _rectangle(x, y, width, _BOX_HEIGHT, "#ffffff")
        yield _text(x + width / 2, y + 23, box.text, anchor="middle")
        yield _text(x + width / 2, y + 43, box.file, "file", anchor="middle")
        if not box.then or index + 1 == len(row.boxes):
            continue
        if column + 1 < columns:
            middle = y + _BOX_HEIGHT / 2
            yield _arrow((x + width + 3, middle), (x + width + _GAP - 3, middle))
        else:
            yield _back(x + width / 2, 2 * _MARGIN + width / 2, y + _BOX_HEIGHT)


def _back(x: float, to_x: float, y: float) -> str:
    """An arrow from the last box of a line, whose bottom is at `y`, to the first of the next."""
    middle = y + _GAP / 2 - 2
    return _arrow((x, y + 2), (x, middle), (to_x, middle), (to_x, y + _GAP - 3))


# --- inputs of segments ------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskRow:
    """A row of the drawing: the first four latents of a segment and its last, with the content of
    each (a key of `CELLS`) and the part of its frames that the model is told to be known."""

    kind: str
    way: str
    latents: Sequence[str]
    known: Sequence[float]


CELLS = {
    "image": ("#8ec5f0", "image"),
    "frames": ("#a5d6a7", "last five frames, encoded"),
    "latent": ("#f6c667", "last latents, as they are"),
    "grey": ("#c3c9d0", "grey frames, encoded"),
    "end": ("#d3c6ef", "grey and the last picture"),
    "zero": ("#ffffff", "zeros"),
    "noise": ("#efe3f7", "noise alone"),
}
_SHOWN = 5  # of 21: the others are like the last of these

MASKS = (
    MaskRow("A14B", "first segment", ("image", *["grey"] * 4), (1, 0, 0, 0, 0)),
    MaskRow("A14B", "last_frames", (*["frames"] * 2, *["grey"] * 3), (1, 1, 0, 0, 0)),
    MaskRow("A14B", "last picture", ("image", *["grey"] * 3, "end"), (1, 0, 0, 0, 0.25)),
    MaskRow("A14B", "svi", ("image", "latent", *["zero"] * 3), (1, 0, 0, 0, 0)),
    MaskRow("TI2V", "first segment", ("image", *["noise"] * 4), (1, 0, 0, 0, 0)),
    MaskRow("TI2V", "last_frames", (*["frames"] * 2, *["noise"] * 3), (1, 1, 0, 0, 0)),
    MaskRow("TI2V", "latents", (*["latent"] * 2, *["noise"] * 3), (1, 1, 0, 0, 0)),
)
"""`families/continuation.py` fills these; its tests compare it with this table."""


def masks() -> str:
    """The drawing of a segment's first latents, by kind of model and continuation."""
    cell, parts, top = (WIDTH - 2 * _MARGIN) / _SHOWN, list[str](), 0.0
    for number in range(_SHOWN):
        heading = f"latent {number}" if number < _SHOWN - 1 else f"{number} to 20"
        middle = _MARGIN + cell * (number + 0.5)
        parts.append(_text(middle, 24, heading, "note", anchor="middle"))
    for index, segment in enumerate(MASKS):
        top += 40 if not index or segment.kind == MASKS[index - 1].kind else 54
        parts.append(_text(_MARGIN + 2, top + 20, segment.kind, "row"))
        parts.append(_text(_MARGIN + 54, top + 20, segment.way))
        told = "mask channels" if segment.kind == "A14B" else "in place of noise"
        parts.append(_text(WIDTH - _MARGIN - 2, top + 20, told, "note", anchor="end"))
        top += 28
        for number, (name, known) in enumerate(zip(segment.latents, segment.known, strict=True)):
            x = _MARGIN + cell * number
            border = {"stroke": "#1f2933", "width": 2.5} if known == 1 else {}
            parts.append(_rectangle(x + 2, top, cell - 4, 34, CELLS[name][0], **border))
            word = "known" if known == 1 else "20: 1 of 4" if known else ""
            parts.append(_text(x + cell / 2, top + 22, word, "note", anchor="middle"))
    top += 54
    for index, (colour, meaning) in enumerate(CELLS.values()):
        x, y = _MARGIN + 4 + index % 2 * 204, top + index // 2 * 28
        parts += [_rectangle(x, y, 18, 16, colour), _text(x + 26, y + 13, meaning, "note")]
    return _page(top + 112, "What the latents of a segment are given", parts)


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


def _arrow(*points: tuple[float, float]) -> str:
    way = "L".join(f"{x:g} {y:g}" for x, y in points)
    return (
        f'<path d="M{way}" stroke="{_MUTED}" stroke-width="1.5" fill="none" '
        'marker-end="url(#end)"/>'
    )


DRAWINGS = {"line.svg": line, "gateway.svg": gateway, "masks.svg": masks}
"""The drawings by their file in `docs/`."""
