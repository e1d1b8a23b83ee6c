"""``crnet check-data``: every photo and mask of a study's data sets is read, and all that is wrong is listed at once.

A prepared data set is read as training and evaluation read it; one that is not prepared yet is scanned by the code
that prepares it, where it was extracted or where its archives lie.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crnet.data import sets
from crnet.data.findings import Finding, Report, reason
from crnet.data.index import Index
from crnet.data.pixels import check_ids
from crnet.errors import CrnetError

HEADER = ("data set", "file", "what", "what to do")
PREPARE_AGAIN = "let the workflow prepare the data again"


@dataclass
class Checked:
    """What the check of one data set told."""

    name: str  # in the study's folders
    where: Path  # the folder that was read: the prepared one, or else that of what it is prepared from
    photos: int | None = None  # how many were read whole; None where there is nothing to read yet
    findings: list[CrnetError] = field(default_factory=list)


def check(spec: dict, prepared: Path, archives: Path, extracted: Path) -> Checked:
    """Read one data set: ``prepared``, or else what ``crnet.data.prepare`` prepares it from with these arguments."""
    dataset, settings = sets.opened(spec)
    ready = (prepared / "dataset.json").is_file()
    from_archives = hasattr(dataset, "check")
    source = archives if getattr(dataset, "IN_PLACE", ()) else extracted
    if hasattr(dataset, "source"):  # one that is your own
        source = dataset.source(settings)
    result = Checked(prepared.name, prepared if ready or not from_archives else source)
    try:
        if ready:
            result.photos = check_prepared(prepared, result.findings.append)
        elif from_archives:
            result.photos = dataset.check(archives, extracted, settings, result.findings.append)
    except CrnetError as error:
        result.findings.append(error)
    return result


def check_prepared(folder: Path, report: Report) -> int:
    """Count the photos of a prepared data set that are whole, with their masks. Raises CrnetError if it is none."""
    from tqdm import tqdm

    index, whole = Index.load(folder), 0
    for image in tqdm(index.photos, desc=f"reading {index.name}", unit="photo", mininterval=1):
        try:
            index.read_image(image)
            _check_mask(index, image)
            whole += 1
        except CrnetError as error:
            report(error)
    return whole


def _check_mask(index: Index, image: str) -> None:
    photo = index.photos[image]
    if photo.offset is None:
        check_ids(index.read_mask(image), len(index.classes), photo.mask)
        return
    for class_id in sorted(photo.classes):
        try:
            index.class_mask(image, class_id)
        except ValueError as error:  # run lengths that are none
            raise Finding(photo.mask, f"has broken masks of {image} ({reason(error)})", PREPARE_AGAIN) from error


def rows(results: Iterable[Checked]) -> list[tuple[str, str, str, str]]:
    """A row of ``HEADER`` for each finding."""
    found = []
    for result in results:
        for error in result.findings:
            if isinstance(error, Finding):
                parts = error.file, error.what, error.remedy
            else:
                what, _, remedy = str(error).rpartition(": ")
                parts = ("", what, remedy.rstrip(".")) if what else ("", str(error), "")
            found.append((result.name, *parts))
    return found


def describe(results: Sequence[Checked]) -> str:
    """One table of all findings, then a line for each data set."""
    table = rows(results)
    lines = [*_markdown(table), ""] if table else []
    for result in results:
        count = len(result.findings)
        if result.photos is None and not count:
            lines.append(f"{result.name}: is generated when it is needed, nothing to check yet ({result.where})")
        else:
            found = f"{count} {'finding' if count == 1 else 'findings'}" if count else "no findings"
            lines.append(f"{result.name}: {result.photos or 0:,} photos with masks are whole, {found} ({result.where})")
    return "\n".join(lines)


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [HEADER, *table]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
