"""Pictures of teams on a plane, drawn in memory: no display, no window, no fonts to install."""

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

if TYPE_CHECKING:
    from PIL import ImageDraw

#: Okabe and Ito's colours, which people with colour vision deficiencies can tell apart.
PALETTE = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (150, 130, 0),
    (90, 90, 90),
)
INK = (40, 44, 52)
GRID = (226, 229, 235)
ALARM = (200, 0, 30)

#: Everything is drawn at twice the size and scaled down, which smooths the edges.
OVERSAMPLING = 2
CAPTION_HEIGHT = 28


@dataclass(frozen=True, kw_only=True)
class Scene:
    """
    What to draw.

    :param trail: positions ``(n_moments, n_agents, 2)`` from the start of the episode to now
    :param radii: the agents' radii ``(n_agents,)``, in units of the plane
    :param targets: position of every agent's own target ``(n_agents, 2)``, drawn as a star in its colour
    :param landmarks: positions of things that belong to everyone ``(n_landmarks, 2)``, drawn as grey stars
    :param touching: which agents collide ``(n_agents,)`` bool, drawn with a red ring; computed from ``radii`` if omitted
    :param caption: a line of text under the picture
    """

    trail: np.ndarray[Any, Any]
    radii: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any] | None = None
    landmarks: np.ndarray[Any, Any] | None = None
    touching: np.ndarray[Any, Any] | None = None
    caption: str = ""


class TensorTrail:
    """
    The latest positions of the copies that are drawn, kept on their device until someone asks for a picture.

    :param max_steps: steps in an episode, after which old positions are forgotten
    """

    def __init__(self, max_steps: int) -> None:
        self._moments: deque[th.Tensor] = deque(maxlen=max_steps + 1)

    def clear(self) -> None:
        """Forget everything."""
        self._moments.clear()

    def append(self, positions: th.Tensor) -> None:
        """Add a moment: positions ``(n_agents, 2, n_drawn)``, which are copied."""
        self._moments.append(positions.clone())

    def replace_last(self, positions: th.Tensor) -> None:
        """Correct the last moment, for copies that restarted in it."""
        if self._moments:
            self._moments.pop()
        self.append(positions)

    def last(self, count: int, copy: int) -> np.ndarray[Any, Any]:
        """Return up to ``count`` latest moments of a copy, ``(n_moments, n_agents, 2)``."""
        moments = list(self._moments)[-count:]
        trail: np.ndarray[Any, Any] = th.stack([moment[..., copy] for moment in moments]).cpu().double().numpy()
        return trail


def draw_scene(scene: Scene, *, size: int = 480) -> np.ndarray[Any, Any]:
    """
    Draw agents as numbered discs with their trail and heading, targets and landmarks as stars.

    The view holds [-1, 1]^2 with a margin, and widens when an agent is farther out.

    :param scene: what to draw
    :param size: width of the picture in pixels; it is 28 pixels higher than wide
    :return: picture, ``(size + 28, size, 3)`` uint8
    :raises ImportError: if Pillow is missing
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError('drawing needs Pillow; install it with pip install "otbaselines[plots]"') from error
    extent = max(1.15, float(np.abs(scene.trail[-1]).max() + scene.radii.max()) * 1.02)
    pixels = size * OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels + CAPTION_HEIGHT * OVERSAMPLING), "white")
    canvas = _Canvas(ImageDraw.Draw(image), extent, pixels)
    canvas.arena()
    for i in range(scene.trail.shape[1]):
        canvas.trail(scene.trail[:, i], _colour(i))
    for point in () if scene.landmarks is None else scene.landmarks:
        canvas.star(point, (120, 124, 132))
    for i, point in enumerate(() if scene.targets is None else scene.targets):
        canvas.star(point, _colour(i), label=str(i))
    touching = _touching(scene) if scene.touching is None else scene.touching
    for i, point in enumerate(scene.trail[-1]):
        heading = scene.trail[-1, i] - scene.trail[-2, i] if len(scene.trail) > 1 else np.zeros(2)
        canvas.agent(point, float(scene.radii[i]), heading, _colour(i), alarm=bool(touching[i]))
    for i, point in enumerate(scene.trail[-1]):
        canvas.number(point, i)
    canvas.text((10 * OVERSAMPLING, pixels + 5 * OVERSAMPLING), scene.caption, INK, 15)
    return np.asarray(image.resize((size, size + CAPTION_HEIGHT), Image.Resampling.BOX)).copy()


def _colour(i: int) -> tuple[int, int, int]:
    return PALETTE[i % len(PALETTE)]


def _touching(scene: Scene) -> np.ndarray[Any, Any]:
    now = scene.trail[-1]
    distance = np.linalg.norm(now[:, None] - now[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    touching: np.ndarray[Any, Any] = (distance < scene.radii[:, None] + scene.radii[None]).any(axis=1)
    return touching


def _blend(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """Mix ``colour`` with white; a ``share`` of one is the colour itself."""
    red, green, blue = (round(255 - share * (255 - channel)) for channel in colour)
    return red, green, blue


class _Canvas:
    """Draws in the plane's coordinates: x to the right, y upwards."""

    def __init__(self, draw: "ImageDraw.ImageDraw", extent: float, pixels: int) -> None:
        self._draw, self._extent, self._pixels = draw, extent, pixels

    def _at(self, point: np.ndarray[Any, Any] | tuple[float, float]) -> tuple[float, float]:
        scale = self._pixels / (2 * self._extent)
        return (float(point[0]) + self._extent) * scale, (self._extent - float(point[1])) * scale

    def _length(self, length: float) -> float:
        return length * self._pixels / (2 * self._extent)

    def arena(self) -> None:
        """The square [-1, 1]^2 with a grid of a half."""
        for tick in (-1.0, -0.5, 0.0, 0.5, 1.0):
            self._draw.line([self._at((tick, -1.0)), self._at((tick, 1.0))], fill=GRID, width=OVERSAMPLING)
            self._draw.line([self._at((-1.0, tick)), self._at((1.0, tick))], fill=GRID, width=OVERSAMPLING)
        self._draw.rectangle([self._at((-1.0, 1.0)), self._at((1.0, -1.0))], outline=INK, width=OVERSAMPLING)

    def trail(self, points: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> None:
        """A path that fades towards its beginning."""
        for k in range(len(points) - 1):
            share = 0.2 + 0.6 * (k + 1) / (len(points) - 1)
            ends = [self._at(points[k]), self._at(points[k + 1])]
            self._draw.line(ends, fill=_blend(colour, share), width=3 * OVERSAMPLING)
            x, y = ends[1]
            radius = 2.0 * OVERSAMPLING
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_blend(colour, share))

    def star(self, point: np.ndarray[Any, Any], colour: tuple[int, int, int], *, label: str = "") -> None:
        """A five-pointed star, with a label at its upper right."""
        x, y = self._at(point)
        corners = []
        for k in range(10):
            radius = (13.0 if k % 2 == 0 else 5.5) * OVERSAMPLING
            angle = math.pi * (k / 5 - 0.5)
            corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        self._draw.polygon(corners, fill=_blend(colour, 0.75), outline=INK, width=OVERSAMPLING)
        self.text((x + 11 * OVERSAMPLING, y - 20 * OVERSAMPLING), label, colour, 14)

    def agent(
        self,
        point: np.ndarray[Any, Any],
        radius: float,
        heading: np.ndarray[Any, Any],
        colour: tuple[int, int, int],
        *,
        alarm: bool,
    ) -> None:
        """A disc in true size with a nose that shows where it last moved, ringed in red while it collides."""
        x, y = self._at(point)
        length = max(self._length(radius), 5.0 * OVERSAMPLING)
        if float(np.linalg.norm(heading)) > 1e-6:
            angle = math.atan2(-float(heading[1]), float(heading[0]))
            tip = (x + 1.5 * length * math.cos(angle), y + 1.5 * length * math.sin(angle))
            sides = [(x + length * math.cos(angle + turn), y + length * math.sin(angle + turn)) for turn in (0.6, -0.6)]
            self._draw.polygon([tip, *sides], fill=colour)
        ring, width = (ALARM, 4 * OVERSAMPLING) if alarm else (INK, OVERSAMPLING)
        self._draw.ellipse(
            [x - length, y - length, x + length, y + length], fill=_blend(colour, 0.85), outline=ring, width=width
        )

    def number(self, point: np.ndarray[Any, Any], number: int) -> None:
        """An agent's number, drawn after all discs so that none hides it."""
        self.text(self._at(point), str(number), (255, 255, 255), 15, centred=True)

    def text(
        self, corner: tuple[float, float], text: str, colour: tuple[int, int, int], size: int, *, centred: bool = False
    ) -> None:
        """A line of text in Pillow's own font."""
        from PIL import ImageFont

        font = ImageFont.load_default(size=size * OVERSAMPLING)
        self._draw.text(corner, text, fill=colour, font=font, anchor="mm" if centred else "la")
