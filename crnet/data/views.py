"""The twelve recolourings of an image: six channel orders, each plain or inverted.

A head that learns from fifteen classes of fixed colours memorises them. When support and query of a training
episode are recoloured alike, each class counts as twelve, and what is left to learn is to compare. The views are
few and exact, so that features of a frozen encoder can still be computed once and cached.
"""

import numpy as np

VIEWS = 12
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def recolour(image: np.ndarray, view: int) -> np.ndarray:
    """View ``view`` of an image: channel order ``view % 6``, inverted (255 - value) from view 6 on.

    Args:
        image: uint8, (..., 3), e.g. (H, W, 3).
        view: 0 (the image itself) to 11.

    Returns:
        A new array, uint8, of the same shape; no rounding occurs.

    Raises:
        ValueError: if the view does not exist or the image is not uint8 with three channels last.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view {view} does not exist: 0 to {VIEWS - 1} do")
    if image.dtype != np.uint8 or image.shape[-1:] != (3,):
        raise ValueError(f"recolour takes uint8 (..., 3), not {image.dtype} {image.shape}")
    permuted = np.ascontiguousarray(image[..., _ORDERS[view % 6]])
    return permuted if view < 6 else 255 - permuted
