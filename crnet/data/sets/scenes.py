"""Painting of textured shapes on textured backgrounds, in integers only.

No floating-point number decides a pixel, so a scene is a pure function of its random generator: no SIMD width, maths
library or compiler flag can change its digest. Lengths inside a shape are in 1/1024 of its radius (its points lie
within radius 1024); lengths of a texture are in 1/16 pixel; angles are in 1/64 turn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

UNIT = 1024
TURN = 64
_FIXED = 4096  # one, for cosines
_COS = [round(_FIXED * math.cos(2 * math.pi * step / TURN)) for step in range(TURN)]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 40), "orange": (230, 130, 35), "yellow": (225, 205, 55), "green": (60, 155, 60),
    "teal": (40, 165, 165), "blue": (50, 80, 205), "purple": (130, 55, 170), "pink": (230, 130, 180),
    "white": (232, 232, 228), "black": (32, 32, 36), "brown": (115, 75, 45), "grey": (128, 128, 132),
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What makes objects of one kind alike: names from ``SHAPES``, ``TEXTURES`` and, twice, ``PALETTE``."""

    shape: str
    texture: str
    colours: tuple[str, str]


@dataclass
class Scene:
    """A canvas and what was painted on it."""

    image: np.ndarray  # uint8 (H, W, 3)
    instances: np.ndarray  # uint8 (H, W): 0 background, k the k-th painted object where it is visible
    labels: list[int]  # of each instance, ``labels[0]`` = 0 for the background
    areas: list[int]  # pixels of each instance inside the canvas before others covered it

    def mask(self) -> np.ndarray:
        """Label of every pixel, uint8 (H, W)."""
        return np.array(self.labels, np.uint8)[self.instances]


# Shapes: (u, v) int32 arrays in 1/1024 of the radius -> bool array.


def _polygon(*corners: tuple[int, int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Points inside a polygon, by counting the edges that a ray to the right crosses."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        odd = np.zeros(u.shape, bool)
        for (u1, v1), (u2, v2) in zip(corners, corners[1:] + corners[:1], strict=True):
            if v1 == v2:
                continue
            if v1 > v2:
                u1, v1, u2, v2 = u2, v2, u1, v1
            odd ^= (v >= v1) & (v < v2) & ((u - u1) * (v2 - v1) < (v - v1) * (u2 - u1))
        return odd

    return inside


def _disc(u: np.ndarray, v: np.ndarray, radius: int = UNIT) -> np.ndarray:
    return u * u + v * v <= radius * radius


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    lobes = _disc(abs(u) - 440, v + 320, 520)
    return lobes | _polygon((-910, -100), (0, -500), (910, -100), (0, 1000))(u, v)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc,
    "ring": lambda u, v: _disc(u, v) & ~_disc(u, v, 520),
    "square": lambda u, v: (abs(u) <= 760) & (abs(v) <= 760),
    "triangle": _polygon((0, -1024), (887, 512), (-887, 512)),
    "star": _polygon(
        (0, -1024), (247, -340), (974, -316), (399, 130), (602, 828),
        (0, 420), (-602, 828), (-399, 130), (-974, -316), (-247, -340),
    ),
    "cross": lambda u, v: ((abs(u) <= 310) & (abs(v) <= 960)) | ((abs(v) <= 310) & (abs(u) <= 960)),
    "crescent": lambda u, v: _disc(u, v) & ~_disc(u - 520, v, 820),
    "heart": _heart,
    "bar": lambda u, v: (abs(u) <= 960) & (abs(v) <= 330),
    "arrow": _polygon((-1000, -220), (60, -220), (60, -700), (1000, 0), (60, 700), (60, 220), (-1000, 220)),
}  # fmt: skip


# Textures: share of the second colour in 1/256, int32, from texture coordinates (s, t) in 1/16 pixel, the period
# in 1/16 pixel, the shape coordinates and the shape.


@dataclass(frozen=True)
class _Place:
    s: np.ndarray
    t: np.ndarray
    u: np.ndarray
    v: np.ndarray
    period: int
    shape: str
    lattice: np.ndarray  # uint8 (64, 64), random


def _dotted(at: _Place) -> np.ndarray:
    s, t = at.s % at.period - at.period // 2, at.t % at.period - at.period // 2
    return s * s + t * t < (at.period * 3 // 10) ** 2


def _bricked(at: _Place) -> np.ndarray:
    row = at.t // at.period
    return (at.t % at.period < at.period // 4) | ((at.s + row * at.period) % (2 * at.period) < at.period // 4)


def _zigzag(at: _Place) -> np.ndarray:
    fold = abs(at.s % (2 * at.period) - at.period)
    return (at.t + fold) % at.period < at.period // 2


def _rimmed(at: _Place) -> np.ndarray:
    return ~SHAPES[at.shape](at.u * 3 // 2, at.v * 3 // 2)


def _speckled(at: _Place) -> np.ndarray:
    grain = at.period // 3
    return at.lattice[at.s // grain % 64, at.t // grain % 64] < 80


_SWITCHED: dict[str, Callable[[_Place], np.ndarray]] = {
    "striped": lambda at: at.s % at.period < at.period // 2,
    "checked": lambda at: (at.s // at.period + at.t // at.period) % 2 == 0,
    "dotted": _dotted,
    "netted": lambda at: (at.s % at.period < at.period // 4) | (at.t % at.period < at.period // 4),
    "zigzag": _zigzag,
    "speckled": _speckled,
    "bricked": _bricked,
    "rimmed": _rimmed,
    "halved": lambda at: at.u < 0,
}
TEXTURES: dict[str, Callable[[_Place], np.ndarray]] = {
    **{name: (lambda at, rule=rule: rule(at) * np.int32(256)) for name, rule in _SWITCHED.items()},
    "shaded": lambda at: np.clip((at.u + 800) * 256 // 1600, 0, 256),
}
# Area of a shape in 1/1000 of its squared radius, counted on a lattice.
_V, _U = np.mgrid[-UNIT : UNIT + 1 : 16, -UNIT : UNIT + 1 : 16].astype(np.int32)
_AREAS = {name: int(inside(_U, _V).sum()) * 1000 // 64**2 for name, inside in SHAPES.items()}


def jitter(rng: np.random.Generator, colour: str, spread: int) -> np.ndarray:
    """A palette colour under another light: each channel moved by up to ``spread``, all scaled by 0.75 to 1.15."""
    moved = np.array(PALETTE[colour], np.int32) + rng.integers(-spread, spread + 1, 3, np.int32)
    return np.clip(moved * int(rng.integers(192, 295)) // 256, 0, 255)


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """int32 (h, w, 3) between two colours; ``share`` int32 (h, w) in 0..256."""
    return first + (second - first) * share[..., None] // 256


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Values 0..256, int32 (height, width): random lattice, bilinear between points that are ``cell`` pixels apart."""
    lattice = rng.integers(0, 257, (height // cell + 2, width // cell + 2), np.int32)
    y, x = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)[None]
    top, left, down, right = y // cell, x // cell, y % cell, x % cell
    upper = lattice[top, left] * (cell - right) + lattice[top, left + 1] * right
    lower = lattice[top + 1, left] * (cell - right) + lattice[top + 1, left + 1] * right
    return (upper * (cell - down) + lower * down) // (cell * cell)


def background(rng: np.random.Generator, height: int, width: int) -> Scene:
    """An empty scene: smooth, blotched or patterned mixture of two jittered palette colours with fine grain."""
    names = list(PALETTE)
    first, second = (jitter(rng, names[rng.integers(len(names))], 40) for _ in range(2))
    share = smooth_noise(rng, height, width, int(rng.integers(12, 48)))
    style = (0, 1, 2, 2)[rng.integers(4)]
    if style == 1:
        share = (share > 128) * np.int32(200)
    elif style == 2:
        texture = list(TEXTURES)[rng.integers(6)]  # the first six need no object
        pattern = _texture(rng, texture, "disc", *_local(height, width, height // 2, width // 2, rng), UNIT)
        share = (share + 3 * pattern) // 4
    first = (first + second) // 2 if rng.integers(2) else first  # half of them of low contrast
    image = _blend(first, second, share) + rng.integers(-14, 15, (height, width, 1), np.int32)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), np.zeros((height, width), np.uint8), [0], [height * width])


def _local(height: int, width: int, row: int, column: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turned, mirrored, slightly stretched coordinates about (row, column), in 1/4096 pixel, int32 (height, width)."""
    angle, mirror = int(rng.integers(TURN)), 1 - 2 * int(rng.integers(2))
    cos, sin = _COS[angle], _COS[(angle - TURN // 4) % TURN]
    y = np.arange(height, dtype=np.int32)[:, None] - row
    x = np.arange(width, dtype=np.int32)[None] - column
    stretch = int(rng.integers(218, 301))
    return cos * x + sin * y, (cos * y - sin * x) // 256 * (mirror * stretch)


def _texture(
    rng: np.random.Generator, texture: str, shape: str, across: np.ndarray, along: np.ndarray, radius: int
) -> np.ndarray:
    period = 16 * int(rng.integers(7, 12)) + min(radius, 64) * 2
    lattice = rng.integers(0, 256, (64, 64), np.uint8)
    u, v = across // (4 * radius), along // (4 * radius)
    return TEXTURES[texture](_Place(across // 256, along // 256, u, v, period, shape, lattice))


def paint(
    scene: Scene, rng: np.random.Generator, look: Look, label: int, area: int, *, visible: int = 55, tries: int = 6
) -> bool:
    """Paint one object at a random place, turned, mirrored and stretched at random; it may overhang the border.

    Args:
        scene: changed in place.
        label: 0 for clutter, else the class.
        area: of the whole object, in 1/1000 of the canvas.
        visible: least share in percent of this object inside the canvas, and of each labelled object before it
            that stays uncovered.
        tries: places that are tried.

    Returns:
        Whether a place was found; if not, the scene is as it was.
    """
    height, width = scene.instances.shape
    radius = max(4, math.isqrt(area * height * width // _AREAS[look.shape]))
    for _ in range(tries):
        row = int(rng.integers(height // 8, height - height // 8))
        column = int(rng.integers(width // 8, width - width // 8))
        reach = radius * 5 // 4 + 1
        rows = slice(max(0, row - reach), min(height, row + reach + 1))
        columns = slice(max(0, column - reach), min(width, column + reach + 1))
        size = rows.stop - rows.start, columns.stop - columns.start
        across, along = _local(*size, row - rows.start, column - columns.start, rng)
        inside = SHAPES[look.shape](across // (4 * radius), along // (4 * radius))
        if _fits(scene, inside, rows, columns, area, visible):
            break
    else:
        return False
    share = _texture(rng, look.texture, look.shape, across, along, radius)
    first, second = (jitter(rng, colour, 30) for colour in look.colours)
    grain = rng.integers(-10, 11, (*size, 1), np.int32)
    colours = np.clip(_blend(first, second, share) + grain, 0, 255).astype(np.uint8)
    scene.image[rows, columns][inside] = colours[inside]
    scene.instances[rows, columns][inside] = len(scene.labels)
    scene.labels.append(label)
    scene.areas.append(int(inside.sum()))
    return True


def _fits(scene: Scene, inside: np.ndarray, rows: slice, columns: slice, area: int, visible: int) -> bool:
    if int(inside.sum()) * 100_000 < visible * area * scene.instances.size:
        return False
    before = np.bincount(scene.instances.ravel(), minlength=len(scene.labels))
    covered = np.bincount(scene.instances[rows, columns][inside], minlength=len(scene.labels))
    return all(
        label == 0 or (before[k] - covered[k]) * 100 >= visible * scene.areas[k] for k, label in enumerate(scene.labels)
    )


def void_border(scene: Scene) -> np.ndarray:
    """The mask with 255 on both sides of every visible outline of a labelled object, two pixels wide in all."""
    mask = scene.mask()
    void = np.zeros(mask.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        outline = (scene.instances[first] != scene.instances[second]) & ((mask[first] | mask[second]) > 0)
        void[first] |= outline
        void[second] |= outline
    mask[void] = 255
    return mask
