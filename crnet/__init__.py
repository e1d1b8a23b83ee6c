"""CRNet (Liu et al., CVPR 2020) as a reproducible benchmark and ablation suite for few-shot segmentation."""

from typing import Any

__version__ = "0.1.0"


def load(run: Any, **where: Any) -> Any:
    """The trained network of a run, for photos of your own: ``crnet.load(run).segment(supports, queries)``.

    Args:
        run: ``results/<study>/evaluate/<name>``, or a folder that ``crnet export`` wrote.
        where: See :func:`crnet.yours.load.load`.
    """
    from crnet.yours.load import load as run_load  # imports torch

    return run_load(run, **where)
