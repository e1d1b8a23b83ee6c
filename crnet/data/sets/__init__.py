"""The data sets, one file each: classes, folds, where the photos come from; two of them are generated."""

import importlib
from types import ModuleType


def opened(spec: dict) -> tuple[ModuleType, dict]:
    """The file of the data set ``{"name": ..., settings...}``, and its settings with those that are not given.

    A file declares ``SETTINGS``, ``splits(settings)`` and ``prepare(archives, extracted, out, settings)``, whose
    arguments are those of ``crnet.data.prepare``; with archives also ``ARCHIVES``, of which those in ``IN_PLACE`` are
    read where they are and not extracted, and ``check(archives, extracted, settings, report)``, which reports all that
    ``prepare`` would stop at. The name of one from outside the package is ``package.module:prepare``.
    """
    given = {key: value for key, value in spec.items() if key != "name"}
    module, outside, _ = spec["name"].partition(":")
    file = importlib.import_module(module if outside else f"crnet.data.sets.{module.replace('-', '_')}")
    return file, {**file.SETTINGS, **given}
