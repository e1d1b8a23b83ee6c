"""How fast a device is by stages: what ``crnet bench --json`` wrote and ``configs/rates`` keeps."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crnet.errors import CrnetError
from crnet.planning.stages import START, Stage
from crnet.runtime.files import DamagedFile, read_json
from crnet.runtime.gpu import gpu_name
from crnet.runtime.provenance import cpu_name

FOLDER = Path("configs/rates")


@dataclass
class Rates:
    """Of one device, from one file or from several of other sizes.

    Attributes:
        kind: "cpu" or "cuda".
        threads: CPU threads that were measured.
        measured: Stage -> its measurements (multiply-adds of a unit, seconds of a unit).
    """

    device: str
    kind: str
    threads: int
    files: list[Path]
    measured: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def seconds(self, stages: Iterable[Stage], threads: int) -> float:
        """Of work on ``threads`` CPU threads; a stage that was not measured counts nothing, see ``missing``."""
        share = self.threads / threads if self.kind == "cpu" else 1.0
        return sum(
            stage.units * self._each(stage) * (1.0 if stage.name == START else share)
            for stage in stages
            if stage.name in self.measured
        )

    def missing(self, stages: Iterable[Stage]) -> set[str]:
        return {stage.name for stage in stages} - set(self.measured)

    def _each(self, stage: Stage) -> float:
        """Seconds of a unit: of the measurement nearest in multiply-adds, scaled by them."""
        if stage.name == START:
            return self.measured[START][0][1]
        nearest = min(self.measured[stage.name], key=lambda one: abs(math.log(one[0] / max(1.0, stage.multiply_adds))))
        return nearest[1] * stage.multiply_adds / nearest[0]


def load(files: Sequence[Path]) -> Rates:
    """Read what was measured of one device; raises CrnetError if a file is absent, is no such file, or of another."""
    rates = None
    for path in files:
        one = _read(path)
        if rates is None:
            rates = one
        elif (one.device, one.kind, one.threads) != (rates.device, rates.kind, rates.threads):
            raise CrnetError(f"{path}: is of another device or number of threads than {files[0]}; give one of them.")
        else:
            rates.files.append(path)
            for name, measured in one.measured.items():
                rates.measured.setdefault(name, []).extend(measured)
    return rates


def _read(path: Path) -> Rates:
    if not path.is_file():
        raise CrnetError(f"{path}: is absent; `crnet bench --json {path}` makes it on the machine to be planned for.")
    try:
        content: Any = read_json(path)
        origin = content["provenance"]
        kind = "cuda" if origin["device"].startswith("cuda") else "cpu"
        rates = Rates(origin["gpu" if kind == "cuda" else "cpu"], kind, int(origin["threads"]), [path])
        for stage in content["stages"]:
            seconds, operations = float(stage["crnet"]["seconds"]), stage["crnet"]["operations"]
            if operations or stage["stage"] == START:  # of the others nothing is scaled
                if not (0 < seconds < math.inf and (operations or 1) > 0):
                    raise CrnetError(f"{path}: {stage['stage']}: seconds and operations must be above 0.")
                rates.measured.setdefault(stage["stage"], []).append(((operations or 0) / 2, seconds))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = error.__cause__ if isinstance(error, DamagedFile) else repr(error)
        raise CrnetError(
            f"{path}: is not what `crnet bench --json` writes ({reason}); give one that it wrote."
        ) from error
    return rates


def of_this_machine(kind: str, folder: Path) -> list[Path]:
    """The rates files of the machine's CPU or GPU in ``folder``; those of the first number of threads."""
    name = gpu_name() if kind == "cuda" else cpu_name()
    found = [rates for path in sorted(folder.glob("*.json")) if (rates := _read(path)).kind == kind]
    found = [rates for rates in found if rates.device == name]
    return [rates.files[0] for rates in found if rates.threads == found[0].threads]
