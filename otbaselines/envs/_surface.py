"""Pictures of a reward over two agents' actions, drawn in memory like those of :mod:`otbaselines.envs._drawing`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otbaselines.envs._drawing import CAPTION_HEIGHT, GRID, INK, OVERSAMPLING, _colour

if TYPE_CHECKING:
    from PIL import ImageDraw

Array = np.ndarray[Any, Any]
Point = tuple[float, float]

#: Colours from zero to the highest reward in the picture: lighter is lower, for every kind of colour vision.
SHADES = np.array([[255, 255, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]], dtype=np.float64)
#: Lines of equal reward cut its range into this many parts.
N_LEVELS = 10
#: Pixels along each side of the map, which is as many rewards as are to be computed.
MAP_SIZE = 340

_LEFT, _TOP, _BAR_WIDTH = 56, 14, 14


@dataclass(frozen=True, kw_only=True)
class SurfaceScene:
    """
    What to draw.

    :param rewards: at the centres of ``(MAP_SIZE, MAP_SIZE)`` cells, row by row from the smallest second action on
    :param low: smallest action
    :param high: largest action
    :param names: names of all agents, those on the map first
    :param marks: points of interest, drawn as crosses
    :param point: the two agents' actions, drawn as a disc; ``None`` for none
    :param others: actions of the agents from the third on, drawn on a line each
    :param caption: a line of text under the picture
    """

    rewards: Array
    low: float
    high: float
    names: tuple[str, ...]
    marks: tuple[Point, ...] = ()
    point: Point | None = None
    others: tuple[float, ...] = ()
    caption: str = ""


def cell_centres(low: float, high: float) -> Array:
    """Actions at which a row of the map shows the reward, ``(MAP_SIZE,)``."""
    return low + (high - low) * (np.arange(MAP_SIZE) + 0.5) / MAP_SIZE


def draw_surface(scene: SurfaceScene, *, size: int = 480) -> Array:
    """
    Draw the reward as a map in shades and lines of equal reward, with a scale that says what they are worth.

    :param scene: what to draw
    :param size: width of the picture in pixels; it is 28 pixels higher than wide
    :return: picture, ``(size + 28, size, 3)`` uint8
    :raises ImportError: if Pillow is missing
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError('drawing needs Pillow; install it with pip install "otbaselines[plots]"') from error
    height, scale = size + CAPTION_HEIGHT, OVERSAMPLING
    image = Image.new("RGB", (size * scale, height * scale), "white")
    top = max(float(scene.rewards.max()), np.finfo(np.float64).tiny)
    shades = Image.fromarray(_shade(scene.rewards[::-1] / top))
    image.paste(shades.resize((MAP_SIZE * scale, MAP_SIZE * scale), Image.Resampling.NEAREST), (_LEFT * scale, _TOP * scale))
    bar = Image.fromarray(_shade(np.linspace(1.0, 0.0, MAP_SIZE)[:, None].repeat(2, axis=1)))
    bar_left = _LEFT + MAP_SIZE + 16
    image.paste(bar.resize((_BAR_WIDTH * scale, MAP_SIZE * scale), Image.Resampling.NEAREST), (bar_left * scale, _TOP * scale))
    sheet = _Sheet(ImageDraw.Draw(image), scene.low, scene.high)
    sheet.box(bar_left, _BAR_WIDTH)
    sheet.text((bar_left + _BAR_WIDTH + 4, _TOP), f"{top:.3g}", anchor="lt")
    sheet.text((bar_left + _BAR_WIDTH + 4, _TOP + MAP_SIZE), "0", anchor="lb")
    sheet.axes(scene.names)
    for mark in scene.marks:
        sheet.cross(mark)
    if scene.point is not None:
        sheet.disc(sheet.at(scene.point), 7.0, _colour(1))
    for row, action in enumerate(scene.others):
        sheet.line_of_agent(row, scene.names[2 + row], action)
    sheet.text((10, size + 5), scene.caption, anchor="lt", size=15)
    return np.asarray(image.resize((size, height), Image.Resampling.BOX)).copy()


def _shade(shares: Array) -> Array:
    """Colours ``(height, width, 3)`` uint8 of shares in [0, 1], darker along the borders of the levels."""
    places = np.linspace(0.0, 1.0, len(SHADES))
    colours = np.stack([np.interp(shares, places, SHADES[:, channel]) for channel in range(3)], axis=-1)
    level = np.floor(shares * N_LEVELS)
    border = np.zeros(shares.shape, dtype=bool)
    border[1:] |= level[1:] != level[:-1]
    border[:, 1:] |= level[:, 1:] != level[:, :-1]
    colours[border] *= 0.7
    return colours.round().astype(np.uint8)


class _Sheet:
    """Draws around and on the map; points are actions, corners are pixels from the upper left."""

    def __init__(self, draw: "ImageDraw.ImageDraw", low: float, high: float) -> None:
        self._draw, self._low, self._high = draw, low, high

    def at(self, point: Point) -> Point:
        """Pixel of a pair of actions."""
        scale = MAP_SIZE / (self._high - self._low)
        return _LEFT + (point[0] - self._low) * scale, _TOP + (self._high - point[1]) * scale

    def axes(self, names: tuple[str, ...]) -> None:
        """The frame of the map, with a tick at every whole action, and the first two agents' names."""
        self.box(_LEFT, MAP_SIZE)
        for tick in range(int(np.ceil(self._low)), int(self._high) + 1):
            x, y = self.at((tick, tick))
            bottom = _TOP + MAP_SIZE
            self._line((x, bottom), (x, bottom + 4))
            self._line((_LEFT - 4, y), (_LEFT, y))
            self.text((x, bottom + 6), str(tick), anchor="mt")
            self.text((_LEFT - 8, y), str(tick), anchor="rm")
        self.text((_LEFT + MAP_SIZE / 2, _TOP + MAP_SIZE + 22), f"action of {names[0]}", anchor="mt")
        self._text_upwards((14, _TOP + MAP_SIZE / 2), f"action of {names[1]}")

    def box(self, left: float, width: float) -> None:
        """An outline as high as the map."""
        corners = [value * OVERSAMPLING for value in (left, _TOP, left + width, _TOP + MAP_SIZE)]
        self._draw.rectangle(corners, outline=INK, width=OVERSAMPLING)

    def cross(self, point: Point) -> None:
        """A cross in ink on white, so that it is seen on every shade."""
        x, y = self.at(point)
        for colour, width, reach in (((255, 255, 255), 4, 8), (INK, 2, 7)):
            self._line((x - reach, y), (x + reach, y), colour, width)
            self._line((x, y - reach), (x, y + reach), colour, width)

    def disc(self, centre: Point, radius: float, colour: tuple[int, int, int]) -> None:
        """A disc with an outline in white and ink."""
        for extra, fill in ((2.0, INK), (1.0, (255, 255, 255)), (0.0, colour)):
            reach = radius + extra
            corners = (centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)
            self._draw.ellipse([value * OVERSAMPLING for value in corners], fill=fill)

    def line_of_agent(self, row: int, name: str, action: float) -> None:
        """The action of one of the agents from the third on, on a line under the map with the map's horizontal scale."""
        y = _TOP + MAP_SIZE + 46 + 11 * row
        self._line((_LEFT, y), (_LEFT + MAP_SIZE, y), GRID, 2)
        self.text((_LEFT - 8, y), name, anchor="rm", size=10)
        self.disc((self.at((action, self._low))[0], y), 3.5, _colour(2 + row))

    def text(self, corner: Point, text: str, *, anchor: str, size: int = 12) -> None:
        """A line of text in Pillow's own font."""
        from PIL import ImageFont

        place = (corner[0] * OVERSAMPLING, corner[1] * OVERSAMPLING)
        self._draw.text(place, text, fill=INK, font=ImageFont.load_default(size=size * OVERSAMPLING), anchor=anchor)

    def _text_upwards(self, centre: Point, text: str) -> None:
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(size=12 * OVERSAMPLING)
        width, height = int(font.getlength(text)) + 4, 18 * OVERSAMPLING
        label = Image.new("L", (width, height), 0)
        ImageDraw.Draw(label).text((width / 2, height / 2), text, fill=255, font=font, anchor="mm")
        corner = (int(centre[0] * OVERSAMPLING - height / 2), int(centre[1] * OVERSAMPLING - width / 2))
        self._draw.bitmap(corner, label.rotate(90, expand=True), fill=INK)

    def _line(self, start: Point, end: Point, colour: tuple[int, int, int] = INK, width: int = 1) -> None:
        points = [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in (start, end)]
        self._draw.line(points, fill=colour, width=width * OVERSAMPLING)
