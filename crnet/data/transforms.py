"""Photos and masks on their way into the network: squash to a square, CANet's augmentation, finite views."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

# Views of a photo that a frozen encoder may see once each: kind -> number of views; view 0 is the photo itself.
VIEWS = {"identity": 1, "flip": 2, "recolour": 12}
_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class Placement:
    """Where in its photo the square lies that the network sees, in units of the photo squashed to a square of side 1.

    Attributes:
        scale: How many times larger than the whole photo squashed: the square is 1 / ``scale`` high and wide.
        top, left: Of its upper left corner, in [0, 1 - 1 / ``scale``].
        flipped: Left is right, within the square.
    """

    scale: float = 1.0
    top: float = 0.0
    left: float = 0.0
    flipped: bool = False

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The square in pixels of a photo: left, top, right, bottom."""
        right, bottom = (min(1.0, start + 1 / self.scale) for start in (self.left, self.top))
        return self.left * width, self.top * height, right * width, bottom * height


WHOLE = Placement()


def squash(image: np.ndarray, size: int, placement: Placement = WHOLE) -> np.ndarray:
    """Photo uint8 (H, W, 3), or the part of it that is seen -> (size, size, 3); antialiased bilinear, sampled once.

    The aspect ratio is given up as CANet does.
    """
    return _seen(image, size, placement, Image.Resampling.BILINEAR)


def squash_mask(mask: np.ndarray, size: int, placement: Placement = WHOLE) -> np.ndarray:
    """Mask uint8 (H, W), or the part of it that is seen -> (size, size), nearest: ids never mix."""
    return _seen(mask, size, placement, Image.Resampling.NEAREST)


def _seen(array: np.ndarray, size: int, placement: Placement, how: Image.Resampling) -> np.ndarray:
    picture = Image.fromarray(array)
    seen = np.array(picture.resize((size, size), how, box=placement.box(*picture.size)))
    return flip(seen) if placement.flipped else seen


def apply_view(kind: str, view: int, image: np.ndarray) -> np.ndarray:
    """One of the ``VIEWS[kind]`` views of a photo uint8 (H, W, 3); raises IndexError if there is no such view."""
    if not 0 <= view < VIEWS[kind]:
        raise IndexError(f"{kind} has views 0 to {VIEWS[kind] - 1}, not {view}")
    if kind == "recolour":
        return _recolour(image, view)
    return flip(image) if view else image


def _recolour(image: np.ndarray, view: int) -> np.ndarray:
    """One of twelve recolourings: six channel orders, from view 6 on inverted (255 - value); no rounding occurs.

    A head that learns from fifteen classes of fixed colours memorises them. When support and query of a training
    episode are recoloured alike, each class counts as twelve, and what is left to learn is to compare. The views are
    few and exact, so that features of a frozen encoder can still be computed once and cached.
    """
    if image.dtype != np.uint8 or image.shape[-1:] != (3,):
        raise ValueError(f"recolour takes uint8 (..., 3), not {image.dtype} {image.shape}")
    permuted = np.ascontiguousarray(image[..., _CHANNEL_ORDERS[view % 6]])
    return permuted if view < 6 else 255 - permuted


def apply_view_to_mask(kind: str, view: int, mask: np.ndarray) -> np.ndarray:
    """The mask (H, W) that belongs to ``apply_view``: recolouring leaves it, flipping flips it."""
    return flip(mask) if is_flipped(kind, view) else mask


def is_flipped(kind: str, view: int) -> bool:
    return kind == "flip" and view == 1


def in_view(kind: str, view: int, placement: Placement) -> Placement:
    """Where what lies at ``placement`` is seen in a view: flipped twice is not flipped."""
    return replace(placement, flipped=placement.flipped != is_flipped(kind, view))


def draw_views(kind: str, generator: np.random.Generator) -> tuple[int, int]:
    """Views of query and support of one training episode: recoloured alike, flipped independently."""
    query = int(generator.integers(VIEWS[kind]))
    support = int(generator.integers(VIEWS[kind])) if kind == "flip" else query
    return query, support


def flip(array: np.ndarray) -> np.ndarray:
    """Left becomes right, (H, W, ...)."""
    return np.ascontiguousarray(array[:, ::-1])


def draw_placement(
    mask: np.ndarray, size: int, class_id: int, generator: np.random.Generator, attempts: int = 10
) -> Placement:
    """CANet's augmentation of a photo with this mask (H, W): scale 1 to 1.5, a crop of ``size`` px in square, flip.

    A crop without a pixel of the class would teach nothing: it is drawn again, and after ``attempts`` the photo is
    only flipped.
    """
    found = WHOLE
    for _ in range(attempts):
        scale = generator.uniform(1.0, 1.5)
        top, left = generator.uniform(0.0, 1.0 - 1.0 / scale, 2).tolist()
        drawn = Placement(scale, top, left)
        if (squash_mask(mask, size, drawn) == class_id).any():
            found = drawn
            break
    return replace(found, flipped=bool(generator.random() < 0.5))
