"""What readers have to know of how finetuning was chosen: on what, whether no step was best, and ends of the grid."""

from collections import Counter
from collections.abc import Mapping, Sequence

from crnet.data.episodes import NOVEL

OWN = {
    "validation": "validation classes of its split, with the fold's own model, as the study runs no other fold",
    "base": "base classes, which the fold's own model knows already, as the study runs no other fold",
}
ENDS = {
    **{("edge_steps", "most"): "the most steps", ("edge_steps", "fewest"): "the fewest steps"},
    **{("edge_lr", "highest"): "the highest rate", ("edge_lr", "lowest"): "the lowest rate"},
}


def sentences(choices: Sequence[Mapping[str, str | float | int]]) -> list[str]:
    """One sentence a kind; none of what did not happen.

    Args:
        choices: Each choice once, with what ``crnet.config.tuning.CHOSEN`` names, as numbers or as text.
    """
    if not choices:
        return []
    kinds, whole = Counter(str(each["tried_on"]) for each in choices), len(choices)
    said = []
    if number := kinds[NOVEL]:
        said.append(
            f"{_of(number, whole)} steps and learning rate were chosen by trials of the other folds' models on the "
            "classes that those folds test, never on the fold's own."
        )
    said += [f"{_of(number, whole)} they were chosen on {OWN[kind]}." for kind, number in kinds.items() if kind in OWN]
    if untouched := sum(not int(each["steps"]) for each in choices):
        said.append(
            f"{_of(untouched, whole)} no step at all was best: finetuned cells are then those of the network as it was "
            "trained."
        )
    ends = Counter(text for each in choices for (key, end), text in ENDS.items() if each[key] == end)
    edged = sum(bool(each["edge_steps"] or each["edge_lr"]) for each in choices)
    if edged:
        named = ", ".join(f"{text} {number} times" if number > 1 else f"{text} once" for text, number in ends.items())
        said.append(
            f"{_of(edged, whole)} the best lies at an end of what was tried ({named}), and there may be better beyond."
        )
    return said


def _of(number: int, whole: int) -> str:
    if whole == 1:
        return "In the one choice of finetuning's settings,"
    return f"In {number} of {whole} choices of finetuning's settings,"
