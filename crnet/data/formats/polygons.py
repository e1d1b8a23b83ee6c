"""From a mask to polygons along the edges of its pixels, which COCO's rasteriser turns back into the same mask."""

import numpy as np

Point = tuple[int, int]


def polygons(mask: np.ndarray) -> list[list[int]]:
    """Simple polygons [x1, y1, x2, y2, ...] that together cover a mask, bool (H, W), pixel (0, 0) from 0 to 1.

    Each connected part is one polygon, in order of its first pixel. COCO's polygons know no holes: a part with a hole
    is cut in two at the hole.
    """
    from scipy.ndimage import find_objects, label

    found = []
    parts, _ = label(mask)
    for number, (rows, columns) in enumerate(find_objects(parts), start=1):
        part = parts[rows, columns] == number
        outline, *holes = sorted(_loops(part), key=_area, reverse=True)
        if not holes:
            shifted = [(x + columns.start, y + rows.start) for x, y in _corners(outline)]
            found.append([coordinate for point in shifted for coordinate in point])
            continue
        cut = min(x for x, _ in holes[0])  # from here on the hole is open to the left
        for half in (np.s_[:, :cut], np.s_[:, cut:]):
            piece = np.zeros_like(mask)
            piece[rows, columns][half] = part[half]
            found += polygons(piece)
    return found


def _loops(part: np.ndarray) -> list[list[Point]]:
    """Closed paths along the edges between a part and the rest: clockwise about the part, else about its holes."""
    padded = np.pad(part, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[Point, list[Point]] = {}
    for (dy, dx), start, end in (
        ((-1, 0), (0, 0), (1, 0)),  # the upper edge of a pixel leads right, and so on around it
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        height, width = part.shape
        beside = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for y, x in np.argwhere(inside & ~beside).tolist():
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    loops = []
    while following:
        first = here = min(following)
        came = (1, 0)
        loop = []
        while here in following:
            loop.append(here)
            ends = following[here]
            # Where two pixels touch at a corner, a right turn stays at the same pixel.
            right = (here[0] - came[1], here[1] + came[0])
            there = ends.pop(ends.index(right) if right in ends else 0)
            if not ends:
                del following[here]
            came, here = (there[0] - here[0], there[1] - here[1]), there
        assert here == first  # as many edges lead to a point as away from it
        loops.append(loop)
    return loops


def _area(loop: list[Point]) -> int:
    """Twice the enclosed area, positive about a part and negative about a hole."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True))


def _corners(loop: list[Point]) -> list[Point]:
    """The points at which the path turns."""
    return [
        here
        for before, here, after in zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
    ]
