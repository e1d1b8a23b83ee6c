"""From a data set's specification to a prepared data set; each data set's own file knows how."""

from pathlib import Path

from crnet.data import sets
from crnet.data.archives.archives import OFFICIAL, extract
from crnet.errors import CrnetError


def prepare(spec: dict, archives: Path, extracted: Path, out: Path) -> None:
    """Extract the archives that the data set names, if any, and let it prepare itself into ``out``.

    Args:
        spec: ``{"name": ..., settings...}``.
        archives: Folder of the verified archives.
        extracted: Folder for what they hold, a folder of its name for each archive; each is extracted once.
    """
    dataset, settings = sets.opened(spec)
    for name in getattr(dataset, "ARCHIVES", ()):
        if name not in OFFICIAL:
            raise CrnetError(f"{spec['name']}: asks for the unknown archive {name!r}; known: {', '.join(OFFICIAL)}.")
        if name not in getattr(dataset, "IN_PLACE", ()):
            extract(archives / name, extracted / name)
    dataset.prepare(archives, extracted, out, settings)
