"""A finished study for the audit to go through, and what spoils it."""

from pathlib import Path

import yaml

from crnet.audit import audit
from crnet.config import study, tuning
from crnet.config.layout import Layout
from crnet.data import episodes
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.report.partial import render
from crnet.runtime.files import read_csv, read_json, write_csv, write_json

STUDY = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
SEED = 5
FOLDS = {"pascal": [0], "k-shot": [0, 1]}


class Study:
    """The tiny study without COCO in a folder: 1-shot on one fold, 5-shot on two, finetuned too, and a control."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "study.yaml"
        self.results, self.work = folder / "results/tiny", folder / "work"
        content = {
            **STUDY,
            "tables": ["table2", "table4"],
            "shots": [1, 5],
            "benchmarks": {name: STUDY["benchmarks"][name] | {"folds": folds} for name, folds in FOLDS.items()},
            "sheet": None,
            "probe": {"table": "table2", "rows": ["condition", "cross-reference", "both"], "episodes": 4},
            "train": STUDY["train"] | {"epochs": 1, "base_episodes": 2, "lr": [1.0e-3, 3.0e-3]},
            "folders": {"results": str(folder / "results"), "work": str(self.work)},
        }
        self.file.write_text(yaml.safe_dump(content))
        self.plan = study.load([self.file])
        self.at = Layout(self.plan)

    def make(self) -> None:
        """What the workflow does, in this process, from data to page."""
        import torch

        from crnet.encoders import prepare as prepare_encoder
        from crnet.encoders.features import write_store
        from crnet.encoders.frozen import FrozenEncoder
        from crnet.evaluation import evaluate as scoring
        from crnet.evaluation import probe as probing
        from crnet.evaluation import trials
        from crnet.evaluation.choice import choose
        from crnet.training.loop import Paths
        from crnet.training.rates import train

        plan, at, none = self.plan, self.at, self.folder / "none"

        def inputs(spec: dict) -> tuple[Path, Path]:
            return Path(at.data(spec["dataset"])), Path(at.encoder(spec["encoder"]))

        for spec in plan.datasets.values():
            prepare(spec, none, none, Path(at.data(spec)))
        for spec in plan.encoders.values():
            prepare_encoder(spec, none, Path(at.encoder(spec)), 1)
        for spec in plan.features.values():
            data, path = inputs(spec)
            encoder = FrozenEncoder(spec["encoder"], path, torch.device("cpu"), "float32")
            write_store(spec, data, encoder, Path(at.features_folder(spec)))
        for name, spec in plan.trainings.items():
            out, state = Path(at.training(name)), self.folder / "state.pt"
            train(spec, Paths(*inputs(spec), Path(at.features(spec)), out, state), "cpu", 1)
        for name, spec in plan.trials.items():
            out = Path(at.finetuning(name))
            trials.run(spec, *inputs(spec["train"]), Path(at.weights(spec)), None, out, "cpu", 1)
        for name, spec in plan.choices.items():
            tried = [Path(at.finetuning(tuning.trials_name(each))) for each in tuning.trials_specs(spec)]
            choose(spec, tried, Path(at.finetuning(name)))
        for name, spec in plan.evaluations.items():
            data, encoder = inputs(spec["train"])
            table, asked = Path(at.episodes(spec)), {k: v for k, v in spec["episodes"].items() if k != "rev"}
            if not table.exists():
                episodes.write(table, episodes.draw(Index.load(data), spec["train"]["fold"], **asked))
            weights, choice = (Path(path) if path else None for path in (at.weights(spec), at.choice(spec)))
            out = Path(at.evaluation(name))
            scoring.evaluate(spec, data, table, encoder, weights, choice, None, out, "cpu", 1)
        for name, spec in plan.probes.items():
            files = (Path(path) for path in (at.episodes(spec), at.encoder(spec["train"]["encoder"]), at.weights(spec)))
            data, out = Path(at.data(spec["train"]["dataset"])), Path(at.probe(name))
            probing.probe(spec, data, *files, None, out, "cpu", 1)
        render([self.file])

    def evaluation(self) -> Path:
        """One of Table 2."""
        names = {c.evaluation for c in self.plan.cells if c.table == "table2" and c.evaluation.startswith("crnet-")}
        return self.results / "evaluate" / min(names)

    def probe(self) -> Path:
        return sorted(self.results.glob("probe/*-probe-*"))[0]

    def training(self, number: int = 0) -> Path:
        return sorted(self.work.glob("train/*"))[number]

    def audit(self, sample: int = 0) -> tuple[str, int]:
        return audit(self.results, [self.file], [self.work], sample, SEED, everything=True)

    def finds(self, *faults: tuple[str, ...], sample: int = 0) -> str:
        """What an audit prints, in which a difference begins with the first text of each fault and holds the others."""
        text, _ = self.audit(sample)
        for start, *words in faults:
            lines = [line for line in differences(text) if line.startswith(start)]
            assert any(all(word in line for word in words) for line in lines), f"{start}, {words}\n{text}"
        return text


def edit(path: Path, **values: object) -> None:
    write_json(path, read_json(path) | values)


def edit_row(path: Path, line: int, **values: str) -> None:
    rows = read_csv(path)
    rows[line - 2] |= values
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def hits_all(row: dict[str, str]) -> dict[str, str]:
    """Counts of a prediction that hits all: possible, and a lie."""
    hit = int(row["ignore_fg_union"])
    total = int(row["void_fg_union"]) + int(row["void_bg_intersection"])
    seen = int(row["ignore_fg_union"]) + int(row["ignore_bg_intersection"])
    counts = {"ignore_fg_intersection": hit, "void_fg_intersection": hit}
    counts |= {"ignore_bg_union": seen - hit, "void_bg_union": total - hit}
    return {name: str(count) for name, count in counts.items()} | {
        "void_fg_union": str(hit),
        "void_bg_intersection": str(total - hit),
    }


def differences(text: str) -> list[str]:
    return [line.strip() for line in text.partition("\ndiffers\n")[2].splitlines() if line.startswith("  ")]


def counts_of(text: str, name: str) -> list[str]:
    """verified, differ, not checked of a check, as they stand in the table."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()
