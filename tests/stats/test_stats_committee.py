"""The standing committee: by hand, against a loop, planted in a trace, and absent where labels or experts are even."""

from itertools import combinations

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.stats import standing_committee
from moeworks.stats.committee import gini, top_experts


def test_gini_by_hand():
    """All on one of four: 1 - 1/4; even: 0; 1 and 3: half the mean difference over the mean, 1/4."""
    assert gini(np.array([[0, 0, 0, 1.0], [2, 2, 2, 2]])) == pytest.approx([0.75, 0])
    assert gini(np.array([1.0, 3])) == pytest.approx(0.25)


def test_top_experts_take_the_lower_number_of_equal_ones():
    assert top_experts(np.array([1.0, 3, 3, 3]), 2).tolist() == [False, True, True, False]


def test_committee_by_hand(tmp_path):
    """Mass: a → .5, .3, .2, 0; b → .5, .1, .4, 0. Tops of two: {0, 1}, {0, 2}, Jaccard 1/3; member 0 with .5."""
    mass = {"a": [0.5, 0.3, 0.2], "b": [0.5, 0.1, 0.4]}
    texts = [
        Text({"domain": name}, {2: [[0, 1, 2]] * 5}, {2: [[2 * w for w in mass[name]]] * 5}, document=f"{name}{i}")
        for name in "ab"
        for i in range(6)
    ]
    (line,) = standing_committee(write_texts(tmp_path / "t", texts), label="domain", size=2).to_pylist()
    assert (line["layer"], line["values"], line["documents"], line["tokens"]) == (2, 2, 12, 60)
    assert line["top_share"] == pytest.approx((0.8 + 0.9) / 2)
    assert [line["low"], line["high"]] == pytest.approx([0.85, 0.85])
    assert line["chance"] == 0.5
    assert [line["jaccard"], line["jaccard_low"], line["jaccard_high"]] == pytest.approx([1 / 3] * 3)
    assert line["members"] == [0]
    assert line["member_share"] == pytest.approx(0.5)
    assert line["gini"] == pytest.approx(gini(np.array([0.5, 0.2, 0.3, 0])))
    (line,) = standing_committee(write_texts(tmp_path / "u", texts), label="domain", size=2, presence=0.5).to_pylist()
    assert line["members"] == [0, 2, 1]


def test_committee_equals_a_loop(tmp_path):
    trace = make_trace(
        tmp_path / "t", requests=18, rows_per_request=[8, 13], experts=(8, 6), top_k=(2, 3),
        labels={"domain": ["x", "y", "", "z"]}, topic=0.5, part_bytes=2000,
    )  # fmt: skip
    assert len(trace.parts) > 1
    rows, domain = trace.rows(), trace.request_table().labels["domain"]
    for line in standing_committee(trace, label="domain", size=2).to_pylist():
        layer, experts = line["layer"], {0: 8, 1: 6}[line["layer"]]
        mass = {name: np.zeros(experts) for name in "xyz"}
        for request, ids, weights in zip(rows.request, trace.ids(layer), trace.weights(layer), strict=True):
            for expert, weight in zip(ids, weights, strict=True):
                if domain[request]:
                    mass[domain[request]][expert] += weight / weights.sum()
        share = {name: one / one.sum() for name, one in mass.items()}
        tops = {name: set(np.argsort(-one)[:2].tolist()) for name, one in share.items()}
        assert line["top_share"] == pytest.approx(np.mean([sum(share[n][list(tops[n])]) for n in "xyz"]))
        assert line["jaccard"] == pytest.approx(
            np.mean([len(tops[a] & tops[b]) / len(tops[a] | tops[b]) for a, b in combinations("xyz", 2)])
        )
        assert set(line["members"]) == tops["x"] & tops["y"] & tops["z"]
        assert line["documents"] == 14


def test_a_planted_committee_is_found(tmp_path):
    """Planted: experts 1 and 4 of layer 1 are liked by all; layer 0 is even."""
    planted = {(1, e): ("all", "yes", 3.0) for e in (1, 4)}
    trace = make_trace(
        tmp_path / "t", requests=60, rows_per_request=40, planted=planted,
        labels={"all": ["yes"], "domain": ["x", "y", "z"]},
    )  # fmt: skip
    even, committee = standing_committee(trace, label="domain", size=2).to_pylist()
    assert set(committee["members"]) == {1, 4}
    assert committee["jaccard"] == committee["jaccard_permuted"] == 1
    assert committee["low"] > 0.6
    assert even["top_share"] < 0.35
    assert even["gini"] < 0.15


def test_labels_that_move_the_top_fall_below_the_permuted_ones(tmp_path):
    """Planted: x likes 0 and 1 much, y likes 2 and 3 a little; with labels permuted both tops are 0 and 1."""
    likes = (("x", 5.0, (0, 1)), ("y", 1.0, (2, 3)))
    planted = {(0, e): ("domain", name, much) for name, much, pair in likes for e in pair}
    trace = make_trace(
        tmp_path / "t", requests=40, rows_per_request=30, layers=(0,), planted=planted, labels={"domain": ["x", "y"]}
    )
    (line,) = standing_committee(trace, label="domain", size=2).to_pylist()
    assert line["jaccard"] == line["jaccard_high"] == 0
    assert line["jaccard_permuted"] > 0.8
    assert line["members"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "topic"}, "no request has a label 'topic'"),
        ({"label": "one"}, "all selected tokens have the same value of 'one'"),
        ({"label": "lang", "size": 8}, "size=8"),
        ({"label": "lang", "presence": 0.0}, "presence=0.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, options, message):
    trace = make_trace(tmp_path / "t", labels={"lang": ["en", "fr"], "one": ["x"]})
    with pytest.raises(BadData, match=message):
        standing_committee(trace, **options)
