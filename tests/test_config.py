"""Studies and tables: what is wrong is said in one sentence, with the key and the known ones, before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crnet.config import resolve, study
from crnet.config.settings import check, components
from crnet.errors import CrnetError
from crnet.report import runs
from crnet.runtime.files import canonical

ROOT = Path(__file__).resolve().parents[1]
TABLE2 = {"condition": "condition", "cross-reference": "cross-reference-plain", "both": "both-plain"}  # -> gate's rows
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))
DEMO = yaml.safe_load((ROOT / "configs/studies/demo.yaml").read_text())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"seedz": [0]}, ["seedz", "unknown key", "seeds"]),
        ({"train": {"learning_rate": 1}}, ["train.learning_rate", "unknown setting", "lr"]),
        ({"train": {"lr": "fast"}}, ["train.lr", "'fast'", "float"]),
        ({"train": {"lr": float("nan")}}, ["train.lr", "nan"]),
        ({"train": {"optimizer": "adam"}}, ["train.optimizer", "'adam'", "'adamw'", "'sgd'"]),
        ({"methods": {"crnet": {"cross_refrence": False}}}, ["cross_refrence", "did you mean 'cross_reference'"]),
        ({"methods": {"crnt": {}}}, ["unknown method 'crnt'", "crnet", "prototype"]),
        ({"encoders": {"main": {"name": "resnet51"}}}, ["unknown encoder 'resnet51'", "resnet50", "vgg16"]),
        ({"encoders": {"main": {"layers": ["layer9"]}}}, ["layer9", "layer3"]),
        ({"benchmarks": {"pascal": {"folds": [4]}}}, ["folds 0 to 3", "4"]),
        ({"benchmarks": {"pascal": {"dataset": {"name": "pascal"}}}}, ["unknown dataset 'pascal'", "pascal5i"]),
        ({"benchmarks": {"pascal": {"episodes": {"count": 0}}}}, ["episodes.count", "0"]),
        ({"tables": ["table9"]}, ["unknown table 'table9'", "table2"]),
        ({"tables": ["table2", "table2"]}, ["tables", "twice"]),
        ({"controls": ["crnet"]}, ["'crnet' has weights to train", "prototype"]),
        ({"controls": ["prototyp"]}, ["controls: unknown method 'prototyp'", "prototype"]),
        ({"device": "tpu"}, ["device", "cpu", "cuda"]),
        ({"evaluate": {"scales": []}}, ["evaluate.scales", "not empty"]),
        ({"evaluate": {"scales": [1.0, 9.0]}}, ["evaluate.scales", "9.0"]),
        ({"evaluate": {"shots": 5}}, ["evaluate.shots", "table"]),
        ({"sheet": {"table": "table3", "row": "fall"}}, ["sheet.row", "'fall'", "full"]),
        ({"probe": {"table": "table9", "rows": ["both"]}}, ["probe.table", "'table9'", "table2"]),
        ({"probe": {"rows": ["bot"]}}, ["probe.rows", "table2 has no row 'bot'", "both"]),
        ({"probe": {"table": "table3", "rows": ["prototype"]}}, ["probe.rows: prototype", "probe rows of crnet"]),
        ({"probe": {"table": "table2", "rows": ["all-foreground"]}}, ["probe.rows: all-foreground", "crnet"]),
        ({"probe": {"table": "table4", "rows": ["full-finetune"]}}, ["table4 has no row 'full-finetune'", "1 shot"]),
        ({"probe": {"rows": ["both", "both"]}}, ["probe.rows", "twice"]),
        ({"folders": {"work": "a {b}"}}, ["folders.work", "a {b}"]),
        ({"study": "../x"}, ["study", "../x"]),
        ({"train": True}, ["train"]),
    ],
)
def test_wrong_input_is_one_sentence(overrides, words):
    with pytest.raises(CrnetError) as caught:
        study.load(overrides=overrides)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


class TestExtends:
    """A study that says what it differs in, from a study beside it."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        (tmp_path / "demo.yaml").write_text((ROOT / "configs/studies/demo.yaml").read_text())
        return tmp_path

    @staticmethod
    def write(file: Path, **content) -> Path:
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    def test_what_it_says_wins_and_the_rest_stays(self, folder):
        middle = self.write(folder / "middle.yaml", extends="demo.yaml", study="middle", seeds=[5], train={"batch": 3})
        last = self.write(folder / "last.yaml", extends="middle.yaml", study="last", seeds=[6, 7])
        assert study.with_bases(last)[0][0] == folder / "demo.yaml"
        loaded = study.load([last]).study
        assert (loaded.seeds, loaded.train["batch"]) == ([6, 7], 3)
        assert loaded.train["lr"] == DEMO["train"]["lr"]
        assert study.load([last, middle]).study.seeds == [5]
        with pytest.raises(CrnetError, match=r"last\.yaml: extends: in --config it does nothing"):
            study.load([last], {"extends": "demo.yaml"})

    @pytest.mark.parametrize(
        ("content", "given", "of"),
        [
            ({"encoders": {"main": {"name": "resnet50"}}}, {"name": "resnet50"}, lambda s: s.encoders["main"]),
            (
                {"benchmarks": {"pascal": {"dataset": {"name": "pascal5i"}}}},
                {"name": "pascal5i"},
                lambda s: s.benchmarks["pascal"].dataset,
            ),
        ],
    )
    def test_a_new_name_replaces_what_another_one_was_given(self, folder, content, given, of):
        """Extended, in a second file, and by --config alike."""
        own, data = {"title": "Mine", "caption": "Mine."}, {"pascal": {"dataset": {"images_val": 300}}}
        middle = self.write(folder / "middle.yaml", extends="demo.yaml", study="middle", **own, benchmarks=data)
        last = self.write(folder / "last.yaml", extends=middle.name, study="last", **own, **content)
        second = self.write(folder / "second.yaml", **content)
        for loaded in (study.load([last]), study.load([middle, second]), study.load([middle], content)):
            assert of(loaded.study) == given

    def test_the_same_name_again_keeps_what_was_inherited(self, folder):
        own = {"title": "Mine", "caption": "Mine."}
        encoders = {"main": {"name": "small", "layers": ["layer4"]}}
        middle = self.write(folder / "middle.yaml", extends="demo.yaml", study="middle", **own, encoders=encoders)
        again = {"main": {"name": "small"}}
        file = self.write(folder / "last.yaml", extends=middle.name, study="last", encoders=again)
        assert study.load([file]).study.encoders["main"] == encoders["main"]

    @pytest.mark.parametrize(
        ("content", "place"),
        [
            ({"benchmarks": {"pascal": {"dataset": {"images_val": 300}}}}, "benchmarks.pascal"),
            ({"benchmarks": {"mine": {"dataset": {"name": "shapes5i"}, "folds": [0]}}}, "benchmarks.mine"),
            ({"encoders": {"main": {"layers": ["layer4"]}}}, "encoders.main"),
        ],
    )
    def test_other_data_have_a_title_and_a_caption_of_their_own(self, folder, content, place):
        own = {"title": "Mine", "caption": "Mine."}
        for lacking in (["title", "caption"], ["caption"]):
            said = {key: text for key, text in own.items() if key not in lacking}
            file = self.write(folder / "mine.yaml", extends="demo.yaml", study="mine", **content, **said)
            with pytest.raises(CrnetError, match=rf"mine\.yaml: {' and '.join(lacking)}: .*{place} differs from demo"):
                study.load([file])
        study.load([self.write(folder / "mine.yaml", extends="demo.yaml", study="mine", **content, **own)])

    def test_less_of_the_same_data_needs_none(self, folder):
        content = {"seeds": [3], "encoders": {"vgg16": None}, "benchmarks": {"pascal": {"folds": [1]}}}
        study.load([self.write(folder / "mine.yaml", extends="demo.yaml", study="mine", **content)])

    @pytest.mark.parametrize(
        "base", ["nowhere.yaml", "../demo.yaml", "", ".", "..", "a\x00b", "x" * 300, 3, ["demo.yaml"], {}]
    )
    def test_what_is_no_study_beside_it_is_refused(self, folder, base):
        file = self.write(folder / "mine.yaml", extends=base)
        with pytest.raises(CrnetError, match=r"mine\.yaml: extends: .* is not the name of a file") as caught:
            study.load([file])
        assert str(caught.value).isprintable()

    def test_a_circle_is_refused(self, folder):
        first = self.write(folder / "first.yaml", extends="second.yaml", study="first")
        self.write(folder / "second.yaml", extends="first.yaml", study="second")
        with pytest.raises(CrnetError, match=r"second\.yaml: extends: .*first\.yaml extends this file already"):
            study.load([first])

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ({"seeds": [0]}, r"mine\.yaml: study: is missing; .* overwrite the results of demo\.yaml"),
            ({"study": "mine", "seedz": [0]}, r"demo\.yaml \+ .*mine\.yaml: .*seedz"),
        ],
    )
    def test_a_mistake_names_the_files(self, folder, content, words):
        file = self.write(folder / "mine.yaml", extends="demo.yaml", **content)
        with pytest.raises(CrnetError, match=words):
            study.load([file])


def test_wrong_table_rows_are_refused(tmp_path):
    table = yaml.safe_load((ROOT / "configs/tables/table2.yaml").read_text())
    (tmp_path / "configs/tables").mkdir(parents=True)

    def load(**changes):
        (tmp_path / "configs/tables/table2.yaml").write_text(yaml.safe_dump({**table, **changes}))
        only = {"tables": ["table2"], "sheet": None, "probe": None}
        return study.load([ROOT / "configs/studies/demo.yaml"], only, tmp_path)

    assert len(load().tables["table2"].rows) == 3
    typo = {**table["rows"][0], "set": {"model": {"conditoin": False}}}
    with pytest.raises(CrnetError, match="did you mean 'condition'"):
        load(rows=[typo])
    with pytest.raises(CrnetError, match="used 2 times"):
        load(rows=[table["rows"][0]] * 2)
    with pytest.raises(CrnetError, match="unknown key; known: id, label, ticks, reported, shots, absent, set, paper"):
        load(rows=[{**table["rows"][0], "lable": "x"}])


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_resolves(file):
    """Also those of which the encoder's module is not here."""
    plan = study.load([file])
    assert plan.study.study == file.stem
    assert {cell.evaluation for cell in plan.cells} == set(plan.evaluations)


def test_equal_specifications_are_one_run():
    plan = study.load(overrides={"tables": ["table2", "table3"]})
    both = {c.evaluation for c in plan.cells if (c.table, c.row) == ("table2", "both")}
    base = {c.evaluation for c in plan.cells if (c.table, c.row) == ("table3", "base")}
    assert both == base
    folds, seeds = 4, len(DEMO["seeds"])
    assert len(plan.trainings) == 5 * folds * seeds  # condition, cross-reference, both, refinement, full
    assert len(plan.evaluations) == 6 * folds * seeds + 2 * folds  # and multi-scale; controls have one seed


def test_a_switch_changes_its_own_runs_only():
    tables = {"tables": ["table2", "table3"]}  # others set the number of refinements themselves
    before, after = study.load(overrides=tables), study.load(overrides={**tables, "evaluate": {"refinements": 3}})
    assert set(before.trainings) == set(after.trainings)
    assert not set(before.evaluations) & set(after.evaluations)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("paper-readings", {"path-dropout-half", "initial-normal"}),
        ("photos-readings", {"path-dropout-none", "initial-kaiming"}),
    ],
)
def test_every_reading_differs_from_the_full_model_in_one_switch(name, default):
    """``default``: rows that the study's own settings make the full model again."""
    own = {"tables": ["readings"], "encoders": {"layers23": None}} if name == "photos-readings" else {}
    plan = study.load([ROOT / f"configs/studies/{name}.yaml"], own)
    cells = [c for c in plan.cells if c.table == "readings" and (c.fold, c.seed) == (1, plan.study.seeds[0])]
    rows = {c.row: runs.flatten(plan.evaluations[c.evaluation]) for c in cells if c.row not in plan.study.controls}
    full = rows.pop("full")
    differs = {row: {key for key in spec if spec[key] != full[key]} for row, spec in rows.items()}
    assert {row for row, keys in differs.items() if not keys} == default
    assert all(len(keys) <= 1 for keys in differs.values())
    model = {"gate", "gate_tied", "mask_input", "cache", "path_dropout", "initialisation"}
    expected = {f"train.model.{key}" for key in model} | {"train.train.void", "train.train.novel_pixels"}
    expected |= {"train.encoder.layers"} if name == "paper-readings" else set()
    assert set().union(*differs.values()) == expected
    absent = {row: why for (table, row, _), why in plan.not_run.items() if table == "readings"}
    assert absent == ({"layers23": "the study has no encoder layers23"} if name == "photos-readings" else {})


def test_gates_are_table_2_three_times_and_its_own_runs_under_the_plain_one():
    tables = {"tables": ["table2", "gate"], "sheet": None}
    plan = study.load([ROOT / "configs/studies/paper-readings.yaml"], tables)
    models = {c.row: plan.evaluations[c.evaluation]["train"]["model"] for c in plan.cells if c.table == "gate"}
    for gate in ("plain", "residual", "masked"):
        models_of = [models[f"{modules}-{gate}"] for modules in ("cross-reference", "both")]
        assert [(m["gate"], m["condition"], m["cross_reference"]) for m in models_of] == [
            (gate, False, True),
            (gate, True, True),
        ]
    for row, own in TABLE2.items():
        of_table, of_gate = (
            {c.evaluation for c in plan.cells if (c.table, c.row) == place}
            for place in (("table2", row), ("gate", own))
        )
        assert of_table == of_gate != set()


def test_later_files_win_and_mappings_merge():
    merged = study.merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]})
    assert merged == {"a": {"b": 3, "c": 2}, "d": [2]}


def test_another_method_of_a_row_leaves_the_switches_of_its_table(tmp_path):
    """They are the other method's; a row of the same method keeps them."""
    rows = [{"id": "mine", "label": "Mine", "set": {"method": "crnet"}}]
    rows.append({"id": "other", "label": "Other", "set": {"method": "prototype", "model": {"scale": 5.0}}})
    table = {"title": "T", "source": "S", "set": {"model": {"condition": False}}, "rows": rows}
    (tmp_path / "configs/tables").mkdir(parents=True)
    (tmp_path / "configs/tables/table2.yaml").write_text(yaml.safe_dump(table))
    only = {"tables": ["table2"], "sheet": None, "probe": None}
    plan = study.load([ROOT / "configs/studies/demo.yaml"], only, tmp_path)
    models = {c.row: plan.evaluations[c.evaluation]["train"]["model"] for c in plan.cells}
    assert models["mine"]["condition"] is False
    assert models["other"]["scale"] == 5.0


def test_specifications_are_plain_json_with_every_setting():
    plan = study.load()
    for spec in plan.evaluations.values():
        assert resolve.name_of("x", spec) == resolve.name_of("x", yaml.safe_load(canonical(spec)))
    trained = next(iter(plan.trainings.values()))
    assert set(trained["model"]) == set(components("method")["crnet"].literals["SETTINGS"])


@pytest.mark.parametrize(("value", "default"), [(True, 1), (1, True)])
def test_booleans_are_not_numbers(value, default):
    with pytest.raises(CrnetError, match="is not a"):
        check({"a": value}, {"a": default}, {}, "x")


def test_the_workflow_imports_no_torch_and_training_no_workflow():
    imports = [line for line in (ROOT / "Snakefile").read_text().splitlines() if line.startswith("from crnet")]
    assert len(imports) > 4
    parsed = "\n".join([
        "import sys",
        "from pathlib import Path",
        *imports,
        "plan = studies.load([], {'study': 'demo'}, Path.cwd())",
        "jobs = [table_job(plan, Layout(plan), name) for name in plan.tables]",
        "paper_claims.claims_job(plan, Layout(plan), paper_claims.CLAIMS)",
        "assert not {'torch', 'mlflow', 'pandas', 'scipy'} & set(sys.modules), 'heavy import'",
    ])  # fmt: skip
    subprocess.run([sys.executable, "-c", parsed], check=True, cwd=ROOT)
    absent = ("snakemake", "mlflow", "pandas", "pydantic", "yaml", "scipy", "matplotlib", "pycocotools")
    bare = (
        f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
        "import crnet.training.loop, crnet.evaluation.evaluate, crnet.encoders.features, crnet.cli"
    )
    subprocess.run([sys.executable, "-c", bare], check=True, cwd=ROOT)
