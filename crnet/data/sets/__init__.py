"""The data sets, one file each: classes, folds, where the photos come from; two of them are generated."""

import importlib
from types import ModuleType


def module(name: str) -> ModuleType:
    """The file of the data set called ``name``, which was checked when the study was read."""
    return importlib.import_module(f"crnet.data.sets.{name.replace('-', '_')}")
