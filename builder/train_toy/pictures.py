"""Draws pictures with the statistics of photographs on the device: dead leaves, gradients,
textures, strokes, glyphs, soft shapes. Reads nothing from disk.

The networks train on cut-outs of a bank of large drawings. The cut-outs are turned, scaled,
mirrored and recoloured, so that a drawing serves many times.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

_LEAVES = 90


class Pictures:
    """A bank of `count` drawings, float16 [count, 3, height, width] in -1..1."""

    def __init__(
        self, generator: torch.Generator, count: int, *, height: int = 288, width: int = 448
    ) -> None:
        self._generator = generator
        self._next = 0
        chunks = [
            draw(generator, min(16, count - start), height, width) for start in range(0, count, 16)
        ]
        self.bank = torch.cat(chunks).half()

    def refresh(self, count: int) -> None:
        """Replace the `count` oldest drawings."""
        height, width = self.bank.shape[2:]
        for picture in draw(self._generator, count, height, width).half():
            self.bank[self._next] = picture
            self._next = (self._next + 1) % len(self.bank)

    def sample(self, count: int, height: int, width: int) -> torch.Tensor:
        """Return cut-outs, float32 [count, 3, height, width] in -1..1."""
        generator, device = self._generator, self._generator.device

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, generator=generator, device=device)

        which = torch.randint(len(self.bank), (count,), generator=generator, device=device)
        scale = torch.exp(uniform(math.log(0.5), math.log(1.4)))  # of the drawing's pixels
        angle = torch.where(uniform(0, 1) < 0.5, uniform(-0.2, 0.2), uniform(-math.pi, math.pi))
        flip = torch.where(uniform(0, 1) < 0.5, 1.0, -1.0)
        size = torch.tensor([self.bank.shape[3], self.bank.shape[2]], device=device)
        x = torch.arange(width, device=device) - (width - 1) / 2
        y = torch.arange(height, device=device) - (height - 1) / 2
        y, x = torch.meshgrid(y, x, indexing="ij")
        cos, sin = (angle.cos() * scale)[:, None, None], (angle.sin() * scale)[:, None, None]
        x, y = (x * cos - y * sin) * flip[:, None, None], x * sin + y * cos
        centre = torch.stack([uniform(-0.6, 0.6), uniform(-0.6, 0.6)], dim=-1)
        grid = torch.stack([x, y], dim=-1) * 2 / size + centre[:, None, None]
        cut = F.grid_sample(
            self.bank[which].float(), grid, padding_mode="reflection", align_corners=False
        )
        return recolour(generator, cut)


def recolour(generator: torch.Generator, pictures: torch.Tensor) -> torch.Tensor:
    """Swap channels, invert, and change brightness and contrast of each picture [n, 3, h, w]."""
    count, device = len(pictures), pictures.device

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    order = random(count, 3).argsort(dim=1)[:, :, None, None].expand_as(pictures)
    pictures = pictures.gather(1, order)
    sign = torch.where(random(count, 1, 1, 1) < 0.3, -1.0, 1.0)
    contrast, brightness = 0.6 + 0.7 * random(count, 1, 1, 1), 0.6 * random(count, 1, 1, 1) - 0.3
    grey = pictures.mean(dim=1, keepdim=True)
    pictures = grey + (pictures - grey) * (0.2 + 1.8 * random(count, 1, 1, 1))
    return (pictures * sign * contrast + brightness).clamp(-1, 1)


def draw(generator: torch.Generator, count: int, height: int, width: int) -> torch.Tensor:
    """Return drawings, float32 [count, 3, height, width] in -1..1."""
    canvas = 0.6 * _texture(generator, count, height, width)
    detail = _texture(generator, count, height, width)
    y = torch.arange(height, device=canvas.device, dtype=torch.float32)
    x = torch.arange(width, device=canvas.device, dtype=torch.float32)
    y, x = torch.meshgrid(y, x, indexing="ij")
    reach = max(height, width)
    for index in range(_LEAVES):  # large leaves first, so that small ones are visible
        radius = reach * 0.45 * (1 + index) ** -0.75
        canvas = _leaf(generator, canvas, detail, (y, x), radius)
        if index in (_LEAVES // 2, _LEAVES - 1):
            canvas = _glyphs(generator, canvas, (y, x))
    return _light(generator, canvas, (y, x)).clamp(-1, 1)


def _texture(generator: torch.Generator, count: int, height: int, width: int) -> torch.Tensor:
    """Return noise with a spectrum of 1 / f^a, a = 0.8 to 2, mostly grey: [count, 3, height,
    width]."""
    device = generator.device
    noise = torch.randn(count, 3, height, width, generator=generator, device=device)
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None]
    frequency = (fy**2 + fx**2).sqrt().clamp_min(1 / max(height, width))
    slope = 0.8 + 1.2 * torch.rand(count, 1, 1, 1, generator=generator, device=device)
    noise = torch.fft.irfft2(torch.fft.rfft2(noise) * frequency**-slope, s=(height, width))
    noise = noise / noise.std(dim=(2, 3), keepdim=True)
    mix = torch.rand(count, 3, 1, 1, generator=generator, device=device)
    return noise[:, :1] * (1 - 0.5 * mix) + 0.5 * mix * noise


def _leaf(
    generator: torch.Generator,
    canvas: torch.Tensor,
    detail: torch.Tensor,
    where: tuple[torch.Tensor, torch.Tensor],
    radius: float,
) -> torch.Tensor:
    """Draw one shape on each canvas: an ellipse, box or stroke, hard or soft, shaded, maybe
    textured."""
    (y, x), count, device = where, len(canvas), canvas.device

    def random(low: float = 0.0, high: float = 1.0, *, channels: int = 1) -> torch.Tensor:
        values = torch.rand(count, channels, 1, 1, generator=generator, device=device)
        return low + (high - low) * values

    height, width = canvas.shape[2:]
    radius_px = radius * torch.exp(random(-0.6, 0.6))
    aspect = torch.where(random() < 0.2, random(0.03, 0.12), random(0.3, 1.0))
    angle = torch.where(random() < 0.4, random(-0.1, 0.1), random(0, math.pi))
    dx, dy = x - width * random(-0.1, 1.1), y - height * random(-0.1, 1.1)
    u = (dx * angle.cos() + dy * angle.sin()) / radius_px
    v = (dy * angle.cos() - dx * angle.sin()) / (radius_px * aspect)
    box = torch.maximum(u.abs(), v.abs())
    distance = torch.where(random() < 0.4, box, (u**2 + v**2).sqrt()) - 1  # in radii
    soft_px = torch.where(random() < 0.75, random(0.2, 0.7), radius_px * random(0.05, 0.5))
    alpha = torch.sigmoid(-distance * radius_px * aspect / soft_px) * random(0.6, 1.3).clamp_max(1)
    colour = random(-1, 1) + random(0.1, 1) * random(-1, 1, channels=3)
    shade = u * random(-0.4, 0.4) + v * random(-0.4, 0.4)
    stripes = torch.sin(u * random(3, 40)) * (random() < 0.15) * random(0, 0.4)
    fill = colour + shade.clamp(-1, 1) + stripes + detail * random(-0.15, 0.4).clamp_min(0)
    return canvas + alpha * (fill - canvas)


def _glyphs(
    generator: torch.Generator, canvas: torch.Tensor, where: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Draw a plate of letter-like marks on each canvas: blocks of 2 to 5 pixels, in words and
    lines."""
    (y, x), count, device = where, len(canvas), canvas.device
    height, width = canvas.shape[2:]

    def random(low: float, high: float, channels: int = 1) -> torch.Tensor:
        values = torch.rand(count, channels, 1, 1, generator=generator, device=device)
        return low + (high - low) * values

    marks = torch.rand(count, 1, 48, 64, generator=generator, device=device) < 0.6
    letter = (torch.arange(64, device=device) % 4 != 3) & (
        torch.arange(64, device=device) % 23 < 19
    )
    line = torch.arange(48, device=device) % 8 < 5
    marks = (marks & letter & line[:, None]).float()
    angle, block_px = random(-0.3, 0.3), random(2, 5)
    dx, dy = x - width * random(0.1, 0.9), y - height * random(0.1, 0.9)
    u = (dx * angle.cos() + dy * angle.sin()) / (block_px * 32)
    v = (dy * angle.cos() - dx * angle.sin()) / (block_px * 24)
    grid = torch.stack([u[:, 0], v[:, 0]], dim=-1)
    ink = F.grid_sample(marks, grid, mode="bilinear", align_corners=False)
    inside = ((u.abs() < random(0.2, 1)) & (v.abs() < random(0.2, 1))).float()
    plate = random(-1, 1) + 0.3 * random(-1, 1, 3)
    text = random(-1, 1) + 0.3 * random(-1, 1, 3)
    on_plate = plate + ink * (text - plate)
    return canvas + inside * (on_plate - canvas)


def _light(
    generator: torch.Generator, canvas: torch.Tensor, where: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Light each canvas from one side, and add grain to some."""
    (y, x), count, device = where, len(canvas), canvas.device
    height, width = canvas.shape[2:]
    slopes = torch.rand(count, 3, 1, 1, generator=generator, device=device) - 0.5
    canvas = canvas + slopes[:, :1] * (x / width - 0.5) + slopes[:, 1:2] * (y / height - 0.5)
    grain = torch.randn(canvas.shape, generator=generator, device=device)
    return canvas + grain * (slopes[:, 2:] * 0.1).clamp_min(0)
