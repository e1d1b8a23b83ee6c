"""Where each file of a plan lies."""

from pathlib import Path

from crnet.config import probe, resolve, tuning
from crnet.config.names import for_paths
from crnet.config.resolve import Cell, Plan
from crnet.config.settings import brings_weights, component
from crnet.data.archives import archives
from crnet.errors import CrnetError
from crnet.runtime.files import canonical, may_write, sha256_text

DEFAULT_STUDY = Path("configs/studies/demo.yaml")
TABLES = Path("configs/tables")
PACKAGED = Path(__file__).resolve().parents[2]
# The checkout: around the package, or where the package is installed without one, the folder one stands in.
ROOT = PACKAGED if (PACKAGED / TABLES).is_dir() else Path()
PUBLISHED = Path("results")  # committed studies; `crnet publish` alone writes there


class Layout:
    """Paths of a plan's files. ``results`` is small and may be committed, ``work`` is bulky and can be made again."""

    def __init__(self, plan: Plan):
        self.plan, folders = plan, plan.study.folders
        self.archives, self.extracted_root, self.work = folders.archives, folders.extracted, folders.work
        self.results = f"{folders.results}/{plan.study.study}"

    def archive_names(self, kind: str, spec: dict) -> list[str]:
        """Archives that a data set or an encoder is made from."""
        if kind == "encoder":
            return [spec["archive"]] if "archive" in spec else []
        return list(component("dataset", spec["name"], "dataset").literals.get("ARCHIVES", ()))

    def verified(self, archive: str) -> str:
        """Note that an archive was verified: beside it, or in ``work`` where its folder may only be read."""
        return f"{self.archives if may_write(self.archives) else f'{self.work}/verified'}/{archive}.verified"

    def forget_absent_archives(self) -> None:
        """Remove the notes of archives that are gone and needed, so that Snakemake fetches them when it comes to it."""
        for spec in self.plan.datasets.values():
            for name in self.archive_names("dataset", spec):
                extracted = Path(self.extracted(spec)) / name
                archives.forget_absent(Path(self.archives) / name, Path(self.verified(name)), extracted)
        for spec in self.plan.encoders.values():
            for name in self.archive_names("encoder", spec):
                archives.forget_absent(Path(self.archives) / name, Path(self.verified(name)))

    def _checksums(self, spec: dict) -> str:
        """Archives with another checksum hold other photos: they get folders of their own."""
        settings, names = self.plan.study.archives, self.archive_names("dataset", spec)
        other = {name: settings[name].checksum for name in names if name in settings and settings[name].checksum}
        return "-" + sha256_text(canonical(other))[:8] if other else ""

    def extracted(self, spec: dict) -> str:
        return f"{self.extracted_root}/{for_paths(spec['name'])}{self._checksums(spec)}"

    def data(self, spec: dict) -> str:
        return f"{self.work}/data/{resolve.dataset_name(spec)}{self._checksums(spec)}"

    def encoder(self, spec: dict) -> str | None:
        """The encoder's weights; a factory brings its own."""
        own = brings_weights(spec["name"])
        return None if own else f"{self.work}/encoders/{resolve.encoder_name(spec)}.safetensors"

    def features(self, training: dict) -> str | None:
        spec = resolve.features_spec(training)
        return self.features_folder(spec) if spec else None

    def features_folder(self, spec: dict) -> str:
        return f"{self.work}/features/{resolve.features_name(spec)}{self._checksums(spec['dataset'])}"

    def test_features(self, predicted: dict) -> list[str]:
        """Folders of the test photos' features for an evaluation or for trials, one a scale; none if not cached."""
        specs = resolve.test_features_specs(predicted) if self.plan.caches_test_photos else []
        return [self.features_folder(spec) for spec in specs]

    def training(self, name: str) -> str:
        return f"{self.work}/train/{name}"

    def log_so_far(self, name: str) -> str:
        """What a training that is not finished has logged, as ``crnet.training.loop.Paths`` has it."""
        return f"{self.work}/state/{name}.csv"

    def weights(self, evaluation: dict) -> str | None:
        training = evaluation["train"]
        return f"{self.training(resolve.training_name(training))}/model.safetensors" if "train" in training else None

    def job(self, name: str) -> str:
        """What a table, or "claims", is made of, as its command gets it."""
        return f"{self.work}/jobs/{self.plan.study.study}/{name}.json"

    def episodes(self, evaluation: dict) -> str:
        return f"{self.results}/episodes/{resolve.episodes_name(resolve.episodes_spec(evaluation))}.csv"

    def evaluation(self, name: str) -> str:
        return f"{self.results}/evaluate/{name}"

    def counts_of(self, cell: Cell) -> str:
        """The counts that fill a cell: predicted with the first support, or averaged over the supports."""
        return f"{self.evaluation(cell.evaluation)}/{'counts-fusion' if cell.fused else 'counts'}.csv"

    def probe(self, name: str) -> str:
        return f"{self.results}/{probe.FOLDER}/{name}"

    def probe_counts(self, name: str) -> str:
        return f"{self.probe(name)}/counts.csv"

    def finetuning(self, name: str) -> str:
        """Folder of trials, or of a choice."""
        return f"{self.results}/finetune/{name}"

    def choice(self, evaluation: dict) -> str | None:
        """The settings chosen for a finetuned evaluation; None for the others."""
        spec = tuning.choice_spec(evaluation)
        return f"{self.finetuning(tuning.choice_name(spec))}/choice.json" if spec else None


def check_folders(layout: Layout) -> None:
    """Raise CrnetError if a file stands where the workflow needs a folder."""
    for place in (layout.archives, layout.extracted_root, layout.work, layout.results):
        for path in (Path(place), *Path(place).parents):
            if path.exists() and not path.is_dir():
                raise CrnetError(f"{path}: a file stands where a folder has to be; move it away.")


def from_published(layout: Layout) -> Path | None:
    """The published results of a study that has none of its own yet, to make tables of; None if there are none."""
    published = PUBLISHED / layout.plan.study.study
    return published if published.is_dir() and not Path(layout.results).exists() else None
