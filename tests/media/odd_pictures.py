"""Pictures with unusual colour information, written byte by byte. What a browser shows is the
reference (`test_colours.py`, and with a real browser `test_images_in_chromium.py`)."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

Chunk = tuple[bytes, bytes]

BT709 = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def with_chunks(png: bytes, *chunks: Chunk) -> bytes:
    """`png` with `chunks` inserted after its header."""
    return png[:33] + b"".join(png_chunk(kind, body) for kind, body in chunks) + png[33:]


def gamma(value: int) -> Chunk:
    return b"gAMA", struct.pack(">I", value)


def chromaticities(*points: float) -> Chunk:
    return b"cHRM", struct.pack(">8I", *(round(point * 100_000) for point in points))


def code_points(*values: int) -> Chunk:
    return b"cICP", bytes(values)


def embedded(profile: bytes) -> Chunk:
    return b"iCCP", b"x\0\0" + zlib.compress(profile)


SRGB_CHUNK: Chunk = (b"sRGB", b"\0")


# --- profiles ------------------------------------------------------------------------------------


def profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2.4."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    name = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": name, b"cprt": b"text\0\0\0\0x\0", b"wtpt": white, **tags}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += struct.pack(">4sII", key, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    rest = struct.pack(">I", len(tags)) + table + body
    head = bytearray(128)
    struct.pack_into(">I", head, 0, 128 + len(rest))
    head[8:12], head[36:40] = b"\x02\x40\0\0", b"acsp"
    head[12:24] = b"mntr" + space + connection
    struct.pack_into(">3i", head, 68, 63190, 65536, 54061)
    return bytes(head) + rest


def _curve(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256)) + b"\0\0"


def grey_profile(exponent: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": _curve(exponent)})


def rgb_profile(exponent: float) -> bytes:
    """With the primaries of sRGB."""
    columns = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
    tags = {name: _curve(exponent) for name in (b"rTRC", b"gTRC", b"bTRC")}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        values = (round(value * 65536) for value in column)
        tags[name] = b"XYZ \0\0\0\0" + struct.pack(">3i", *values)
    return profile(b"RGB ", tags)


def cmyk_profile() -> bytes:
    """A profile of inks in which only magenta darkens, unlike any common ink set."""

    def lab(c: float, m: float, y: float, k: float) -> list[int]:
        lightness = 255 * (1 - k) * (1 - 0.6 * m)
        return [round(lightness), round(128 + 20 * (m - c)), round(128 + 20 * (y - c))]

    grid = [step / 4 for step in range(5)]
    colours = bytes(value for inks in itertools.product(grid, repeat=4) for value in lab(*inks))
    identity = struct.pack(">9i", *(65536 if at % 4 == 0 else 0 for at in range(9)))
    curves = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 5, 0]) + identity + curves * 4 + colours + curves * 3
    return profile(b"CMYK", {b"A2B0": table}, b"Lab ")


def display_p3() -> bytes:
    """Pillow's sRGB profile with the primaries of Display P3 (at D50, as ICC requires)."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for index in range(struct.unpack_from(">I", made, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", made, 132 + 12 * index)
        if name in primaries:
            values = (round(value * 65536) for value in primaries[name])
            struct.pack_into(">3i", made, offset + 8, *values)
    return bytes(made)


# --- pictures ------------------------------------------------------------------------------------


def grey_ramp(mode: str = "L") -> Image.Image:
    """256x240, level x in column x."""
    return Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (240, 1))).convert(mode)


def colour_ramps() -> Image.Image:
    """256x240: a ramp of grey, then ramps of red, green and blue with the other channels
    constant."""
    pixels = np.zeros((240, 256, 3), np.uint8)
    level = np.arange(256)
    pixels[:60] = level[:, None]
    pixels[60:120] = np.stack([level, level * 0 + 128, level * 0 + 64], 1)
    pixels[120:180] = np.stack([level * 0 + 200, level, level * 0 + 30], 1)
    pixels[180:] = np.stack([level * 0 + 40, level * 0 + 90, level], 1)
    return Image.fromarray(pixels)


def half_there(image: Image.Image, mode: str) -> Image.Image:
    image = image.convert(mode)
    image.putalpha(128)
    return image


def inks() -> Image.Image:
    flat = [Image.new("L", (256, 240), ink) for ink in (80, 20, 10)]
    return Image.merge("CMYK", [grey_ramp(), *flat])


def png_rows(depth: int, colour: int, rows: np.ndarray) -> bytes:
    """A PNG of 256x240 with these bytes. Pillow does not write every bit depth."""
    header = struct.pack(">IIBBBBB", 256, 240, depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def deep_png(colour: int, channels: int) -> bytes:
    """16 bits: a ramp in one channel, and 40 000 in the others."""
    rows = np.full((240, 256, channels), 40_000, ">u2")
    rows[:, :, 0] = np.arange(256) * 257
    return png_rows(16, colour, rows)


def four_bit_png() -> bytes:
    levels = np.tile(np.arange(256, dtype=np.uint8) % 16, (240, 1))
    return png_rows(4, 0, levels[:, ::2] << 4 | levels[:, 1::2])


def bmp_with_profile(content: bytes) -> bytes:
    pixels = np.asarray(colour_ramps())[::-1, :, ::-1].tobytes()
    form = struct.pack("<IiiHHIIiiII", 124, 256, 240, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    form += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0) + b"DEBM" + bytes(48)
    form += struct.pack("<4I", 4, 124 + len(pixels), len(content), 0)
    size = 14 + len(form) + len(pixels) + len(content)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, 138) + form + pixels + content


def pictures() -> dict[str, bytes]:
    """Chromium shows each of them within three levels of what we show."""
    grey, linear, p3 = grey_profile(1.8), grey_profile(1.0), display_p3()
    one, ramps = encoded(grey_ramp(), "PNG"), encoded(colour_ramps(), "PNG")
    palette = encoded(colour_ramps().quantize(64), "PNG")
    found = {
        "grey JPEG, grey profile": encoded(grey_ramp(), "JPEG", icc_profile=grey, quality=100),
        "grey PNG, grey profile": encoded(grey_ramp(), "PNG", icc_profile=grey),
        "grey PNG, linear profile": encoded(grey_ramp(), "PNG", icc_profile=linear),
        "grey PNG, RGB profile": encoded(grey_ramp(), "PNG", icc_profile=rgb_profile(1.8)),
        "4-bit grey, grey profile": with_chunks(four_bit_png(), embedded(grey)),
        "16-bit grey, grey profile": with_chunks(deep_png(0, 1), embedded(grey)),
        "16-bit grey, gamma": with_chunks(deep_png(0, 1), gamma(100_000)),
        "16-bit LA, grey profile": with_chunks(deep_png(4, 2), embedded(grey)),
        "16-bit RGB, profile": with_chunks(deep_png(2, 3), embedded(p3)),
        "LA, grey profile": encoded(half_there(grey_ramp(), "LA"), "PNG", icc_profile=grey),
        "LA, RGB profile": encoded(half_there(grey_ramp(), "LA"), "PNG", icc_profile=p3),
        "RGBA, profile": encoded(half_there(colour_ramps(), "RGBA"), "PNG", icc_profile=p3),
        "RGBA, grey profile": encoded(half_there(colour_ramps(), "RGBA"), "PNG", icc_profile=grey),
        "RGBA, cICP": with_chunks(
            encoded(half_there(colour_ramps(), "RGBA"), "PNG"), code_points(12, 13, 0, 1)
        ),
        "grey key, grey profile": with_chunks(one, embedded(grey), (b"tRNS", b"\0\x80")),
        "RGB, grey profile": encoded(colour_ramps(), "PNG", icc_profile=grey),
        "RGB, CMYK profile": encoded(colour_ramps(), "PNG", icc_profile=cmyk_profile()),
        "WEBP, profile": encoded(colour_ramps(), "WEBP", icc_profile=p3, lossless=True),
        "palette, cICP": with_chunks(palette, code_points(12, 13, 0, 1)),
        "palette, gamma": with_chunks(palette, gamma(100_000)),
        "palette, grey profile": with_chunks(palette, embedded(grey)),
        "CMYK": encoded(inks(), "JPEG", quality=100),
        "CMYK, grey profile": encoded(inks(), "JPEG", quality=100, icc_profile=grey),
        "CMYK, profile": encoded(inks(), "JPEG", quality=100, icc_profile=cmyk_profile()),
        "BMP, profile": bmp_with_profile(p3),
    }
    for values in (
        *((1, 13), (12, 13), (9, 16), (9, 18), (1, 16), (1, 8), (1, 1), (9, 14), (12, 4), (11, 17)),
        *((1, 5), (1, 7), (4, 4), (5, 6), (7, 7), (8, 1), (10, 8), (22, 13), (2, 2), (12, 2)),
    ):
        found[f"cICP {values}"] = with_chunks(ramps, code_points(*values, 0, 1))
    for name, chunks in {
        "gamma 0": [gamma(0)],
        "gamma 1": [gamma(1)],
        "gamma 43 000": [gamma(43_000)],
        "gamma 45 455": [gamma(45_455)],
        "gamma 47 000": [gamma(47_000)],
        "gamma 48 000": [gamma(48_000)],
        "gamma 100 000": [gamma(100_000)],
        "largest gamma": [gamma(2**32 - 1)],
        "gamma and primaries": [gamma(45_455), chromaticities(*P3)],
        "gamma and our primaries": [gamma(45_455), chromaticities(*BT709)],
        "primaries alone": [chromaticities(*P3)],
        "primaries of nothing": [gamma(100_000), chromaticities(*[0.3] * 8)],
        "primaries all zero": [gamma(45_455), chromaticities(*[0] * 8)],
        "largest primaries": [gamma(100_000), (b"cHRM", b"\xff" * 32)],
        "sRGB before gamma": [SRGB_CHUNK, gamma(100_000)],
        "gamma before sRGB": [gamma(100_000), SRGB_CHUNK],
        "sRGB of no intent": [(b"sRGB", b"\x09"), gamma(100_000)],
        "profile and gamma": [embedded(p3), gamma(100_000)],
        "garbage and gamma": [embedded(b"garbage" * 40), gamma(100_000)],
        "grey profile and gamma": [embedded(grey), gamma(100_000)],
        "two gammas": [gamma(100_000), gamma(45_455)],
        "cICP and profile": [code_points(12, 13, 0, 1), embedded(rgb_profile(1.8))],
        "cICP of a film and profile": [code_points(12, 13, 0, 0), embedded(p3)],
        "unknown cICP and profile": [code_points(255, 255, 0, 1), embedded(p3)],
        "short cICP and gamma": [code_points(12, 13), gamma(100_000)],
        "sRGB and cICP": [SRGB_CHUNK, code_points(12, 13, 0, 1)],
    }.items():
        found[name] = with_chunks(ramps, *chunks)
    found["gamma behind the data"] = ramps[:-12] + png_chunk(*gamma(100_000)) + ramps[-12:]
    return found
