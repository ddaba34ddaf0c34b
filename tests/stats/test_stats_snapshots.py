"""Drift between snapshots, the U of divergence, and correlation with task scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.errors import BadData
from moeworks.stats import divergence, drift, saturation, task_correlation, u_shape
from moeworks.stats.task_correlation import read_scores
from moeworks.where import Where


def write(path, ids):
    header = make_header(model=make_identity((0,), 4, 2), text_hash="same")
    return write_texts(path, [Text({}, {0: one}, document=f"d{i}") for i, one in enumerate(ids)], header=header)


def test_drift_by_hand(tmp_path):
    """Loads 1/2 1/2 0 0 against 1/2 0 1/2 0: divergence 1/2; half of each choice is kept."""
    (line,) = drift([write(tmp_path / "a", [[[0, 1]]] * 6)], write(tmp_path / "b", [[[0, 2]]] * 6)).to_pylist()
    assert line["divergence"] == pytest.approx(0.5)
    assert (line["overlap"], line["overlap_chance"]) == (0.5, 0.5)
    assert line["chance"] < 0.4
    assert (line["low"], line["high"]) == pytest.approx((0.5, 0.5))


def test_loads_may_stay_while_every_choice_changes(tmp_path):
    """The two halves of drift: no divergence, no overlap."""
    first, second = [[[0, 1], [2, 3]]] * 6, [[[2, 3], [0, 1]]] * 6
    (line,) = drift([write(tmp_path / "a", first)], write(tmp_path / "b", second), steps=[5]).to_pylist()
    assert (line["step"], line["divergence"], line["overlap"], line["p"]) == (5, 0, 0, 1)


def test_drift_between_equal_models_is_at_chance_and_a_planted_one_is_not(tmp_path):
    arguments = {
        "requests": 40,
        "rows_per_request": 40,
        "header": {"text_hash": "same"},
        "labels": {"lang": ["en", "fr"]},
    }
    final = make_trace(tmp_path / "final", part_bytes=5000, **arguments)
    moved = make_trace(tmp_path / "moved", planted={(1, 3): ("lang", "fr", 1.0)}, **arguments)
    first, second = drift([moved], final).to_pylist()
    assert (first["divergence"], first["p"], first["overlap"]) == (0, 1, 1)
    assert second["p"] == pytest.approx(1 / 201)
    assert second["low"] > second["chance"]
    english = drift([moved], final, where=Where.parse("lang=en")).to_pylist()
    assert [row["overlap"] for row in english] == [1, 1]
    shared = saturation([moved], final).to_pylist()
    assert [row["overlap"] for row in shared] == [first["overlap"], second["overlap"]]
    with pytest.raises(BadData, match="other texts"):
        drift([make_trace(tmp_path / "other", header={"text_hash": "other"})], final)


def test_noise_alone_is_at_chance(tmp_path):
    """Two draws from the same loads: divergence is above 0, as far as its chance is, and p is not small."""
    rng = np.random.default_rng(0)
    both = [rng.random((40, 30, 4)).argpartition(2, axis=2)[..., :2].tolist() for _ in range(2)]
    (line,) = drift([write(tmp_path / "a", both[0])], write(tmp_path / "b", both[1])).to_pylist()
    assert 0 < line["divergence"] < 4 * line["chance"]
    assert line["p"] > 0.02


LANGUAGES = {"lang": ["en", "fr", "de", "es", "it", "pt"]}


def shaped(path, strengths, *, languages=LANGUAGES, requests=60):
    """French (and more) moved in each layer by a strength of its own."""
    planted = {
        (layer, expert): ("lang", value, strength)
        for layer, by_value in enumerate(strengths)
        for expert, (value, strength) in enumerate(by_value.items())
    }
    layers = tuple(range(len(strengths)))
    return make_trace(
        path, requests=requests, rows_per_request=60, layers=layers, labels=languages, planted=planted, topic=0.3
    )


def test_a_planted_u_is_found_and_a_flat_line_is_none(tmp_path):
    strong, weak = {"fr": 3.0}, {"fr": 0.0}
    trace = shaped(tmp_path / "u", [strong, weak, weak, weak, weak, strong], languages={"lang": ["en", "fr"]})
    (line,) = u_shape(trace, measure="raw").to_pylist()
    assert line["u_shape"]
    assert line["low"] > 0
    assert line["first"] > 5 * line["middle"]
    table = divergence(trace).to_pydict()["divergence"]
    assert line["first"] == pytest.approx(table[0])
    assert line["middle"] == pytest.approx(np.mean(table[1:-1]))
    assert line["difference"] == pytest.approx((table[0] + table[-1]) / 2 - np.mean(table[1:-1]))
    assert line["p"] == pytest.approx(1 / 15, abs=0.03)  # 2 of 6 layers are the ends in 1 of 15 orders
    flat = u_shape(shaped(tmp_path / "flat", [weak] * 6, languages={"lang": ["en", "fr"]}), measure="raw").to_pylist()
    assert not flat[0]["u_shape"]
    assert flat[0]["low"] < 0 < flat[0]["high"]
    one_end = u_shape(shaped(tmp_path / "j", [strong, *[weak] * 5], languages={"lang": ["en", "fr"]}), measure="raw")
    assert not one_end.to_pylist()[0]["u_shape"]


def test_few_documents_tell_no_shape(tmp_path):
    (line,) = u_shape(make_trace(tmp_path / "t", layers=(0, 1, 2), labels={"lang": ["en", "fr"]})).to_pylist()
    assert line["u_shape"] is None
    with pytest.raises(BadData, match="at least three"):
        u_shape(make_trace(tmp_path / "u", labels={"lang": ["en", "fr"]}))


def test_translations_are_averaged_as_in_divergence(tmp_path):
    trace = make_trace(tmp_path / "t", requests=40, requests_per_document=2, layers=(0, 1, 2), topic=0.5,
                       labels={"lang": ["en", "fr"]})  # fmt: skip
    (line,) = u_shape(trace).to_pylist()
    table = divergence(trace).to_pydict()["normalised"]
    assert [line[name] for name in ("first", "middle", "last")] == pytest.approx(table)
    assert line["documents"] == 20


def test_correlation_with_scores(tmp_path):
    """Layer 0 moves languages by as much as they do badly; layer 1 moves none."""
    bad = {"fr": 0.5, "de": 1.0, "es": 1.5, "it": 2.0, "pt": 2.5}
    trace = shaped(tmp_path / "t", [bad, {}])
    scores = {name: -value for name, value in bad.items()}
    first, second = task_correlation(trace, scores=scores, measure="raw").to_pylist()
    assert first["values"] == 5
    assert first["correlation"] < -0.9
    assert first["high"] < -0.8
    assert first["p"] == pytest.approx(1 / 120, abs=2 / 120)  # all 120 orders are tried
    assert abs(second["correlation"]) < 1
    rows = [row for row in divergence(trace).to_pylist() if row["layer"] == 0]
    numbers = [row["divergence"] for row in rows]
    given = [scores[row["value"]] for row in rows]
    assert first["correlation"] == pytest.approx(np.corrcoef(numbers, given)[0, 1])
    assert first["rank_correlation"] == pytest.approx(spearmanr(numbers, given).statistic)


def test_tables_of_scores(tmp_path):
    (tmp_path / "scores.csv").write_text("language,accuracy\nfr,0.5\n\nde , 0.25\n")
    (tmp_path / "scores.json").write_text(json.dumps({"fr": 0.5, "de": 0.25}))
    (tmp_path / "bad.csv").write_text("fr,0.5\nde,much\n")
    assert read_scores(tmp_path / "scores.csv") == read_scores(tmp_path / "scores.json") == {"fr": 0.5, "de": 0.25}
    with pytest.raises(BadData, match=r"line 2 of .* is not value,score: de,much"):
        read_scores(tmp_path / "bad.csv")
    with pytest.raises(BadData, match="cannot be read: No such file"):
        read_scores(tmp_path / "none.csv")
    trace = make_trace(tmp_path / "t", requests=12, labels=LANGUAGES)
    with pytest.raises(BadData, match=r"2 values of 'lang' have a score \(de, fr\)"):
        task_correlation(trace, scores=tmp_path / "scores.csv")
    with pytest.raises(BadData, match="needs task scores"):
        task_correlation(trace)
