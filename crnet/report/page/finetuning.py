"""What finetuning did: the settings that were chosen, on what, and the loss on the supports before and after."""

from collections.abc import Mapping, Sequence
from statistics import mean

from crnet.config.tuning import CHOSEN
from crnet.report.choices import sentences
from crnet.report.runs import SECOND_READING, Labels, label_of
from crnet.report.tables.markdown import grid


def render_finetuning(lines: Sequence[Mapping[str, str]], labels: Labels) -> list[str]:
    """Paragraphs from the rows of ``runs.csv``: one line a finetuned model; none where nothing was finetuned.

    ``labels``: what runs are called, as ``crnet.config.study.page_job`` has it.

    A loss that hardly falls means too few steps; one near zero whose queries do not gain means overfitting.
    """
    tuned = {line.get("train_run", ""): line for line in lines if line["kind"] == "choice"}
    finetuned = [line for line in lines if line.get("support_loss_before") and line.get("train_run") in tuned]
    evaluated = [line for line in finetuned if not line["run"].endswith(SECOND_READING)]
    if not evaluated:
        return []
    label = label_of(labels)
    rows = [["Model", "Fold", "Seed", "Shots", "Rate", "Steps", "mIoU of the trials", "Loss on the supports"]]
    for line in evaluated:
        trial = tuned[line["train_run"]]
        settings = [f"{float(line['choice.lr']):g}", line["choice.steps"]]
        miou = f"{float(trial['miou_untouched']):.1f} → {float(trial['miou_ignore']):.1f}"
        loss = f"{float(line['support_loss_before']):.3f} → {float(line['support_loss_after']):.3f}"
        rows.append([label(line), line["fold"], line["seed"], line["shots"], *settings, miou, loss])
    chosen = [tuned[name] for name in dict.fromkeys(line["train_run"] for line in evaluated)]
    falls = mean(float(e["support_loss_after"]) / float(e["support_loss_before"]) for e in evaluated)
    return [
        f"Finetuning brought the loss on the supports to {100 * falls:.0f} % of what it was, in the mean of all lines.",
        " ".join(sentences([{key: line[f"choice.{key}"] for key in CHOSEN} for line in chosen])),
        grid(rows, ["l", "r", "r", "r", "r", "r", "r", "r"]),
        "Rate and steps: the best of the trials, by mIoU over their classes with void ignored, given without and with "
        "finetuning; 0 steps: none was better than any. All trials are in the folder [finetune](finetune). Loss: "
        "cross-entropy of both branches over the supports, without dropout, before and after, mean over test episodes.",
    ]
