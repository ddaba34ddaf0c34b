"""Specialisation by label, position and token id, HoME's anomalies: hand-worked rates, planted and absent effects."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.errors import BadData
from moeworks.stats import anomalies, domain_rates, position_specialisation, specialisation, vocabulary_specialisation
from moeworks.stats.specialisation import log_ratios, total_variation
from moeworks.where import Where

LABELS = {"domain": ["x", "y", "z"]}


def test_rates_and_ratios_by_hand(tmp_path):
    """Maths: experts 0 0 1 of 3 tokens; stories: 1 1 0 0 0: of 8 runs 0 has 5 and 1 has 3."""
    texts = [
        Text({"domain": "maths"}, {0: [[0], [0], [1]]}),
        Text({"domain": "stories"}, {0: [[1], [1], [0], [0], [0]]}),
    ]
    trace = write_texts(tmp_path / "t", texts, experts=3)
    rows = {(row["value"], row["rank"]): row for row in specialisation(trace, top=2, fewest=1).to_pylist()}
    maths = rows["maths", 1]
    assert (maths["expert"], maths["rate"], maths["uniform"]) == pytest.approx((0, 2 / 3, 1 / 3))
    assert maths["log_ratio"] == pytest.approx(math.log((2 / 3) / (5 / 8)))
    assert rows["stories", 1]["log_ratio"] == pytest.approx(math.log((2 / 5) / (3 / 8)))
    assert maths["distance"] == pytest.approx((abs(2 / 3 - 5 / 8) + abs(1 / 3 - 3 / 8)) / 2)
    values, rates = domain_rates(trace, 0)
    assert values == ["maths", "stories"]
    assert rates == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [3 / 5, 2 / 5, 0]]))
    assert np.isneginf(log_ratios(np.array([[1, 0], [2, 2]]))[0, 1])
    assert total_variation(np.array([[4, 0], [0, 4]])) == pytest.approx([0.5, 0.5])


def test_a_planted_domain_expert_is_found_and_nothing_where_nothing_is(tmp_path):
    """Null: documents differ, domains do not; p is small in few of 12 rows. Planted: expert 5 in domain y."""
    arguments = {"requests": 60, "rows_per_request": 50, "layers": (0, 1, 2, 3), "labels": LABELS, "topic": 0.5}
    null = specialisation(make_trace(tmp_path / "null", **arguments), bootstrap=50).to_pylist()
    assert len(null) == 12
    assert sum(row["p"] <= 0.05 for row in null) <= 3
    assert sum(row["distance_p"] <= 0.05 for row in null) <= 3
    assert min(row["chance"] for row in null) > 0.02  # the largest of many is above 0 by noise
    trace = make_trace(tmp_path / "planted", planted={(2, 5): ("domain", "y", 2.0)}, **arguments)
    (found,) = (r for r in specialisation(trace, bootstrap=50).to_pylist() if (r["layer"], r["value"]) == (2, "y"))
    assert (found["expert"], found["p"], found["distance_p"]) == (5, 1 / 201, 1 / 201)
    assert found["low"] > found["chance"]


def test_translations_are_exchanged_within_their_document(tmp_path):
    """Documents in both languages that route alike within a document: the label explains nothing, documents all."""
    trace = make_trace(tmp_path / "t", requests=60, requests_per_document=2, topic=2.0, labels={"lang": ["en", "fr"]})
    rows = specialisation(trace, label="lang", bootstrap=50, fewest=20).to_pylist()
    assert min(row["distance_p"] for row in rows) > 0.01
    assert rows[0]["documents"] == 30


def test_a_small_effect_within_documents_that_differ_much_is_found(tmp_path):
    """Translations: what documents have in common is no noise, since values are exchanged within each of them."""
    planted = {(0, 5): ("lang", "fr", 0.6)}
    trace = make_trace(tmp_path / "t", requests=60, requests_per_document=2, rows_per_request=60, topic=2.0,
                       labels={"lang": ["en", "fr"]}, planted=planted)  # fmt: skip
    first, *_ = (r for r in specialisation(trace, label="lang", bootstrap=20).to_pylist() if r["value"] == "fr")
    assert (first["layer"], first["expert"]) == (0, 5)
    assert first["p"] <= 0.01


def test_positions_shuffled_in_their_text_are_the_null(tmp_path):
    """Planted on positions 0 to 3 of every text: these ranges are far from chance, later ones are not."""
    arguments = {"requests": 60, "rows_per_request": 40, "layers": (0,), "topic": 0.5}
    trace = make_trace(tmp_path / "t", spans={"head": (0, 4)}, planted={(0, 6): ("span", "head", 4.0)}, **arguments)
    rows = {row["positions"]: row for row in position_specialisation(trace, bootstrap=50).to_pylist()}
    assert list(rows) == ["0", "1", "2-3", "4-7", "8-15", "16-31", "32-63"]
    assert [rows[name]["tokens"] for name in rows] == [60, 60, 120, 240, 480, 960, 480]
    for name in ("0", "1", "2-3"):
        assert rows[name]["low"] > 2 * rows[name]["chance"]
        assert rows[name]["expert"] == 6
        assert rows[name]["log_ratio_low"] > rows[name]["log_ratio_chance"]
    null = position_specialisation(make_trace(tmp_path / "null", **arguments), bootstrap=50).to_pylist()
    for row in null:
        assert row["distance"] < 1.6 * row["chance"] + 0.01


def test_a_token_seen_once_is_nobodys(tmp_path):
    """Token 7 always goes to expert 0 (12 times), token 8 to 0 or 1 in turn; token 9 occurs once."""
    texts = [Text({}, {0: [[0], [i % 2]]}, tokens=[7, 8], document=f"d{i}") for i in range(12)]
    texts.append(Text({}, {0: [[2]]}, tokens=[9], document="last"))
    trace = write_texts(tmp_path / "t", texts, experts=4)
    (line,) = vocabulary_specialisation(trace).to_pylist()
    assert (line["token_ids"], line["coverage"]) == (2, pytest.approx(24 / 25))
    assert line["specialisation"] == pytest.approx((1 + 0.5) / 2)
    assert line["weighted"] == pytest.approx(0.75)
    assert line["top"] == ["7>0 1.00", "8>0 0.50"]
    assert line["uniform"] == 0.25
    with pytest.raises(BadData, match="no token id occurs 20 times"):
        vocabulary_specialisation(trace, fewest=20)


def test_vocabulary_chance_is_the_level_of_noise(tmp_path):
    """Null: routing ignores the token id, and the largest of 8 shares is far above k / E all the same."""
    trace = make_trace(tmp_path / "t", requests=60, rows_per_request=50, labels=LABELS)
    for line in vocabulary_specialisation(trace, fewest=3).to_pylist():
        assert line["chance"] > line["uniform"] + 0.1
        assert line["specialisation"] == pytest.approx(line["chance"], abs=0.02)
        assert line["low"] < line["specialisation"] < line["high"]
        assert line["own"] < 0.05


def test_vocabulary_looks_at_the_sampled_documents_only(tmp_path):
    trace = make_trace(tmp_path / "t", requests=30, rows_per_request=40, part_bytes=4000)
    (line, _) = vocabulary_specialisation(trace, fewest=1, sample=400).to_pylist()
    assert (line["tokens"], line["documents"]) == (400, 10)


def mass_texts(tmp_path, *, header=None):
    """Three domains: expert 0 serves all, expert 1 only a, experts 2 and 3 b and c alike."""
    shares = {"a": [0.5, 0.5, 0, 0], "b": [0.5, 0, 0.25, 0.25], "c": [0.5, 0, 0.25, 0.25]}
    texts = []
    for i in range(30):
        name = "abc"[i % 3]
        texts.append(Text({"domain": name}, {0: [[0, 1, 2, 3]] * 10}, {0: [shares[name]] * 10}, document=f"d{i}"))
    return write_texts(tmp_path / "t", texts, experts=4, header=header)


def test_anomalies_by_hand(tmp_path):
    """Expert 1 is a's alone but carries 1 / 6 of the mass, less than an even share: not a common one."""
    rows = {row["value"]: row for row in anomalies(mass_texts(tmp_path)).to_pylist()}
    assert (rows["a"]["specific"], rows["a"]["mass"]) == (1, pytest.approx(0.5))
    assert (rows["b"]["specific"], rows["b"]["mass"]) == (2, pytest.approx(0.5))  # half of each is 1.5 even shares
    assert [row["degraded"] for row in rows.values()] == [0, 0, 0]
    assert rows["b"]["largest_share"] == pytest.approx(1 / 3)  # of expert 0
    assert rows["a"]["p"] == pytest.approx(1 / 201)
    assert (rows["a"]["low"], rows["a"]["high"]) == pytest.approx((0.5, 0.5))
    tight = {r["value"]: r for r in anomalies(mass_texts(tmp_path / "u"), times=1.6).to_pylist()}
    assert (tight["b"]["specific"], tight["b"]["mass"]) == (0, 0)


def test_a_common_expert_that_became_one_domains_own_is_degraded(tmp_path):
    shares = {"a": [0.9, 0.1], "b": [0.05, 0.95], "c": [0.05, 0.95]}
    texts = [
        Text({"domain": d}, {0: [[0, 1]] * 5}, {0: [shares[d]] * 5}, document=f"{d}{i}")
        for i in range(8)
        for d in "abc"
    ]
    rows = {r["value"]: r for r in anomalies(write_texts(tmp_path / "t", texts, experts=2), private=0.85).to_pylist()}
    assert rows["a"]["degraded"] == 0  # expert 0 carries a third of the mass, less than an even share
    even = {r["value"]: r for r in anomalies(_two(tmp_path), private=0.8).to_pylist()}
    assert (even["a"]["degraded"], even["b"]["degraded"]) == (1, 1)
    assert even["a"]["degraded_chance"] < 0.5


def _two(tmp_path):
    shares = {"a": [0.9, 0.1], "b": [0.1, 0.9]}
    texts = [
        Text({"domain": d}, {0: [[0, 1]] * 5}, {0: [shares[d]] * 5}, document=f"{d}{i}") for i in range(8) for d in "ab"
    ]
    return write_texts(tmp_path / "two", texts, experts=2)


def test_without_weights_there_is_no_mass(tmp_path):
    header = make_header(model=make_identity((0,), 4, 2), lacks=("weights",))
    texts = [Text({"domain": d}, {0: [[0, 1]]}, {0: [[np.nan, np.nan]]}) for d in "ab"]
    trace = write_texts(tmp_path / "t", texts, header=header)
    with pytest.raises(BadData, match="did not tell combine weights"):
        anomalies(trace)
    assert specialisation(trace, fewest=1).num_rows == 2  # choices are known


@pytest.mark.parametrize("function", [specialisation, anomalies])
def test_labels_are_asked_for(tmp_path, function):
    trace = make_trace(tmp_path / "t", labels={"domain": ["x"], "lang": ["en", "fr"]})
    with pytest.raises(BadData, match="1 value of 'domain'"):
        function(trace)
    with pytest.raises(BadData, match="no request has a label 'domian'; did you mean 'domain'"):
        function(trace, label="domian")
    with pytest.raises(BadData, match="1 value of 'lang'"):
        function(trace, label="lang", where=Where.parse("lang=fr"))
