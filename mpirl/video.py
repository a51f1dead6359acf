"""Videos: pictures with curves of reward and value underneath, as MP4 (ffmpeg) or GIF (Pillow)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mpirl.errors import UserError

SUFFIXES = (".mp4", ".gif")
MIN_WIDTH = 320  # pixels, so that the text underneath fits
TARGET_HEIGHT = 420  # pixels that small pictures are enlarged to, about
LINE, CURVE, MARGIN = 16, 40, 6  # pixels: height of a line of text and of a curve, and room beside them
BACKGROUND, TEXT, CURSOR, ZERO = (16, 16, 20), (230, 230, 230), (250, 250, 250), (70, 70, 80)
COLORS = {"reward": (255, 176, 59), "value": (90, 180, 255)}


class Curves:
    """The panel under the pictures, `width` pixels wide. curves: `reward` and `value`, [L], NaN where there is none."""

    def __init__(self, curves: dict[str, np.ndarray], width: int):
        self._curves, self._width = curves, width
        self._length = max(len(values) for values in curves.values())
        self._still = self._draw_still()

    def at(self, t: int, text: str) -> np.ndarray:
        """The panel at step t with a line of text, uint8 [height, width, 3]."""
        image = self._still.copy()
        pen = _pillow().ImageDraw.Draw(image)
        pen.text((MARGIN, 2), text, fill=TEXT)
        x = self._x(t)
        pen.line([(x, LINE), (x, image.height)], fill=CURSOR)
        return np.asarray(image)

    def _draw_still(self) -> Any:
        pillow = _pillow()
        image = pillow.Image.new("RGB", (self._width, LINE + len(self._curves) * (LINE + CURVE + MARGIN)), BACKGROUND)
        pen = pillow.ImageDraw.Draw(image)
        for index, (name, values) in enumerate(self._curves.items()):
            self._draw_curve(pen, name, values, LINE + index * (LINE + CURVE + MARGIN))
        return image

    def _draw_curve(self, pen: Any, name: str, values: np.ndarray, top: int) -> None:
        """Its name and range, and below the curve and a line at zero; a reward is a bar, since it is mostly zero."""
        low, high = min(0.0, float(np.nanmin(values))), max(0.0, float(np.nanmax(values)))
        scale = CURVE / (high - low or 1.0)
        zero = top + LINE + high * scale
        points = [(self._x(t), zero - value * scale) for t, value in enumerate(values.tolist()) if value == value]
        pen.text((MARGIN, top), f"{name}  {low:.3g} to {high:.3g}", fill=COLORS[name])
        pen.line([(MARGIN, zero), (self._width - MARGIN, zero)], fill=ZERO)
        if name == "reward":
            for x, y in points:
                pen.line([(x, zero), (x, y)], fill=COLORS[name], width=2)
        else:
            pen.line(points, fill=COLORS[name])

    def _x(self, t: int) -> float:
        return MARGIN + (self._width - 2 * MARGIN) * t / max(1, self._length - 1)


def enlargement(picture: np.ndarray) -> int:
    """The whole number that brings a picture near TARGET_HEIGHT."""
    return max(1, round(TARGET_HEIGHT / picture.shape[0]))


def framed(picture: np.ndarray, scale: int) -> np.ndarray:
    """A picture, uint8 [height, width, 3], enlarged and centred between black borders: even, and at least MIN_WIDTH wide."""
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = (size + size % 2 for size in large.shape[:2])
    canvas = np.zeros((height, max(width, MIN_WIDTH), 3), np.uint8)
    left = (canvas.shape[1] - large.shape[1]) // 2
    canvas[: large.shape[0], left : left + large.shape[1]] = large
    return canvas


def encode(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """Write frames, uint8 [height, width, 3] of one even size, to a file whose ending says how."""
    encode_gif(frames, path, fps) if path.suffix.lower() == ".gif" else encode_mp4(frames, path, fps)


def encode_mp4(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    imageio = _imageio()
    options = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2, "quality": 8}
    with imageio.get_writer(str(path), format="FFMPEG", mode="I", fps=fps, **options) as writer:
        for frame in frames:
            writer.append_data(frame)


def encode_gif(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    images = _images(frames)
    first = next(images)
    duration = max(20, round(1000 / fps))  # ms; viewers slow down what is faster
    first.save(path, format="GIF", save_all=True, append_images=images, duration=duration, loop=0, optimize=False)


def _images(frames: Iterable[np.ndarray]) -> Iterator[Any]:
    for frame in frames:
        yield _pillow().Image.fromarray(frame).quantize(256)


def check_installed(path: Path) -> None:
    """Raise UserError if what the file's ending needs is not installed."""
    _pillow()
    if path.suffix.lower() != ".gif":
        _imageio()


def _pillow() -> ModuleType:
    try:
        import PIL.Image
        import PIL.ImageDraw
    except ImportError as error:
        raise UserError(f"videos need Pillow ({error}): pip install 'mpirl[video]'") from error
    return PIL


def _imageio() -> ModuleType:
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401  (the plug-in that imageio looks for)
    except ImportError as error:
        raise UserError(f"MP4 videos need imageio and imageio-ffmpeg ({error}): pip install 'mpirl[video]'") from error
    return imageio.v2
