"""What is known of the recorded data sets fits together, and with what was published."""

from __future__ import annotations

import pytest

from ptsr_edge.core.config import LABELS
from ptsr_edge.data.catalog import (
    COMPOSITE,
    COMPOSITE_FOLDERS,
    NEGATIVE,
    POSITIVE,
    RECORDED,
    SURPRISE,
)


def test_classes_are_those_of_the_labels():
    assert (LABELS[NEGATIVE], LABELS[POSITIVE], LABELS[SURPRISE]) == ("negative", "positive", "surprise")


@pytest.mark.parametrize("known", RECORDED.values(), ids=list(RECORDED))
def test_a_set_has_all_classes_and_drops_none_of_them(known):
    assert set(known.classes.values()) == {0, 1, 2}
    assert not set(known.classes) & set(known.dropped)
    assert all(word == word.casefold() for word in (*known.classes, *known.dropped))


@pytest.mark.parametrize("name", COMPOSITE)
def test_published_classes_add_up(name):
    published = RECORDED[name].published
    assert sum(published.classes) == published.clips


def test_published_counts_of_the_composite():
    # See et al., MEGC 2019, table 1: 442 clips of 68 subjects; 250 negative, 109 positive, 83 surprise.
    published = [RECORDED[name].published for name in COMPOSITE]
    assert sum(part.clips for part in published) == 442
    assert sum(part.subjects for part in published) == 68
    assert [sum(part.classes[label] for part in published) for label in range(3)] == [250, 109, 83]


def test_names_of_folders_in_the_composite_are_each_one_members():
    names = [name for member in COMPOSITE for name in COMPOSITE_FOLDERS[member]]
    assert len(set(names)) == len(names)
