"""What scores read: weights and probabilities equal loops over tokens; groups of documents and their null."""

import sys

import numpy as np
import pytest

from helpers.traces import make_trace
from moeworks.errors import BadTrace
from moeworks.find import SCORES, find, find_by_label, reads
from moeworks.find.amounts import add_amounts, sum_reads
from moeworks.find.groups import GroupNull, enter_groups
from moeworks.find.methods import trace_methods
from moeworks.where import Where


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return make_trace(
        tmp_path_factory.mktemp("reads") / "t", requests=24, rows_per_request=[5, 11, 17], layers=(1, 4),
        experts=(8, 6), top_k=(2, 3), labels={"lang": ["fr", "en", "de"]}, requests_per_document=2, generated=3,
        logits=True, part_bytes=6000,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["runs", "weights", "probabilities"])
@pytest.mark.parametrize("chunk", [1 << 14, 7])
def test_sums_equal_a_loop_over_tokens(trace, monkeypatch, what, chunk):
    """A plain Python loop; several parts, two layer sizes, a clause that leaves tokens out."""
    monkeypatch.setattr(sys.modules["moeworks.find.amounts"], "_CHUNK", chunk)
    assert len(trace.parts) > 2
    where = Where.parse("phase=prompt")
    entries = enter_groups(trace, label="lang", where=where)
    sums = sum_reads(trace, entries.rows(trace, where), entries.tokens, {1: 8, 4: 6}, what)
    expected, tokens = np.zeros_like(sums), np.zeros(len(entries))
    rows, languages, documents = trace.rows(), trace.request_table().labels["lang"], trace.documents()
    for i in range(len(rows)):
        if rows.phase[i] != 0:
            continue
        language, document = languages[rows.request[i]], documents[rows.request[i]]
        (entry,) = (
            e for e in range(len(entries))
            if entries.names[entries.value[e]] == language and entries.document[e] == document
        )  # fmt: skip
        tokens[entry] += 1
        for offset, layer in ((0, 1), (8, 4)):
            if what == "probabilities":
                z = np.exp(trace.logits(layer)[i].astype(float))
                expected[entry, offset : offset + len(z)] += z / z.sum()
                continue
            for expert, weight in zip(trace.ids(layer)[i], trace.weights(layer)[i], strict=True):
                expected[entry, offset + expert] += (weight != 0) if what == "runs" else float(weight)
    assert sums == pytest.approx(expected, abs=1e-9)
    assert tokens.tolist() == entries.tokens.tolist()


def test_a_score_says_what_it_reads(trace):
    """A third party's score of weights: the mean weights over French tokens, by numpy on the columns."""

    @SCORES.register("mean_weight")
    @reads("weights", one_sided=True)
    def mean_weight(contrast, against):
        return contrast.rates

    try:
        scores = find(trace, contrast="lang=fr", against="lang=en", method="mean_weight", permutations=20)
        assert trace_methods()["mean_weight"].reads == "weights"
    finally:
        del SCORES._functions["mean_weight"]
    french = trace.select(Where.parse("lang=fr"))
    ids, weights = trace.ids(4)[french], trace.weights(4)[french]
    expected = [weights[ids == e].sum() / french.sum() for e in range(6)]
    assert scores.column("score")[8:] == pytest.approx(expected)
    assert scores.header.quantity == "mean weight"


def test_amounts_cross_chunks_and_leave_rows_out(monkeypatch):
    """np.add.at, slot by slot, is the outside count; chunks of 7 rows, entries in no order, factors."""
    monkeypatch.setattr(sys.modules["moeworks.find.amounts"], "_CHUNK", 7)
    rng = np.random.default_rng(0)
    ids, entry = rng.integers(0, 9, (100, 3)).astype(np.uint16), rng.integers(-1, 5, 100)
    weights, factor = rng.random((100, 3)).astype(np.float16), rng.random(100)
    weights[::5] = 0
    for runs in (False, True):
        found, expected = np.zeros((5, 9)), np.zeros((5, 9))
        add_amounts(found, entry, ids, weights, factor=factor, runs=runs)
        for slot in range(3):
            taken = entry >= 0
            amount = (weights[:, slot] != 0) if runs else weights[:, slot].astype(float)
            np.add.at(expected, (entry[taken], ids[taken, slot]), (amount * factor)[taken])
        assert found == pytest.approx(expected)
    with pytest.raises(BadTrace, match="expert 8, but experts are 0 to 7"):
        add_amounts(np.zeros((5, 8)), entry, ids, weights)


def test_a_small_memory_budget_gives_the_same_scores(trace):
    whole, parts = (
        find_by_label(trace, label="lang", permutations=50, **budget) for budget in ({}, {"budget_bytes": 1})
    )
    assert whole.table.equals(parts.table)


def test_values_change_places_within_documents_and_strata(tmp_path):
    """24 texts: documents of one text with values a a b of stratum x or y, and documents of three texts a, b, c."""
    own = make_trace(
        tmp_path / "t", requests=24, rows_per_request=3, labels={"v": ["a", "a", "b"], "s": ["x"] * 12 + ["y"] * 12}
    )
    entries = enter_groups(own, label="v", where=Where(), within="s")
    drawn = GroupNull(entries).draw(np.random.default_rng(0), 50)
    for stratum in (0, 1):
        mine = entries.stratum == stratum
        assert (np.sort(drawn[:, mine], axis=1) == np.sort(entries.value[mine])).all()
    assert len(np.unique(drawn, axis=0)) > 40
    assert GroupNull(entries).arrangements == 495**2  # C(12, 4) for each stratum
    shared = make_trace(
        tmp_path / "s", requests=24, rows_per_request=3, labels={"v": list("abc")}, requests_per_document=3
    )
    entries = enter_groups(shared, label="v", where=Where())
    drawn = GroupNull(entries).draw(np.random.default_rng(0), 50)
    for document in range(8):
        assert (np.sort(drawn[:, entries.document == document], axis=1) == [0, 1, 2]).all()
    assert GroupNull(entries).arrangements == 6**8
    assert entries.pairs == 8
    times = entries.resample(np.random.default_rng(0), 30)
    for document in range(8):
        mine = times[:, entries.document == document]
        assert (mine == mine[:, :1]).all()  # a document's texts stay together
    assert (times.sum(1) == 24).all()
