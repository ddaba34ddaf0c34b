"""Simulated capacity: by hand, against a loop over tokens, and chance against simulation."""

import math

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.stats import capacity_drops
from moeworks.stats.capacity import capacity, chance_of_drops
from moeworks.where import Where


def test_capacity_by_hand():
    """ceil(factor × k × T / E): 2 × 10 / 8 = 2.5 → 3; 1.25 × 2 × 32 / 8 = 10 stays 10."""
    assert capacity(np.array([10, 32]), 8, 2, 1.0).tolist() == [3, 8]
    assert capacity(np.array([10, 32]), 8, 2, 1.25).tolist() == [4, 10]
    assert capacity(np.array([7]), 10, 3, 1.1).tolist() == [math.ceil(2.31)]
    assert capacity(np.array([100]), 10, 1, 1.1).tolist() == [11]  # 11.000000000000002 as a float


def test_drops_by_hand(tmp_path):
    """10 tokens of 1 of 2 experts, factor 1: 5 places. Expert 0 is chosen at 0-6 and 9: 5, 6, 9 are dropped."""
    texts = [Text({}, {0: [[0]] * 7 + [[1], [1], [0]]}, document=f"d{i}") for i in range(6)]
    trace = write_texts(tmp_path / "t", texts, experts=2)
    (line,) = capacity_drops(trace, factors=[1.0]).to_pylist()
    assert line["simulated_drop_rate"] == line["low"] == line["high"] == pytest.approx(0.3)
    assert line["by_decile"] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 1]
    place = np.arange(10) / 10 + 0.05
    assert line["slope"] == line["slope_low"] == pytest.approx(np.polyfit(place, line["by_decile"], 1)[0])
    assert (line["batches"], line["units"], line["tokens"], line["value"]) == (6, 6, 60, "")
    (line,) = capacity_drops(trace, factors=[1.6]).to_pylist()  # 8 places
    assert line["simulated_drop_rate"] == 0


def drops_by_loop(trace, layer, factor, texts_per_batch, where):
    """Return (request, decile) → [runs, dropped], token by token."""
    rows, kept = trace.rows(), trace.select(where)
    order = []
    for request, taken in zip(rows.request, kept, strict=True):
        if taken and request not in order:
            order.append(request)
    experts, k = trace.header.shape_of(layer).experts, trace.header.shape_of(layer).top_k
    ids, weights = trace.ids(layer), trace.weights(layer)
    found = {}
    for start in range(0, len(order), texts_per_batch):
        batch = order[start : start + texts_per_batch]
        here = [i for i in range(len(rows)) if kept[i] and rows.request[i] in batch]
        places, used = math.ceil(factor * k * len(here) / experts - 1e-9), [0] * experts
        for number, i in enumerate(here):
            for expert, weight in zip(ids[i], weights[i], strict=True):
                if not weight:
                    continue
                cell = found.setdefault((int(rows.request[i]), number * 10 // len(here)), [0, 0])
                cell[0] += 1
                cell[1] += used[expert] >= places
                used[expert] += 1
    return found


@pytest.mark.parametrize("texts_per_batch", [1, 3, 100])
@pytest.mark.parametrize("clause", ["", "phase=generated"])
def test_drops_equal_a_loop(tmp_path, texts_per_batch, clause):
    """Parts of few texts, slots that did not run, texts of other lengths, experts that are liked more than others."""
    rng = np.random.default_rng(0)
    texts = []
    for i in range(14):
        n = int(rng.integers(4, 40))
        ids = {
            n_: (rng.random((n, e)) + np.arange(e) / e).argpartition(-k)[:, -k:] for n_, e, k in ((0, 6, 2), (5, 9, 3))
        }
        weights = {layer: (rng.random(one.shape) > 0.1).astype(float).tolist() for layer, one in ids.items()}
        texts.append(
            Text({"lang": "fr" if i % 3 else "en"}, {layer: one.tolist() for layer, one in ids.items()}, weights,
                 generated=n // 2, document=f"d{i // 2}")
        )  # fmt: skip
    trace = write_texts(tmp_path / "t", texts, experts=(6, 9), part_bytes=800)
    assert len(trace.parts) > 3
    where, lang = Where.parse(clause), trace.request_table().labels["lang"]
    table = capacity_drops(
        trace, where=where, factors=[1.0, 1.3], texts_per_batch=texts_per_batch, label="lang"
    ).to_pylist()
    assert len(table) == 2 * 2 * 3
    for line in table:
        cells = drops_by_loop(trace, line["layer"], line["factor"], texts_per_batch, where)
        cells = {key: cell for key, cell in cells.items() if line["value"] in ("", lang[key[0]])}
        deciles = np.zeros((10, 2))
        for (_, decile), cell in cells.items():
            deciles[decile] += cell
        assert line["simulated_drop_rate"] == pytest.approx(deciles[:, 1].sum() / deciles[:, 0].sum())
        with np.errstate(invalid="ignore"):
            assert line["by_decile"] == pytest.approx(deciles[:, 1] / deciles[:, 0], nan_ok=True)


def test_a_batch_goes_on_over_parts_and_pieces(tmp_path, monkeypatch):
    """The same numbers from one part and from many, and with pieces of 7 rows."""
    whole = make_trace(tmp_path / "one", requests=30, rows_per_request=[5, 12, 9])
    parts = make_trace(tmp_path / "many", requests=30, rows_per_request=[5, 12, 9], part_bytes=500)
    assert len(parts.parts) > 8
    found = [capacity_drops(trace, texts_per_batch=4) for trace in (whole, parts)]
    monkeypatch.setattr("moeworks.stats.capacity._CHUNK", 7)
    found.append(capacity_drops(whole, texts_per_batch=4))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert max(found[0]["simulated_drop_rate"].to_pylist()) > 0.05


def test_even_use_drops_nothing_and_one_expert_drops_all_but_its_places(tmp_path):
    """By hand: round robin over 4 experts needs no more than its places; all on one of 4: 3/4 are dropped."""
    texts = [Text({"use": "even"}, {0: [[t % 4] for t in range(40)]}) for _ in range(6)]
    texts += [Text({"use": "one"}, {0: [[2]] * 40}) for _ in range(6)]
    lines = capacity_drops(write_texts(tmp_path / "t", texts), label="use", factors=[1.0]).to_pylist()
    assert {line["value"]: line["simulated_drop_rate"] for line in lines} == {"": 0.375, "even": 0, "one": 0.75}


def test_chance_equals_simulation():
    """400 batches of random choices, filled by a loop over tokens; and random routing of a trace is at chance."""
    rng, tokens, experts, k = np.random.default_rng(0), 60, 8, 2
    dropped = np.zeros(10)
    places = capacity(np.array([tokens]), experts, k, 1.0)[0]
    for _ in range(400):
        used = np.zeros(experts, int)
        for t, ids in enumerate(rng.random((tokens, experts)).argpartition(k, axis=1)[:, :k]):
            dropped[t * 10 // tokens] += (used[ids] >= places).sum()
            used[ids] += 1
    rate = dropped / (400 * tokens / 10 * k)
    (found,) = chance_of_drops(np.array([tokens]), experts, k, [1.0])[0]
    assert found == pytest.approx(rate, abs=0.02)
    assert rate[-1] > 0.2


def test_random_routing_is_at_chance(tmp_path):
    trace = make_trace(tmp_path / "t", requests=120, rows_per_request=[30, 60], labels={"lang": ["en", "fr"]})
    for line in capacity_drops(trace, label="lang").to_pylist():
        if line["value"]:  # texts of 30 tokens are English, of 60 French
            size = {"en": 30, "fr": 60}[line["value"]]
            (own,) = chance_of_drops(np.array([size]), 8, 2, [line["factor"]])[0]
            assert line["chance_by_decile"] == pytest.approx(own)
            assert line["chance"] == pytest.approx(own.mean())
            assert line["simulated_drop_rate"] == pytest.approx(line["chance"], abs=0.02)
            assert line["slope"] == pytest.approx(line["slope_chance"], abs=0.06)


def test_a_small_memory_budget_gives_the_same_numbers(tmp_path):
    trace = make_trace(tmp_path / "t", requests=12, layers=(0, 1, 2))
    assert capacity_drops(trace).equals(capacity_drops(trace, budget_bytes=1))


def test_what_cannot_be_filled_in_order_is_refused(tmp_path):
    trace = make_trace(tmp_path / "t")
    for options, message in (
        ({"label": "lang"}, "no request has a label 'lang'"),
        ({"factors": []}, "capacity factors are above 0"),
        ({"factors": [0.0]}, "capacity factors are above 0"),
        ({"texts_per_batch": 0}, "at least one text"),
        ({"where": Where.parse("position=99:")}, "no token matches"),
    ):
        with pytest.raises(BadData, match=message):
            capacity_drops(trace, **options)
    sampled = make_trace(tmp_path / "s", sample=0.5, header={"seed": 0})
    with pytest.raises(BadData, match="a sample of its tokens"):
        capacity_drops(sampled)
