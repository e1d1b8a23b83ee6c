"""The job behind a probe: test episodes as they are, and with what a module reads swapped for another class's.

See ``crnet.config.probe`` for what is swapped and why. All readings of an episode come from one process, in the same
batches, so that they differ by the swap alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from crnet.config import sources
from crnet.config.probe import GATE, UNTOUCHED, swaps
from crnet.cost import memory
from crnet.data.episodes import Episode, Other, draw_others
from crnet.evaluation.evaluate import EPISODE_COLUMNS, digests_of, effort, read_table
from crnet.evaluation.predict import Key, Prediction, Predictor
from crnet.methods import Pairs
from crnet.metrics.iou import QUERY_COLUMNS, episode_counts
from crnet.runtime import provenance
from crnet.runtime.files import sha256_file, write_csv, write_json
from crnet.runtime.limits import NONE, Limits
from crnet.runtime.machine import configure
from crnet.runtime.saved_rows import SavedRows

SWAP_COLUMNS = ("swap", "other_class", "other_support")


class SwappingPredictor(Predictor):
    """A predictor that takes from another class's support what one module reads.

    Attributes:
        others: Of each episode by its seed and number.
        swap: "gate", "category" or "untouched".
    """

    others: dict[tuple[int, int], Other]
    swap = UNTOUCHED

    def keys(self, episode: Episode, scale: float) -> list[Key]:
        """The other support's too, whatever is swapped, so that all readings are of the same encoded photos."""
        other = self._other(episode)
        whole, masked = (other.photo, None, scale), (other.photo, other.class_id, scale)
        return [*super().keys(episode, scale), whole, *([masked] if self.method.needs_masked else [])]

    def _other(self, episode: Episode) -> Other:
        return self.others[episode.seed, episode.number]

    def _pairs(self, episodes: list[Episode], scale: float, shot: int) -> Pairs:
        own = super()._pairs(episodes, scale, shot)
        if self.swap == UNTOUCHED:
            return own
        others = [(episode, self._other(episode)) for episode in episodes]
        swapped = [replace(episode, class_id=o.class_id, supports=(o.photo,)) for episode, o in others]
        other = super()._pairs(swapped, scale, 0)
        return replace(own, gate=other) if self.swap == GATE else replace(other, gate=own)


def probe(
    spec: dict,
    data: Path,
    episodes: Path,
    encoder: Path | None,
    weights: Path,
    state: Path | None,
    out: Path,
    device: str,
    threads: int,
    features: Sequence[Path] = (),
    limits: Limits = NONE,
) -> None:
    """Predict the probe's episodes in every reading and write ``counts.csv`` and ``probe.json`` into ``out``.

    ``counts.csv`` has a line for each episode and reading, with the class and photo that were put in.

    Args:
        state: Where a killed run leaves the rows it has, and goes on from.
        features, limits: See :class:`crnet.evaluation.predict.Predictor`.

    Raises:
        CrnetError: Data, episodes, encoder or weights do not belong to the specification, an episode has no support of
            another class, or there is too little memory.
        Preempted: SIGTERM arrived; the rows are saved.
    """
    configure(device, threads)
    origin = provenance.record(device, threads) | sources.recorded(spec["train"])
    predictor = SwappingPredictor(spec, data, encoder, weights, device, features, limits)
    index, table = predictor.index, read_table(episodes, predictor.index, spec["train"]["fold"])
    asked = table.episodes[: spec["probe"]["episodes"]]
    others = draw_others(table, index, len(asked))
    predictor.others = {(e.seed, e.number): other for e, other in zip(asked, others, strict=True)}
    memory.check(memory.evaluation(spec, limits, predictor.named(asked), bool(features)), device, out.name)
    digests = digests_of(predictor, weights, episodes)
    readings = (UNTOUCHED, *swaps(spec["train"]))
    done = SavedRows(state, [spec, digests], "episodes", predictor.together, before_save=predictor.encoder.verify)
    remaining = list(asked[len(done.rows) :])
    predictions = _readings(predictor, remaining, readings)
    with done:
        for read in tqdm(predictions, total=len(asked), initial=len(done.rows), unit="episode", mininterval=5):
            episode = read[0].episode
            mask = index.class_mask(episode.query, episode.class_id)
            done.add([list(episode_counts(prediction.query, mask)) for prediction in read])
    predictor.encoder.verify()
    lines = []
    for episode, other, counts in zip(asked, others, done.rows, strict=True):
        about = (episode.seed, episode.number, episode.class_id, episode.query)
        for swap, numbers in zip(readings, counts, strict=True):
            put_in = ("", "") if swap == UNTOUCHED else (other.class_id, other.photo)
            lines.append((*about, swap, *put_in, *numbers))
    write_csv(out / "counts.csv", (*EPISODE_COLUMNS, *SWAP_COLUMNS, *QUERY_COLUMNS), lines)
    write_json(out / "probe.json", {
        "run": out.name,
        "spec": spec,
        **origin,
        **effort(done, predictor),
        **digests,
        "counts_sha256": sha256_file(out / "counts.csv"),
    })  # fmt: skip
    done.remove()


def _readings(
    predictor: SwappingPredictor, episodes: list[Episode], readings: Sequence[str]
) -> Iterator[tuple[Prediction, ...]]:
    """Of each episode its prediction in every reading."""
    for start in range(0, len(episodes), predictor.together):
        chunk, read = episodes[start : start + predictor.together], []
        for predictor.swap in readings:
            read.append(list(predictor.fused(chunk)))
        yield from zip(*read, strict=True)
