"""Fixtures that every test may use."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of practice photos beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the practice photos in ../shared, which are not part of the repository")
    return folder


class Tiny:
    """A data set of a few small scenes, an untrained encoder and its features: enough to train and evaluate on."""

    SIZE = 65

    def __init__(self, folder: Path):
        import torch
        from safetensors.torch import save_file

        from crnet.config.settings import component
        from crnet.data.prepare import prepare
        from crnet.encoders.features import write_store
        from crnet.encoders.frozen import FrozenEncoder
        from crnet.encoders.small import network

        self.data, self.encoder, self.features = folder / "data", folder / "small.safetensors", folder / "features"
        settings = {"images_train": 40, "images_val": 60, "size": 64, "rule_grid": 8}
        self.dataset = {"name": "shapes5i", **component("dataset", "shapes5i", "tiny").settings(settings, "tiny")}
        prepare(self.dataset, folder, folder, self.data)
        torch.manual_seed(0)
        save_file(network(["layer3", "layer4"]).state_dict(), self.encoder)
        spec = {"dataset": self.dataset, "encoder": self._encoder(), "size": self.SIZE, "views": "recolour"}
        encoder = FrozenEncoder(self._encoder(), self.encoder, torch.device("cpu"), "float32")
        write_store({**spec, "precision": "float32"}, self.data, encoder, self.features)

    def _encoder(self) -> dict:
        from crnet.config.settings import component

        return {"name": "small", "layers": ["layer3", "layer4"], **component("encoder", "small", "t").settings({}, "t")}

    def training(self, fold=0, seed=0, method="crnet", model=None, train=None) -> dict:
        from crnet.config.defaults import TRAIN
        from crnet.config.rates import train_settings
        from crnet.config.settings import component

        # So narrow a head learns nothing where half its channels are dropped.
        small = {"width": 8, "gate_width": 4, "initialisation": "kaiming", "path_dropout": 0.0}
        given = {**small, **(model or {})} if method == "crnet" else {}
        spec = {
            "method": method,
            "model": component("method", method, "tiny").settings(given, "tiny"),
            "dataset": self.dataset,
            "encoder": self._encoder(),
            "fold": fold,
            "seed": seed,
        }
        if method == "crnet":
            budget = {"size": self.SIZE, "batch": 4, "epochs": 2, "epoch_episodes": 40, "base_episodes": 4}
            how = {"optimizer": "adamw", "lr": 2e-3, "schedule": "one-cycle", "augment": "none", "precision": "float32"}
            cached = {"features": "cached", "views": "recolour"}
            spec["train"] = train_settings({**budget, **how, **cached, **(train or {})}, TRAIN, "tiny")
        return spec

    def evaluation(self, training: dict, **changes) -> dict:
        from crnet.config.defaults import EPISODES, EVALUATE, EVALUATE_LIMITS
        from crnet.config.settings import check

        how = check({"size": self.SIZE, "precision": "float32", **changes}, EVALUATE, EVALUATE_LIMITS, "tiny")
        return {"train": training, "evaluate": how, "episodes": {**EPISODES, "count": 12, "seeds": [0], "shots": 2}}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def outside_encoder(tmp_path_factory, monkeypatch) -> None:
    """Stands in for the encoder of the photos study, which is not shipped: another ResNet-50, up to the same layer."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "resnet50v2.py").write_text(
        "from crnet.encoders import resnet50\n\n\n"
        "def build():\n"
        "    network = resnet50.network(['layer2', 'layer3'])\n"
        "    del network.body.layer4\n"
        "    return network\n"
    )
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store; tests work on copies, since making one takes seconds."""
    from crnet.report import tracking

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with tracking._lock(path):
        tracking._ensure_store(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A finished study (``audited.Study``), which tests read."""
    from audited import Study

    made = Study(tmp_path_factory.mktemp("audited"))
    made.make()
    return made


@pytest.fixture
def copy(finished, tmp_path: Path):
    """A copy of the finished study that a test may spoil."""
    from audited import Study

    return Study(shutil.copytree(finished.folder, tmp_path / "copy"))
