"""How rows, encoders and runs are called wherever readers meet them: in tables, figures and on the page."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crnet.config import resolve, tuning
from crnet.config.resolve import Plan
from crnet.config.schema import Row
from crnet.config.settings import brings_weights, component

BACKBONE = "Backbone"  # the column of a table in which a row that is run names its encoder


def switches(row: Row, encoder: Mapping[str, Any] | None) -> dict[str, bool | str]:
    """The row's ticks; of its encoder the paper's word only where that is what runs, as ResNet-50 for ``resnet50``."""
    word = row.ticks.get(BACKBONE)
    if row.reported or encoder is None or not isinstance(word, str):
        return row.ticks
    same = re.sub(r"[\W_]", "", word).lower() == encoder["name"]
    ran = " ".join(filter(None, [encoder["name"], "+".join(map(str, _layers(encoder)))]))
    return row.ticks if same else row.ticks | {BACKBONE: ran}


def encoder_text(spec: Mapping[str, Any]) -> str:
    """How captions name an encoder, e.g. ``small (layer3, layer4)``, ``small (layer3, layer4), trained``."""
    layers, trained = _layers(spec), ", trained" if spec.get("lr_factor") else ""
    return f"{spec['name']} ({', '.join(map(str, layers))}){trained}" if layers else f"{spec['name']}{trained}"


def _layers(encoder: Mapping[str, Any]) -> Sequence[str | int]:
    """The layers whose maps it gives; none where a factory decides."""
    if encoder.get("layers") is None and not brings_weights(encoder["name"]):
        literals = component("encoder", encoder["name"], "encoders").literals
        return literals.get("DEFAULT_LAYERS") or literals["SETTINGS"]["layers"]
    return encoder.get("layers") or ()


def named_with(label: str, switches: Mapping[str, bool | str]) -> str:
    """A row's name where its switches do not stand beside it: ``Fusion (stripped)``."""
    texts = [value for value in switches.values() if isinstance(value, str)]
    return f"{label} ({', '.join(texts)})" if texts else label


def run_labels(plan: Plan) -> dict[str, list[str]]:
    """What readers call runs -> their names: by the first row of a table that a run, of whatever kind, is behind."""
    labels: dict[str, list[str]] = {}
    seen: set[str] = set()
    for cell in plan.cells:
        table = plan.tables[cell.table]
        row = next((row for row in table.rows if row.id == cell.row), None)
        if row is None:
            label = control_label(cell.row)
        else:
            ticks = switches(row, plan.study.encoders.get(resolve.role(table, row)))
            label = f"{table_name(cell.table)}: {named_with(row.label, ticks)}"
        evaluation = plan.evaluations[cell.evaluation]
        names = [resolve.training_name(evaluation["train"]), cell.evaluation]
        if choice := tuning.choice_spec(evaluation):
            names += [tuning.choice_name(choice), tuning.trials_name(tuning.own_trials(choice))]
        for name in names:
            if name not in seen:
                seen.add(name)
                labels.setdefault(label, []).append(name)
    return labels


def table_name(table: str) -> str:
    """``table2`` -> ``Table 2``, ``refinement-steps`` -> ``Refinement steps``."""
    number = table.removeprefix("table")
    return f"Table {number}" if number.isdigit() else table.replace("-", " ").capitalize()


def table_heading(name: str, title: str) -> str:
    """ "Table 2: Ablation ..." of ``table2``, the title alone of a table that is not the paper's."""
    number = name.removeprefix("table")
    return f"Table {number}: {title}" if number.isdigit() else title


def control_label(control: str) -> str:
    return control.replace("-", " ").capitalize()
