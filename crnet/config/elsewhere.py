"""Rows of a table that another framework predicted: ``crnet score`` counted them, and a table finds the counts here.

They lie in ``results/<study>/elsewhere/<row>/<table>-<k>shot-f<fold>-s<seed>``, as ``counts.csv`` and ``score.json``.
They are no part of a study's plan: nothing runs for them, and without the folder the tables are as before.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crnet.config.resolve import Plan
from crnet.errors import CrnetError
from crnet.runtime.files import DamagedFile, read_mapping, sha256_file, sha256_text

FOLDER, ABOUT, COUNTS = "elsewhere", "score.json", "counts.csv"
MARK = "predicted elsewhere"
STALE = "was scored on other episodes than the study's now; score its predictions again"
KEYS = ("label", "row", "table", "shots", "fold", "seed", "episodes", "predictions_digest", "counts_sha256")


def row_id(label: str) -> str:
    """The row's name in files and tables, of at most 40 letters a-z, digits and hyphens; its own for every label."""
    words = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:21].strip("-")
    return "-".join(filter(None, [FOLDER, words, sha256_text(label)[:8]]))


def folder(results: str | Path, row: str, table: str, shots: int, fold: int, seed: int) -> Path:
    return Path(results) / FOLDER / row / f"{table}-{shots}shot-f{fold}-s{seed}"


def stored(results: str | Path, table: str) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and ``score.json`` of all that was scored for a table.

    Raises:
        DamagedFile: One of them is none any more, or its counts were changed since.
    """
    found = []
    for file in sorted(Path(results).glob(f"{FOLDER}/*/{table}-*shot-f*-s*/{ABOUT}")):
        about = read_mapping(file)
        if lacking := [key for key in KEYS if key not in about]:
            raise DamagedFile(file, f"lacks {lacking[0]}")
        counts = file.with_name(COUNTS)
        if not counts.is_file() or sha256_file(counts) != about["counts_sha256"]:
            raise DamagedFile(counts, "is not what was scored (its digest differs)")
        found.append((file.parent, about))
    return found


def rows(plan: Plan, results: str | Path, table: str, episodes: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """Rows as ``crnet.config.study.table_job`` has them.

    Args:
        episodes: (shots, fold) -> name of the episodes that this table is scored on now. What was scored on others is
            not shown but said.

    Raises:
        CrnetError: two labels share a row's folder.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, about in stored(results, table):
        label, row = about["label"], about["row"]
        entry = found.setdefault(row, {"label": label, "cells": [], "digests": {}, "stale": {}})
        if entry["label"] != label or row != row_id(label):
            raise CrnetError(f"{place / ABOUT}: is of {label!r}, whose folder is {row_id(label)}; move it there.")
        where = about["shots"], about["fold"]
        if where not in episodes:
            continue
        if episodes[where] != about["episodes"]:
            entry["stale"][f"{about['shots']}-shot"] = STALE
            continue
        counts = str(place / COUNTS)
        entry["cells"].append({key: about[key] for key in ("shots", "fold", "seed")} | {"counts": counts})
        entry["digests"][about["predictions_digest"][:8]] = None
    return [_row(row, entry) for row, entry in found.items() if entry["cells"] or entry["stale"]]


def _row(row: str, entry: dict[str, Any]) -> dict[str, Any]:
    digests = ", ".join(entry["digests"])
    counted = {f"{cell['shots']}-shot" for cell in entry["cells"]}
    return {
        "id": row,
        "label": f"{entry['label']} ({', '.join(filter(None, [MARK, digests]))})",
        "elsewhere": True,
        "switches": [],
        "control": False,
        "reported": False,
        "absent": {shots: why for shots, why in entry["stale"].items() if shots not in counted},
        "paper": {},
        "cells": entry["cells"],
    }


def note(rows: list[dict[str, Any]]) -> list[str]:
    """The paragraph below a table that has such rows."""
    if not rows:
        return []
    return [
        "Predicted elsewhere: another program made these masks on the same episodes; crnet counted their pixels and "
        "knows nothing else of them. The digits are the beginning of the SHA-256 over the folder of masks."
    ]
