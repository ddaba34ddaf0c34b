"""Repetition of neighbouring tokens' experts: by hand, against a loop, and at chance for random routing."""

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.stats import repetition
from moeworks.trace import TokenSpan
from moeworks.where import Where


def test_repetition_by_hand(tmp_path):
    """First choices 0, 0, 2 | 2: pairs (0, 0), (0, 2), none over texts; {0,1} {0,3} {2,3} share 1 and 1 of 2."""
    texts = [
        Text({}, {0: [[0, 1], [3, 0], [3, 2]]}, {0: [[0.9, 0.1], [0.4, 0.6], [0.1, 0.9]]}),
        Text({}, {0: [[2, 0]]}, {0: [[0.8, 0.2]]}),
    ]
    (line,) = repetition(write_texts(tmp_path / "t", texts)).to_pylist()
    assert (line["layer"], line["pairs"], line["documents"]) == (0, 2, 2)
    assert (line["first_choice"], line["share_any"], line["overlap"]) == (0.5, 1, 0.5)
    assert line["first_choice_chance"] == 0.25
    assert line["share_any_chance"] == pytest.approx(1 - 1 / 6)
    assert line["overlap_chance"] == 0.5
    assert line["first_choice_load_chance"] == 0.5


def test_rows_that_a_cut_brought_together_are_no_neighbours(tmp_path):
    """Cut out: tokens 0 and 1 of one text, tokens 2 and 3 of the next; 1 and 2 follow each other in number only."""
    texts = [
        Text({}, {0: [[0], [1], [1], [1]]}, spans=[TokenSpan("kept", start, start + 2)], document=f"d{start}")
        for start in (0, 2)
    ]
    cut = write_texts(tmp_path / "t", texts).slice(Where.parse("span=kept"), tmp_path / "cut")
    (line,) = repetition(cut).to_pylist()
    assert (line["pairs"], line["first_choice"]) == (2, 0.5)


def test_repetition_equals_a_loop(tmp_path):
    trace = make_trace(
        tmp_path / "t", requests=15, rows_per_request=[9, 14], generated=5, experts=(8, 6), top_k=(2, 3), topic=1.0,
        part_bytes=1500,
    )  # fmt: skip
    assert len(trace.parts) > 2
    rows = trace.rows()
    for line in repetition(trace, where=Where.parse("phase=generated")).to_pylist():
        ids, weights = trace.ids(line["layer"]), trace.weights(line["layer"])
        pairs = [i for i in range(1, len(rows)) if rows.request[i] == rows.request[i - 1] and rows.phase[i - 1] == 1]
        assert line["pairs"] == len(pairs) == 15 * 4
        first = [ids[i][weights[i].argmax()] for i in range(len(rows))]
        shared = [len(set(ids[i].tolist()) & set(ids[i - 1].tolist())) for i in pairs]
        assert line["first_choice"] == pytest.approx(np.mean([first[i] == first[i - 1] for i in pairs]))
        assert line["share_any"] == pytest.approx(np.mean([s > 0 for s in shared]))
        assert line["overlap"] == pytest.approx(np.mean(shared) / ids.shape[1])


def test_random_routing_is_at_chance_and_routing_by_text_is_above(tmp_path):
    trace = make_trace(tmp_path / "t", requests=60, rows_per_request=40)
    for line in repetition(trace).to_pylist():
        for name in ("first_choice", "share_any", "overlap"):
            assert line[f"{name}_chance"] == pytest.approx(line[name], abs=0.03)
    topical = make_trace(tmp_path / "topics", requests=60, rows_per_request=40, topic=2.0)
    for line in repetition(topical).to_pylist():
        assert line["first_choice_low"] > line["first_choice_chance"] + 0.05
        assert line["overlap_low"] > line["overlap_chance"] + 0.05


def test_single_tokens_have_no_neighbours(tmp_path):
    with pytest.raises(BadData, match="no two neighbouring tokens match the clause 'position=3:4'"):
        repetition(make_trace(tmp_path / "t"), where=Where.parse("position=3:4"))
