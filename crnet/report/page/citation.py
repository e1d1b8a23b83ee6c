"""How to cite a study: the paper for its method, and what made the numbers of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from crnet import __version__

PAPER = """
@inproceedings{liu2020crnet,
  title     = {{CRNet}: Cross-Reference Networks for Few-Shot Segmentation},
  author    = {Liu, Weide and Zhang, Chi and Lin, Guosheng and Liu, Fayao},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {4165--4173},
  year      = {2020}
}
""".strip()


def render_citation(job: Mapping[str, Any], lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Paragraphs from the page's job and the rows of ``runs.csv``."""
    known = {line.get("commit", "") for line in lines} - {"", "unknown"}
    code = f" at commit `{known.pop()[:12]}`" if len(known) == 1 else ""
    caution = " They are no results of the paper's own data." if job["orientation_only"] else ""
    return [
        "The method is the paper's:",
        f"```bibtex\n{PAPER}\n```",
        f"The numbers are not: they are from the study `{job['study']}` of `crnet` {__version__}, a re-implementation"
        f"{code}. Name both, the void convention and the folds.{caution}",
    ]
