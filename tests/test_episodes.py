"""Test episodes: deterministic, distinct, nested over shots, and tied to their data by digests."""

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from crnet.data import episodes
from crnet.data.index import Index, Pair, Photo
from crnet.errors import CrnetError


def make_index(pools: dict[int, int]) -> Index:
    """Two folds of two classes; ``pools`` gives the test photos of each class id; class 3 also trains."""
    pairs = [Pair(f"v{c}_{number:03d}", c) for c, count in pools.items() for number in range(count)]
    pairs += [Pair(f"t{number:03d}", 3) for number in range(9)]
    photos = {}
    for pair in pairs:
        split = "val" if pair.image[0] == "v" else "train"
        photos[pair.image] = Photo(split, Path(), Path(), 0, 1, 1, frozenset({pair.class_id}))
    classes = {"classes": ["cat", "dog", "cow", "car"], "folds": [[1, 2], [3, 4]], "held_out": [[], []]}
    description = {"name": "tiny", **classes, "split_note": None, "digest": "0" * 64, "subset": None}
    return Index(description, photos, pairs)


def test_supports_are_distinct_test_photos_of_the_class():
    table = episodes.draw(make_index({1: 6, 2: 8, 3: 9}), 0, 200, [0, 1], 5)
    assert [(e.seed, e.number) for e in table.episodes] == [(s, n) for s in (0, 1) for n in range(200)]
    for episode in table.episodes:
        photos = {episode.query, *episode.supports}
        assert len(photos) == 6
        assert all(photo.startswith(f"v{episode.class_id}_") for photo in photos)


def test_classes_and_queries_are_uniform_whatever_the_pools():
    table = episodes.draw(make_index({1: 4, 2: 40}), 0, 4000, [0], 1)
    classes = Counter(e.class_id for e in table.episodes)
    assert abs(classes[1] - 2000) < 160  # 5 standard deviations of a fair coin
    queries = Counter(e.query for e in table.episodes if e.class_id == 1)
    assert len(queries) == 4
    assert max(abs(count - classes[1] / 4) for count in queries.values()) < 100


def test_each_class_is_drawn_for_itself():
    """Taken in turn, no class would follow itself; drawn, one of two does half of the time."""
    classes = [e.class_id for e in episodes.draw(make_index({1: 6, 2: 8}), 0, 4000, [0], 1).episodes]
    same = sum(first == second for first, second in pairwise(classes))
    assert abs(same - 2000) < 160


def test_fewer_shots_are_the_first_supports_of_more():
    index = make_index({1: 11, 2: 30})
    one, five, ten = (episodes.draw(index, 0, 50, [3, 4], shots).episodes for shots in (1, 5, 10))
    for first, second, third in zip(one, five, ten, strict=True):
        assert first.query == second.query == third.query
        assert first.supports == third.supports[:1]
        assert second.supports == third.supports[:5]


def test_seeds_and_pair_order():
    index = make_index({1: 6, 2: 8})
    table = episodes.draw(index, 0, 20, [0, 1], 2)
    assert episodes.draw(index, 0, 20, [1], 2).episodes == table.episodes[20:]
    assert [e.query for e in table.episodes[:20]] != [e.query for e in table.episodes[20:]]
    shuffled = make_index({2: 8, 1: 6})
    assert episodes.draw(shuffled, 0, 20, [0, 1], 2) == table


def test_too_few_photos():
    index = make_index({1: 3, 2: 8})
    with pytest.raises(CrnetError, match=r"need 6 a class: cat \(3\); use fewer shots, or"):
        episodes.draw(index, 0, 10, [0], 5)
    table = episodes.draw(index, 0, 10, [0], 5, "leave out")
    assert table.left_out == {"cat": 3}
    assert {e.class_id for e in table.episodes} == {2}
    with pytest.raises(CrnetError, match=r"cat \(3\), dog \(8\); use fewer shots\.$"):
        episodes.draw(index, 0, 10, [0], 8, "leave out")
    assert episodes.draw(index, 0, 10, [0], 2, "leave out").left_out == {}


@pytest.mark.parametrize("change", [{"count": 0}, {"shots": 0}, {"seeds": []}, {"seeds": [1, 1]}, {"too_few": "skip"}])
def test_what_cannot_be_asked_for(change):
    with pytest.raises(CrnetError, match="error, leave out" if "too_few" in change else "distinct seeds"):
        episodes.draw(make_index({1: 6, 2: 8}), **({"fold": 0, "count": 5, "seeds": [0], "shots": 1} | change))


def test_written_table_reads_back_and_has_the_stated_digest(tmp_path):
    index = make_index({1: 3, 2: 8})
    table = episodes.draw(index, 0, 10, [0, 7], 5, "leave out")
    digest = episodes.write(tmp_path / "fold0.csv", table)
    assert episodes.read(tmp_path / "fold0.csv", index) == table
    header = (tmp_path / "fold0.csv").read_text().splitlines()[0]
    assert header == "episode_seed,episode,class,query,support_1,support_2,support_3,support_4,support_5"
    assert digest == "9f70024c4bff1dd5c66f581421787b2a274ffe055d0c8811e72f1de1ded4be9c"


def test_changed_table_or_other_data_is_refused(tmp_path):
    index = make_index({1: 6, 2: 8})
    path = tmp_path / "fold0.csv"
    table = episodes.draw(index, 0, 10, [0], 1)
    episodes.write(path, dataclasses.replace(table, dataset_digest="1" * 64))
    with pytest.raises(CrnetError, match="drawn from other data"):
        episodes.read(path, index)
    episodes.write(path, table)
    path.write_text(path.read_text().replace("v1_000", "v1_001"))
    with pytest.raises(CrnetError, match="changed after it was drawn"):
        episodes.read(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(CrnetError, match=r"fold0\.json is absent"):
        episodes.read(path)
