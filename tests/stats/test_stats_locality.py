"""SRP, SCH, chunk sparsity and reuse: golden values, plain simulations, hand-worked numbers, nulls."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData, MissingExtra
from moeworks.stats import chunk_sparsity, reuse_distance, sch_rolling, sch_static, srp
from moeworks.stats.compiled import compiled
from moeworks.stats.documents import blocks_of_documents
from moeworks.stats.kernels import count_hits, count_ranks, count_reuse, count_windows
from moeworks.stats.srp import best_segment_router
from moeworks.stats.stretches import stretches_of
from moeworks.where import Where

GOLDEN = [(0, 1), (0, 2), (1, 2), (0, 1), (3, 0), (3, 2), (1, 2), (0, 3)]
ONE = np.array([0])


def plain_hits(rows, ahead, capacity):
    """The published simulation, token by token, for one capacity: hits / uses."""
    cache, seen, stamp, clock, hits, uses = set(), set(), {}, 0, 0, 0
    for i, row in enumerate(rows):
        row = [e for e in row if e >= 0]
        future: dict[int, int] = {}
        for later in rows[i : i + ahead]:
            for e in later:
                future[e] = future.get(e, 0) + 1
        first = 0
        for e in row:
            uses += 1
            new = e not in seen
            hits += e in cache or (new and len(seen) + first < capacity)
            first += new
        for e in row:
            seen.add(e)
            future[e] -= 1
            clock += 1
            stamp[e] = clock
            if e not in cache:
                if len(cache) == capacity:
                    cache.remove(min(cache, key=lambda y: (future.get(y, 0), stamp[y])))
                cache.add(e)
    return hits / uses


def random_slots(seed, *, idle=0.0):
    rng = np.random.default_rng(seed)
    experts, tokens = int(rng.integers(3, 12)), int(rng.integers(3, 60))
    k = int(rng.integers(1, min(experts, 5)))
    slots = np.array([rng.permutation(experts)[:k] for _ in range(tokens)], np.int16)
    slots[rng.random(slots.shape) < idle] = -1
    slots[0, 0] = 0 if not (slots[0] == 0).any() else slots[0, 0]
    return slots, experts, int(rng.integers(1, 12))


def hits_of(slots, ahead, experts):
    counts = np.zeros((1, experts + 1), np.int64)
    compiled(count_hits)(slots, ONE, np.array([len(slots)]), ONE, ahead, counts)
    return np.cumsum(counts[0])[1:] / (slots >= 0).sum()


@pytest.mark.parametrize(
    ("ahead", "rates"),
    [(2, [0.1875, 0.5625, 0.8125, 1]), (4, [0.1875, 0.4375, 0.8125, 1]), (8, [0.1875, 0.5, 0.8125, 1])],
)
def test_sch_rolling_golden(ahead, rates, tmp_path):
    assert hits_of(np.array(GOLDEN, np.int16), ahead, 4) == pytest.approx(rates)
    trace = write_texts(tmp_path / "t", [Text({}, {0: GOLDEN})], experts=4)
    table = sch_rolling(trace, segments=[ahead], capacities=(0.5, 1, 1.5, 2)).to_pydict()
    assert table["hit_rate"] == pytest.approx(rates)
    assert table["capacity"] == [1, 2, 3, 4]
    assert table["uniform_chance"] == pytest.approx([0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("seed", range(30))
def test_sch_rolling_for_all_sizes_equals_the_plain_simulation(seed):
    slots, experts, ahead = random_slots(seed, idle=0.15 * (seed % 2))
    plain = [plain_hits(slots.tolist(), ahead, size) for size in range(1, experts + 1)]
    assert hits_of(slots, ahead, experts) == pytest.approx(plain)


def test_caches_start_anew_in_every_text_and_all_layers_may_share_one(tmp_path):
    """Two texts of the golden tokens have the golden rate; two equal layers in a pool are one of twice the experts."""
    texts = [Text({}, {0: GOLDEN, 1: GOLDEN}), Text({}, {0: GOLDEN, 1: GOLDEN})]
    table = sch_rolling(write_texts(tmp_path / "t", texts, experts=4, part_bytes=1), segments=[2], capacities=(1,),
                        pooled=(1, 1.25)).to_pylist()  # fmt: skip
    assert [row["hit_rate"] for row in table if row["layer"] is not None] == pytest.approx([0.5625, 0.5625])
    pool = [[*row, *(e + 4 for e in row)] for row in GOLDEN]
    plain = [plain_hits(pool, 2, size) for size in (4, 5)]
    assert [row["hit_rate"] for row in table if row["layer"] is None] == pytest.approx(plain)


def test_group_srp_golden(tmp_path):
    """Best F1, threshold and size, group and single experts."""
    trace = write_texts(tmp_path / "t", [Text({}, {0: GOLDEN})], experts=4)
    rows = srp(trace, segments=(2, 4), level="expert").to_pylist()
    group = {row["segment"]: row for row in rows if row["layer"] == 0 and row["expert"] is None}
    assert [group[2][n] for n in ("srp", "threshold", "size")] == pytest.approx([0.7778, 1, 1.5714], abs=5e-5)
    assert [group[4][n] for n in ("srp", "threshold", "size")] == pytest.approx([0.7037, 2, 1.7], abs=5e-5)
    single = {m: [row["srp"] for row in rows if row["segment"] == m and row["expert"] is not None] for m in (2, 4)}
    assert single[2] == pytest.approx([0.8, 0.7368, 0.8, 0.7692], abs=5e-5)
    assert single[4] == pytest.approx([0.75, 0.6923, 0.6667, 0.7], abs=5e-5)
    whole = [row["srp"] for row in rows if row["layer"] is None]
    assert whole == pytest.approx([0.7778, 0.7037], abs=5e-5)


def test_f1_by_threshold_golden():
    """All thresholds, not only the best one."""
    for m, expected in ((2, [0.6667, 0.7778, 0.6]), (4, [0.6667, 0.6897, 0.7037, 0.4286, 0])):
        counts = np.zeros((1, 4, m + 1), np.int64)
        compiled(count_windows)(np.array(GOLDEN, np.int16), ONE, np.array([8]), ONE, m, counts)
        windows = counts[0].sum(0)
        for a, f1 in enumerate(expected):
            on = windows[a:]
            found = 2 * (on * np.arange(a, m + 1)).sum() / (m * on.sum() + (windows * np.arange(m + 1)).sum())
            assert found == pytest.approx(f1, abs=5e-5)
        assert best_segment_router(windows).f1 == pytest.approx(max(expected), abs=5e-5)


@pytest.mark.parametrize("seed", range(10))
def test_windows_ranks_and_reuse_equal_plain_loops(seed):
    slots, experts, m = random_slots(seed, idle=0.1 * (seed % 2))
    m = min(m, len(slots))
    stop = np.array([len(slots)])
    windows, ranks = np.zeros((1, experts, m + 1), np.int64), np.zeros((1, m + 1, experts + 1), np.int64)
    compiled(count_windows)(slots, ONE, stop, ONE, m, windows)
    compiled(count_ranks)(slots, ONE, stop, ONE, m, ranks)
    plain = np.zeros_like(windows[0])
    best = np.zeros(experts + 1)
    for p in range(len(slots) - m + 1):
        f = np.bincount(slots[p : p + m][slots[p : p + m] >= 0], minlength=experts)
        plain[np.arange(experts), f] += 1
        best += np.concatenate([[0], np.cumsum(np.sort(f)[::-1])])
    assert (windows[0] == plain).all()
    sizes = np.arange(experts + 1)
    assert [float((ranks[0, 1:] * np.minimum(size, sizes)).sum()) for size in sizes] == pytest.approx(best.tolist())
    gaps, distances = np.zeros((1, len(slots) + 1), np.int64), np.zeros((1, experts + 1), np.int64)
    compiled(count_reuse)(slots, ONE, stop, ONE, gaps, distances)
    plain_gaps, plain_distances = np.zeros_like(gaps[0]), np.zeros_like(distances[0])
    recent: list[int] = []
    last: dict[int, int] = {}
    for i, row in enumerate(slots.tolist()):
        row = [e for e in row if e >= 0]
        for e in row:
            plain_gaps[i - last[e] if e in last else 0] += 1
            plain_distances[recent.index(e) + 1 if e in last else 0] += 1
        for e in row:
            last[e] = i
            recent = [e, *(other for other in recent if other != e)]
    assert (gaps[0] == plain_gaps).all()
    assert (distances[0] == plain_distances).all()


def test_kernels_in_plain_python_are_the_same():
    """What numba makes of them is what they say."""
    slots, experts, m = random_slots(4, idle=0.1)
    shapes = {count_hits: (1, experts + 1), count_windows: (1, experts, m + 1), count_ranks: (1, m + 1, experts + 1)}
    for kernel, shape in shapes.items():
        both = [np.zeros(shape, np.int64) for _ in range(2)]
        for made, counts in zip((kernel, compiled(kernel)), both, strict=True):
            made(slots, ONE, np.array([len(slots)]), ONE, m, counts)
        assert (both[0] == both[1]).all()
        assert both[0].any()


def test_static_hit_rate_by_hand(tmp_path):
    """Segments of 2: {0,1}{0,2}: 0 twice, of 4 runs the busiest has 2; and so on over 7 segments."""
    trace = write_texts(tmp_path / "t", [Text({}, {0: GOLDEN})], experts=4)
    (line,) = sch_static(trace, segments=[2], capacities=(1,)).to_pylist()
    pairs = [np.bincount([*a, *b], minlength=4) for a, b in itertools.pairwise(GOLDEN)]
    assert line["hit_rate"] == pytest.approx(sum(np.sort(f)[-2:].sum() for f in pairs) / (7 * 4))
    assert line["uses"] == 28


def test_stretches_end_where_tokens_are_left_out(tmp_path):
    """Windows of selected tokens never lead over others, or from one text into the next."""
    texts = [Text({"lang": "fr"}, {0: [[0], [0], [1], [0], [0]]}, generated=0), Text({"lang": "en"}, {0: [[1], [1]]})]
    trace = write_texts(tmp_path / "t", texts, experts=2)
    found = stretches_of(trace, Where.parse("!token=2"))
    assert [found.start.tolist(), found.stop.tolist()] == [[0, 2, 4], [2, 4, 6]]
    (line, _) = srp(trace, segments=(2,), where=Where.parse("!token=2")).to_pylist()
    assert (line["windows"], line["srp"]) == (2 * 3, 1.0)  # every segment of two is one expert's
    labelled = stretches_of(trace, Where(), label="lang")
    assert labelled.values == ("en", "fr")
    assert labelled.value.tolist() == [1, 0]


def test_samples_are_whole_documents_and_say_how_many(tmp_path):
    trace = make_trace(tmp_path / "t", requests=30, rows_per_request=20, part_bytes=4000)
    (line, *_) = srp(trace, segments=(4,), sample=100).to_pylist()
    assert (line["tokens"], line["documents"], line["windows"]) == (100, 5, 5 * 17 * 8)
    block, count = blocks_of_documents(np.ones(130, bool), seed=0)
    assert count == 64
    assert set(np.bincount(block)) == {2, 3}


def test_chunk_sparsity_by_hand(tmp_path):
    """Unions of chunks of two: {0,1,2}, {0,1,2}, {0,2,3}, {0,1,2,3}: 1 - 13 / 16; TLS 1 - 2 / 4."""
    trace = write_texts(tmp_path / "t", [Text({}, {0: GOLDEN[:5]}), Text({}, {0: GOLDEN[5:]})], experts=4)
    one, two = chunk_sparsity(trace, chunks=(1, 2)).to_pylist()
    assert (one["sparsity"], one["chance"]) == pytest.approx((0.5, 0.5))
    assert two["sparsity"] == pytest.approx(1 - 13 / 16)
    assert two["chance"] == pytest.approx(0.25)
    assert two["load_chance"] == pytest.approx(np.mean([(1 - n / 8) ** 2 for n in (5, 4, 4, 3)]))
    apart = chunk_sparsity(trace, chunks=(2,), cut="texts").to_pylist()[0]
    assert (apart["chunks"], apart["sparsity"]) == (3, pytest.approx(1 - (3 + 3 + 3) / 12))


def test_slots_that_did_not_run_do_not_count(tmp_path):
    """The second slot of every token has weight 0: TLS is 3 / 4, and expert 3 is never in memory."""
    text = Text({}, {0: [[0, 3], [0, 3], [1, 3], [0, 3]]}, {0: [[1, 0]] * 4})
    trace = write_texts(tmp_path / "t", [text], experts=4)
    assert chunk_sparsity(trace, chunks=(1, 4))["sparsity"].to_pylist() == pytest.approx([0.75, 0.5])
    assert sch_rolling(trace, segments=(4,), capacities=(1,))["uses"].to_pylist() == [4]
    (line,) = reuse_distance(trace).to_pylist()
    assert (line["uses"], line["first_uses"], line["gap"]) == (4, 0.5, 1)


def test_independent_tokens_are_at_chance_and_alike_ones_above_it(tmp_path):
    """Null: intervals hold chance; texts with experts of their own lie above it."""
    alone = make_trace(tmp_path / "alone", requests=40, rows_per_request=64)
    alike = make_trace(tmp_path / "alike", requests=40, rows_per_request=64, topic=1.5)
    for line in srp(alone, segments=(8,)).to_pylist():
        assert line["low"] - 0.01 <= line["chance"] <= line["high"] + 0.01
    assert all(line["low"] > line["chance"] + 0.05 for line in srp(alike, segments=(8,)).to_pylist())
    for function, rate in ((sch_rolling, "hit_rate"), (sch_static, "hit_rate")):
        for line in function(alone, segments=(8,), capacities=(1.5,)).to_pylist():
            assert line[rate] == pytest.approx(line["chance"], abs=0.02)
        assert all(
            line["low"] > line["chance"] for line in function(alike, segments=(8,), capacities=(1.5,)).to_pylist()
        )
    for line in reuse_distance(alone).to_pylist():
        assert line["distance"] == pytest.approx(line["distance_chance"], rel=0.03)
    assert all(line["distance_high"] < line["distance_chance"] for line in reuse_distance(alike).to_pylist())
    for line in chunk_sparsity(alone, chunks=(4,)).to_pylist():
        assert line["low"] - 0.01 <= line["load_chance"] <= line["high"] + 0.01


def test_without_numba_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"needs numba; install it with: pip install 'moeworks\[fast\]'"):
            srp(make_trace(tmp_path / "t"), segments=(4,))
        assert chunk_sparsity(make_trace(tmp_path / "u"), chunks=(2,)).num_rows == 2  # numpy is enough
    finally:
        compiled.cache_clear()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (srp, {"segments": (0,)}, "lengths are whole numbers"),
        (srp, {"segments": (500,)}, "the longest text has 10 neighbouring tokens, a segment 500"),
        (srp, {"level": "head"}, "by layer or by expert"),
        (srp, {"label": "lang"}, "no request has a label 'lang'"),
        (sch_rolling, {"capacities": (0,)}, "above 0"),
        (sch_static, {"segments": (500,)}, "no text has 500"),
        (chunk_sparsity, {"chunks": (500,)}, "no chunk of 500 tokens"),
        (chunk_sparsity, {"cut": "words"}, "joined, or from texts"),
        (srp, {"sample": -1}, "is no number of tokens"),
    ],
)
def test_bad_options(tmp_path, function, options, message):
    with pytest.raises(BadData, match=message):
        function(make_trace(tmp_path / "t"), **options)
