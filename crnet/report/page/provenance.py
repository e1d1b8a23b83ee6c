"""Where a study's numbers come from: code, versions, machine, data, episodes, as its ``runs.csv`` records them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from crnet import __version__
from crnet.config import sources
from crnet.config.settings import components, is_timm
from crnet.data.archives.archives import OFFICIAL
from crnet.report.runs import SECOND_READING
from crnet.report.tables.markdown import grid

Line = Mapping[str, str]
_DIGITS = 16  # of a digest: enough to compare by eye


def render_provenance(lines: Sequence[Line], now: Mapping[str, Mapping[str, str]] = MappingProxyType({})) -> list[str]:
    """Markdown paragraphs: one line a fact; what differs between runs is listed with the number of runs.

    Args:
        now: Digests of the sources as they are, of ``crnet.config.sources``; runs of others are warned of first.
    """
    runs = [line for line in lines if not line["run"].endswith(SECOND_READING)]
    facts: list[tuple[str, Callable[[Line], str]]] = [
        ("Commit", _commit),
        *((name.capitalize(), _column(f"versions.{name}")) for name in ("python", "torch", "torchvision")),
        ("NumPy", _column("versions.numpy")),
        ("Platform", _column("platform")),
        ("Processor", _column("cpu")),
        ("GPU", _column("gpu")),
        ("Device and threads", _device),
        ("Precision", _column("dtype")),
        ("Data set", lambda line: _named(line, "dataset.name", "dataset_digest")),
        ("Data are", _column("subset")),
        ("Split", _column("split_note")),
        ("Encoder", lambda line: _named(line, "encoder.name", "encoder_digest")),
        ("Encoder's weights", _weights),
    ]
    rows = [["crnet", f"{__version__} (wrote this page)"]]
    rows += [[name, text] for name, of in facts if (text := _counted(runs, of))]
    started = sorted(line["started"][:10] for line in runs if line.get("started"))
    if started:
        rows.append(["Run", started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"])
    rows += [["Episodes", f"{name}: {text}"] for name, text in _episodes(runs).items()]
    used = ({**line, "encoder": line.get("encoder.name", "")} for line in runs)
    return [
        *(f"**Warning**: {text}." for text in sources.changed(used, now)),
        grid([["", ""], *rows], ["l", "l"]),
        f"Digests are the first {_DIGITS} digits of a SHA-256; [runs.csv](runs.csv) has them whole, and every setting.",
    ]


def _column(name: str) -> Callable[[Line], str]:
    return lambda line: line.get(name, "")


def _commit(line: Line) -> str:
    commit = line.get("commit", "")
    changed = " with uncommitted changes" if line.get("dirty") == "true" else ""
    return f"`{commit[:12]}`{changed}" if commit not in ("", "unknown") else commit


def _device(line: Line) -> str:
    device, threads = line.get("device", ""), line.get("threads", "")
    return f"{device}, {threads} thread{'' if threads == '1' else 's'}" if device and threads else device


def _named(line: Line, name: str, digest: str) -> str:
    known = line.get(digest, "")
    return f"{line.get(name, '')} `{known[:_DIGITS]}`" if known else line.get(name, "")


def _weights(line: Line) -> str:
    """Where the encoder's weights come from, if not from its own pre-training."""
    module, factory, _ = line.get("encoder.name", "").partition(":")
    archive = line.get("encoder.archive", "")
    if not factory:
        return _archive(archive) if archive else ""
    if is_timm(line["encoder.name"]):
        weights, digest = line.get("encoder.weights", ""), line.get("encoder.sha256", "")
        return f"{weights}, by timm {line.get('timm_version', '')}" + (f", sha256 `{digest}`" if digest else "")
    text = f"brought by the module `{module}`, which is no part of crnet"
    shipped = components("encoder").get(module.replace("_", "-"))
    if shipped and (archive := shipped.literals["SETTINGS"].get("archive")):
        text += f"; crnet's own encoder `{shipped.name}` takes {_archive(archive)}"
    return text


def _archive(name: str) -> str:
    known = OFFICIAL[name]
    return f"[{name}]({known.url}), {known.checksum.replace(':', ' ')}"


def _counted(runs: Sequence[Line], of: Callable[[Line], str]) -> str:
    """The runs' common value, or every value with its number of runs, the most frequent first."""
    counts = Counter(filter(None, map(of, runs)))
    if list(counts.values()) == [len(runs)]:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{value} ({count} run{'' if count == 1 else 's'})" for value, count in ordered)


def _episodes(runs: Sequence[Line]) -> dict[str, str]:
    """By data set and number of episodes: the digest of each fold's."""
    found: dict[str, dict[int, dict[str, None]]] = {}  # the digests in their order
    for line in runs:
        if digest := line.get("episodes_digest"):
            count = f", {line['episodes.count']} a fold and seed" if line.get("episodes.count") else ""
            shots = f", {line['episodes.shots']} supports" if line.get("episodes.shots", "1") != "1" else ""
            folds = found.setdefault(f"{line['dataset.name']}{count}{shots}", {})
            folds.setdefault(int(line["fold"]), {})[digest[:_DIGITS]] = None
    return {
        name: ", ".join(f"fold {fold} `{'`, `'.join(digests)}`" for fold, digests in sorted(folds.items()))
        for name, folds in sorted(found.items())
    }
