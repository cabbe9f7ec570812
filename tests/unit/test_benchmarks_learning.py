"""The learning experiment: its data, arithmetic and plot; training is tested elsewhere."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.learning import Standing, feedback
from benchmarks.learning_data import SUBJECT, openings, without
from benchmarks.learning_plot import charts_of, svg
from trainer.corpus import Document, marks

SENTENCES = [
    f"Graph {number} has many nodes and every one of them is joined to some others by an edge that "
    f"carries a weight of {number} units, so that the whole of it may be walked from end to end "
    "without a pause, as the proof of the theorem shows in more detail than anybody may want to "
    "read on a sunny day when there are better things to do outside with friends."
    for number in range(12)
]


def document(*paragraphs: str, source: str = SUBJECT[0] + "a.py") -> Document:
    return Document(text="\n\n".join(paragraphs), source=source, group="Package docstrings")


def test_openings_are_taken_at_several_places_in_an_order_of_their_own() -> None:
    one, two = document(*SENTENCES[:8]), document(*SENTENCES[4:])
    found = openings([one, two])
    assert len(found) > 1
    assert found == openings([two, one])
    for prompt, truth in found:
        assert truth.startswith(" ")
        assert any((prompt + truth).startswith(text[:40]) for text in SENTENCES)


def test_what_is_measured_is_in_nothing_that_is_trained_on() -> None:
    guarded = marks([document(SENTENCES[0])])
    kept = without(guarded, [document("Something else entirely. " * 8, SENTENCES[0])])
    assert [one.text for one in kept] == [("Something else entirely. " * 8)]
    assert without(guarded, [document(SENTENCES[0])]) == []


def test_people_prefer_what_is_nearer_to_the_truth_and_mend_the_worst() -> None:
    truth = ("The graph", " has many nodes and edges")
    answers = [" is blue today", " has many nodes", " has many nodes and edges", " has one"]
    said = list(feedback(truth, answers, version="1", name="n", person="p"))
    assert [one.edited_text for one in said] == [truth[1], None]
    assert said[0].pairs[0].preferred == answers[2]
    assert said[0].output == answers[0]
    assert list(feedback(truth, [" same", " same"], version="1", name="n", person="p")) == []


def test_a_standing_is_told_beside_the_first_ones() -> None:
    first = Standing(logps=[-8.0, -8.0], scores=[0.1, 0.2], bits_per_byte=2.0)
    later = Standing(logps=[-4.0, -4.0], scores=[0.2, 0.2], bits_per_byte=1.9)
    figures = later.figures(first, [("a", "four"), ("b", "four")])
    assert figures["win_rate"] == 0.75  # a win and a tie
    assert figures["truth_bits_per_byte"] == pytest.approx(1 / math.log(2))
    assert figures["win_rate_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 2))


def test_the_plot_names_both_courses_and_is_well_formed() -> None:
    part: list[dict[str, Any]] = [
        {"win_rate": 0.5 + n / 10, "bits_per_byte": 1.7, "truth_bits_per_byte": 1.9 - n / 10}
        for n in range(3)
    ]
    titles = [chart.title for chart in charts_of(part, part[:2])]
    assert len(titles) == 3
    page = ElementTree.fromstring(svg(part, part[:2]))
    words = [one.text for one in page.iter() if one.tag.endswith("text")]
    assert words.count("with feedback") == words.count("Pile text alone") == 3
