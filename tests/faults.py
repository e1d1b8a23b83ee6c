"""What tests of faults share."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from crnet import methods
from crnet.data import episodes
from crnet.data.index import Index
from crnet.encoders.features import write_store
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError
from crnet.runtime.files import canonical
from crnet.training.loop import Paths, train


def one_sentence(error: CrnetError, file: Path | str) -> None:
    assert str(file) in str(error)
    assert "\n" not in str(error)
    assert str(error).endswith(".")
    assert "BytesIO" not in str(error)


def paths(tiny, folder: Path, data: Path | None = None, features: Path | None = Path("cached")) -> Paths:
    features = tiny.features if features == Path("cached") else features
    return Paths(data or tiny.data, tiny.encoder, features, folder / "run", folder / "run.pt")


def trained(tiny, folder: Path, spec: dict, threads: int = 1, **options) -> Path:
    """Where a training on ``spec`` left its files; its state is in ``folder``."""
    where = paths(tiny, folder, features=tiny.features if spec["train"]["features"] == "cached" else None)
    train(spec, where, "cpu", threads, **options)
    return where.out


def training(spec: dict, where: Paths, *options) -> list[str]:
    """The command that trains, without the program."""
    files = [f"--{name}={path}" for name, path in vars(where).items() if path is not None]
    return ["job", "train", "--spec", canonical(spec), *files, *map(str, options)]


def frozen(tiny) -> FrozenEncoder:
    return FrozenEncoder(tiny.training()["encoder"], tiny.encoder, torch.device("cpu"), "float32")


def features_spec(tiny, **changes) -> dict:
    spec = {"dataset": tiny.dataset, "encoder": tiny.training()["encoder"], "size": tiny.SIZE, "views": "recolour"}
    return {**spec, "precision": "float32", **changes}


def encode(tiny, out: Path, **changes) -> None:
    write_store(features_spec(tiny, **changes), tiny.data, frozen(tiny), out)


def untrained(tiny, folder: Path) -> Path:
    """Weights of a head as it is born, drawn so that it calls neither all pixels foreground nor none."""
    torch.manual_seed(1)
    save_file(methods.build("crnet", (64, 96), tiny.training()["model"]).state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def drawn(tiny, folder: Path, count: int, shots: int) -> Path:
    """Test episodes of fold 0."""
    episodes.write(folder / "f0.csv", episodes.draw(Index.load(tiny.data), 0, count, [0], shots, "leave out"))
    return folder / "f0.csv"
