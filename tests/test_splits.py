"""Roles of COCO's 80 classes, and folds that follow a data set's settings."""

import pytest

from crnet.config.settings import component
from crnet.data.sets import coco2014
from crnet.data.splits import of_eighty
from crnet.errors import CrnetError


def test_splits_of_eighty_classes():
    by_name = {name: coco2014.splits({"split": name}) for name in ("40-20-20", "interleaved", "contiguous")}
    ours = by_name["40-20-20"]
    assert (ours.folds, ours.held_out) == ((tuple(range(61, 81)),), (tuple(range(41, 61)),))
    assert (ours.classes[60], ours.classes[-1], len(ours.classes)) == ("dining table", "toothbrush", 80)
    assert by_name["interleaved"].folds[1][:3] == (2, 6, 10)
    assert by_name["contiguous"].folds[3] == tuple(range(61, 81))
    for name in ("interleaved", "contiguous"):
        assert sorted(c for fold in by_name[name].folds for c in fold) == list(range(1, 81))
        assert by_name[name].held_out == ((), (), (), ())
    assert len({splits.digest for splits in by_name.values()}) == 3
    assert ours.note == (
        "40/20/20 split by sorted category ids (ours; the paper's classes were never published), digest 6175c750"
    )


def test_an_unknown_split_is_named():
    with pytest.raises(CrnetError, match="unknown split '60-20': choose from 40-20-20, contiguous, interleaved"):
        of_eighty(coco2014.CLASSES, "60-20")
    with pytest.raises(CrnetError, match=r"coco2014\.split: '60-20' is not one of '40-20-20', 'contiguous'"):
        component("dataset", "coco2014", "test").class_names({"name": "coco2014", "split": "60-20"})


def test_folds_follow_the_settings():
    known = component("dataset", "coco2014", "test")
    assert list(known.class_names({})) == [0]
    assert known.class_names({"name": "coco2014", "split": "interleaved"})[3][:2] == ["motorcycle", "truck"]
    assert list(component("dataset", "pascal5i", "test").class_names({"name": "pascal5i"})) == [0, 1, 2, 3]
