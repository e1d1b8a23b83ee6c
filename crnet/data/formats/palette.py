"""The colours of VOC's masks: an editor that sorts a palette anew changes ids, and colours tell it."""

from pathlib import Path

from PIL import Image

from crnet.data.findings import Finding
from crnet.data.pixels import VOID

CLASSES = 20


def voc_palette() -> list[int]:
    """The 256 colours of VOC's masks, flat: bit k of an id goes to bit 7 - k // 3 of channel k % 3."""
    return [
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
        for index in range(256)
        for channel in range(3)
    ]


PALETTE = voc_palette()
# Black is left out: many give it to all ids that they do not name.
IDS = {tuple(PALETTE[3 * value : 3 * value + 3]): value for value in (*range(1, CLASSES + 1), VOID)}


def check_palette(path: Path, ids: list[int]) -> None:
    """Raise CrnetError for a palette PNG in which one of its ``ids`` has the colour that VOC gives to another.

    Palettes of other colours say nothing.
    """
    with Image.open(path) as mask:
        flat = mask.getpalette("RGB") if mask.mode == "P" else None
    for value in ids if flat else ():
        meant = IDS.get(tuple(flat[3 * value : 3 * value + 3]), value)
        if meant != value:
            what = f"shows id {value} in VOC's colour of id {meant}: its palette was sorted anew, as editors do"
            raise Finding(path, what, "take the original mask, or save it with the palette of VOC unchanged")
