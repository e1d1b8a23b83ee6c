"""What tests of faults share."""

from pathlib import Path

from crnet.errors import CrnetError
from crnet.training.loop import Paths


def one_sentence(error: CrnetError, file: Path | str) -> None:
    assert str(file) in str(error)
    assert "\n" not in str(error)
    assert str(error).endswith(".")
    assert "BytesIO" not in str(error)


def paths(tiny, folder: Path, data: Path | None = None, features: Path | None = Path("cached")) -> Paths:
    features = tiny.features if features == Path("cached") else features
    return Paths(data or tiny.data, tiny.encoder, features, folder / "run", folder / "run.pt")
