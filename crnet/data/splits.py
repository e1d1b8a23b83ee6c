"""Which classes a data set has, and what each is for in each fold. Imports nothing heavy: plans are made from it."""

from dataclasses import dataclass

from crnet.errors import CrnetError
from crnet.runtime.files import canonical, sha256_text


@dataclass(frozen=True)
class Splits:
    """Classes and their roles, by ids 1 to N in the order of ``classes``."""

    classes: tuple[str, ...]  # names
    folds: tuple[tuple[int, ...], ...]  # per fold the ids of its test classes
    held_out: tuple[tuple[int, ...], ...]  # per fold the ids neither trained nor tested: settings may be chosen on them
    about: str | None = None  # what the choice is, for captions, or None where the field has one for all

    @property
    def digest(self) -> str:
        """SHA-256 over names and ids by role."""
        return sha256_text(canonical([self.classes, self.folds, self.held_out]))

    @property
    def note(self) -> str | None:
        """``about`` with the beginning of the digest, e.g. for a caption."""
        return f"{self.about}, digest {self.digest[:8]}" if self.about else None

    def fold_of(self) -> dict[int, int]:
        """Class id -> the fold that tests it; without the classes that none tests."""
        return {class_id: fold for fold, ids in enumerate(self.folds) for class_id in ids}

    def base_count(self, fold: int) -> int:
        """How many classes a fold trains on."""
        return len(self.classes) - len({*self.folds[fold], *self.held_out[fold]})

    def test_names(self) -> dict[int, list[str]]:
        """Fold -> names of its test classes."""
        return {fold: [self.classes[i - 1] for i in ids] for fold, ids in enumerate(self.folds)}


def plain(classes: tuple[str, ...], folds: tuple[tuple[int, ...], ...]) -> Splits:
    """Splits in which each class is tested in one fold and trained in all others."""
    return Splits(classes, folds, tuple(() for _ in folds))


def of_eighty(classes: tuple[str, ...], split: str) -> Splits:
    """How COCO's 80 classes, in order of their category ids, are split (protocol C).

    - ``40-20-20``: the first 40 train, the next 20 are held out, the last 20 are tested; one fold. The sizes are the
      paper's, the choice is ours: the paper's classes were never published.
    - ``interleaved``: COCO-20i, fold f of 4 tests f+1, f+5, ... (FWB, PFENet, HSNet).
    - ``contiguous``: fold f of 4 tests 20f+1 to 20f+20 (PANet).

    Raises CrnetError for any other split.
    """
    if split == "40-20-20":
        about = "40/20/20 split by sorted category ids (ours; the paper's classes were never published)"
        return Splits(classes, (tuple(range(61, 81)),), (tuple(range(41, 61)),), about)
    if split == "interleaved":
        folds = tuple(tuple(range(fold + 1, 81, 4)) for fold in range(4))
        return Splits(classes, folds, ((),) * 4, "COCO-20i, interleaved: fold f tests the classes f+1, f+5, ...")
    if split == "contiguous":
        folds = tuple(tuple(range(20 * fold + 1, 20 * fold + 21)) for fold in range(4))
        return Splits(classes, folds, ((),) * 4, "COCO in 4 contiguous folds of 20 classes")
    raise CrnetError(f"unknown split {split!r}: choose from 40-20-20, contiguous, interleaved.")
