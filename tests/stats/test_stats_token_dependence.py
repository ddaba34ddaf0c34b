"""Dependence on tokens: numbers by hand, a loop in plain Python, and traces whose routing is known."""

import math
from collections import Counter

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.engines.fake import FakeEngine, neutral_examples
from moeworks.errors import BadData
from moeworks.stats import token_dependence
from moeworks.stats.documents import selected_documents
from moeworks.stats.token_counts import vocabulary
from moeworks.stats.token_dependence import information, modes
from moeworks.where import Where


def by_table(path, *, documents=30, length=40, vocabulary=12, experts=8, k=2, rule="token", seed=0):
    """A trace whose sets of experts are read from a table: by token, by the text's language, or drawn at random."""
    rng = np.random.default_rng(seed)
    table = rng.random((vocabulary, experts)).argpartition(k, axis=1)[:, :k]
    texts = []
    for i in range(documents):
        lang = i % 2
        tokens = rng.integers(0, vocabulary // 2, length) + lang * (vocabulary // 2)  # a language has its own tokens
        drawn = rng.random((length, experts)).argpartition(k, axis=1)[:, :k]
        ids = {"token": table[tokens], "text": np.tile(table[lang], (length, 1)), "nothing": drawn}[rule]
        texts.append(Text({}, {0: ids.tolist()}, tokens=tokens.tolist(), document=f"d{i}"))
    return write_texts(path, texts, experts=experts)


def test_modes_by_hand():
    """Counts 3, 2, 2, 0: the lower of the equal ones; one expert only where one ran; none of a rare token."""
    counts = np.array([[3, 2, 2, 0], [0, 0, 0, 5], [1, 1, 0, 0]])
    found = modes(counts, 2, fewest=2, tokens=np.array([4, 5, 1]))
    assert found.tolist() == [[True, True, False, False], [False, False, False, True], [False] * 4]


def test_dependence_by_hand(tmp_path):
    """All documents alike, so that the halves do not matter: token 7 chose {0,1} {0,1} {0,2}, token 8 {3,2}.

    Modes: 7 → {0, 1}, 8 → {2, 3}. Overlaps 1, 1, 1/2 and 1: TID is 3.5 / 4.
    """
    ids = [[0, 1], [3, 2], [1, 0], [0, 2]]
    texts = [Text({}, {4: ids}, tokens=[7, 8, 7, 7], document=f"d{i}") for i in range(12)]
    (line,) = token_dependence(write_texts(tmp_path / "t", texts)).to_pylist()
    assert (line["layer"], line["tokens"], line["documents"], line["token_ids"]) == (4, 24, 6, 2)
    assert line["dependence"] == line["low"] == line["high"] == pytest.approx(0.875)
    assert line["coverage"] == 1
    assert line["uniform_chance"] == 0.5
    assert line["chance"] < 0.8
    assert line["information"] == pytest.approx(information(12 * np.array([[3, 2, 1, 0], [0, 0, 1, 1]]), 2)[0])


def test_information_by_hand():
    """Counts (3,2,1,0) and (0,0,1,1): p(e) = 3/8, 2/8, 2/8, 1/8; k = 2, 8 runs.

    H(e) = 1.32089 + (4 - 2) / 16; H(e | v) = 6/8 × 1.01140 + 2/8 × ln 2 = .93184, + (3 - 2 + 2 - 2) / 16.
    """
    corrected, plain = information(np.array([[3, 2, 1, 0], [0, 0, 1, 1]]), 2)
    own = -sum(p * math.log(p) for p in (3 / 8, 2 / 8, 2 / 8, 1 / 8))
    given = 6 / 8 * -sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6)) + 2 / 8 * math.log(2)
    assert (own, given) == pytest.approx((1.32089, 0.93184), abs=1e-5)
    assert plain == pytest.approx(1 - given / own)
    assert corrected == pytest.approx(1 - (given + 1 / 16) / (own + 2 / 16))
    assert all(math.isnan(number) for number in information(np.array([[4, 0]]), 1))


@pytest.mark.parametrize("k", [1, 3])
def test_correction_takes_the_bias_off(k):
    """Independent choices hold no information. The plug-in says more; corrected it is 0 on average."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        token = rng.integers(0, 10, 500)
        ids = rng.random((500, 8)).argpartition(k, axis=1)[:, :k]
        counts = np.zeros((10, 8), int)
        np.add.at(counts, (token[:, None], ids), 1)
        found.append(information(counts, k))
    corrected, plain = np.mean(found, 0)
    error = np.std(found, 0)[0] / math.sqrt(200)
    assert plain > 8 * error
    assert corrected == pytest.approx(0, abs=4 * error)


def test_routing_by_token_alone(tmp_path):
    """Planted: a table of token ids decides, so that TID is 1, and for k = 1 information as well."""
    (line,) = token_dependence(by_table(tmp_path / "t")).to_pylist()
    assert line["dependence"] == 1
    assert line["excess_low"] > 0.2
    (line,) = token_dependence(by_table(tmp_path / "one", k=1)).to_pylist()
    assert line["information"] == pytest.approx(1, abs=1e-3)
    assert line["information_chance"] < 0.6


def test_routing_by_text_is_no_dependence_on_tokens(tmp_path):
    """A language decides and has its own tokens: the token foretells all, and so does any other of the text."""
    (line,) = token_dependence(by_table(tmp_path / "t", rule="text")).to_pylist()
    assert line["dependence"] == line["chance"] == 1
    assert line["excess_low"] == line["excess_high"] == 0


def test_nothing_is_claimed_where_routing_is_random(tmp_path):
    """Null: the interval of the excess holds 0, both numbers are at chance; 12 traces, one miss in 20 expected."""
    missed = 0
    for seed in range(12):
        (line,) = token_dependence(by_table(tmp_path / str(seed), rule="nothing", seed=seed)).to_pylist()
        missed += not line["excess_low"] <= 0 <= line["excess_high"]
        assert line["information"] == pytest.approx(line["information_chance"], abs=0.02)
        assert line["dependence"] == pytest.approx(0.25, abs=0.06)
    assert missed <= 3


def test_dependence_equals_a_loop(tmp_path):
    """Plain loops over rows of several parts, with a clause and slots that did not run."""
    trace = make_trace(
        tmp_path / "t", requests=12, rows_per_request=[30, 55], generated=9, experts=(8, 6), top_k=(2, 3),
        part_bytes=3000, requests_per_document=2,
    )  # fmt: skip
    texts = []
    rows, rng = trace.rows(), np.random.default_rng(3)
    for request in range(12):
        here = rows.request == request
        ids = {layer: trace.ids(layer)[here].tolist() for layer in (0, 1)}
        weights = {layer: (rng.random((here.sum(), np.shape(i)[1])) > 0.2).tolist() for layer, i in ids.items()}
        tokens = rng.integers(0, 9, here.sum()).tolist()
        texts.append(Text({}, ids, weights, tokens=tokens, document=f"d{request // 2}", generated=9))
    trace = write_texts(tmp_path / "skipped", texts, experts=(8, 6), part_bytes=3000)
    assert len(trace.parts) > 2
    where = Where.parse("phase=prompt")
    documents = selected_documents(trace, where)
    held_out = vocabulary(trace, where, documents, seed=5).held_out
    assert held_out.sum() == 3
    rows = trace.rows()
    for line in token_dependence(trace, where=where, fewest=20, seed=5).to_pylist():
        layer, k = line["layer"], {0: 2, 1: 3}[line["layer"]]
        ids, weights = trace.ids(layer), trace.weights(layer)
        counts = {v: Counter() for v in range(9)}
        seen = Counter()
        kept = [i for i in range(len(rows)) if rows.phase[i] == 0]
        for i in kept:
            if not held_out[rows.request[i] // 2]:
                seen[rows.token[i]] += 1
                counts[rows.token[i]].update(e for e, w in zip(ids[i], weights[i], strict=True) if w)
        common = {v: sorted(c, key=lambda e, c=c: (-c[e], e))[:k] for v, c in counts.items() if seen[v] >= 20}
        assert 1 < len(common) < 9
        overlaps = [
            sum(1 for e, w in zip(ids[i], weights[i], strict=True) if w and e in common[rows.token[i]]) / k
            for i in kept
            if held_out[rows.request[i] // 2] and rows.token[i] in common
        ]
        assert line["dependence"] == pytest.approx(np.mean(overlaps))
        assert line["tokens"] == len(overlaps)
        assert line["coverage"] == pytest.approx(
            len(overlaps) / sum(held_out[rows.request[i] // 2] for i in kept)
        )  # fmt: skip


def test_interval_of_information_has_the_width_of_repeated_traces(tmp_path):
    """Outside truth: over 16 traces drawn alike the numbers spread as wide as one trace's interval says."""
    traces = [by_table(tmp_path / str(seed), length=30, rule="nothing", seed=seed) for seed in range(16)]
    found = [token_dependence(trace).to_pylist()[0] for trace in traces]
    spread = np.std([line["information"] for line in found])
    width = np.mean([line["information_high"] - line["information_low"] for line in found])
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.5)
    middle = np.mean([(line["information_high"] + line["information_low"]) / 2 for line in found])
    assert middle == pytest.approx(np.mean([line["information"] for line in found]), abs=0.1 * width)


def test_a_small_memory_budget_gives_the_same_numbers(tmp_path):
    trace = make_trace(tmp_path / "t", requests=12, rows_per_request=40, layers=(0, 1, 2))
    assert token_dependence(trace, fewest=1).equals(token_dependence(trace, fewest=1, budget_bytes=1))


def test_fake_engine_routes_by_token(tmp_path):
    """The fake engine's routers read the current byte beside the context: above its null in every layer."""
    trace = FakeEngine("none").record(neutral_examples(16), tmp_path / "t")
    for line in token_dependence(trace).to_pylist():
        assert line["excess_low"] > 0
        assert line["information_low"] > line["information_chance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fewest": 10_000}, "no token id that occurs 10000 times"),
        ({"fewest": 0}, "fewest=0"),
        ({"shuffles": 0}, "shuffles=0"),
        ({"where": Where.parse("document=d0")}, "all selected tokens are of one document"),
        ({"where": Where.parse("position=100:")}, "no token matches"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, options, message):
    with pytest.raises(BadData, match=message):
        token_dependence(by_table(tmp_path / "t"), **options)
