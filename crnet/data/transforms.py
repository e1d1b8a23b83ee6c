"""Photos and masks on their way into the network: squash to a square, CANet's augmentation, finite views."""

import numpy as np
from PIL import Image

# Views of a photo that a frozen encoder may see once each: kind -> number of views; view 0 is the photo itself.
VIEWS = {"identity": 1, "flip": 2, "recolour": 12}
_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """Photo uint8 (H, W, 3) -> (size, size, 3), aspect ratio given up as CANet does; antialiased bilinear."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def squash_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Mask uint8 (H, W) -> (size, size), nearest: ids never mix."""
    return np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


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


def draw_views(kind: str, generator: np.random.Generator) -> tuple[int, int]:
    """Views of query and support of one training episode: recoloured alike, flipped independently."""
    query = int(generator.integers(VIEWS[kind]))
    support = int(generator.integers(VIEWS[kind])) if kind == "flip" else query
    return query, support


def flip(array: np.ndarray) -> np.ndarray:
    """Left becomes right, (H, W, ...)."""
    return np.ascontiguousarray(array[:, ::-1])


def scale_crop_flip(
    image: np.ndarray, mask: np.ndarray, class_id: int, generator: np.random.Generator, attempts: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """CANet's augmentation of a square photo (S, S, 3) and its mask (S, S): scale 1 to 1.5, crop S x S, flip.

    A crop without a pixel of the class would teach nothing: it is drawn again, and after ``attempts`` the photo is
    only flipped.
    """
    size = len(mask)
    for _ in range(attempts):
        scaled = max(size, round(size * generator.uniform(1.0, 1.5)))
        top, left = generator.integers(0, scaled - size + 1, 2)
        crop = np.s_[top : top + size, left : left + size]
        cropped = squash_mask(mask, scaled)[crop]
        if (cropped == class_id).any():
            image, mask = squash(image, scaled)[crop], cropped
            break
    if generator.random() < 0.5:
        image, mask = flip(image), flip(mask)
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)
