"""Simulated caches: the specification's golden values, traces worked by hand, a plain simulator, and what must hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cache_reference import hits_of
from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.place import CAUSAL, POLICIES, CacheRules, Calibration, calibrate, simulate
from moeworks.place.cache import run_events
from moeworks.place.events import Events
from moeworks.place.rules import Policy
from moeworks.where import Where

GOLDEN = [(0, 1), (0, 2), (1, 2), (0, 1), (3, 0), (3, 2), (1, 2), (0, 3)]
# a b c a d a b: with two places every policy below decides differently somewhere.
LETTERS = [[0], [1], [2], [0], [3], [0], [1]]


def events_of(
    steps: Sequence[Sequence[int]],
    experts: int,
    *,
    fresh: Sequence[bool] | None = None,
    layers: int = 1,
) -> Events:
    """Return events as a cache sees them; with layers, event i is of layer i mod layers and ids are pooled ones."""
    count = len(steps)
    new = [i == 0 for i in range(count)] if fresh is None else [i == 0 or new for i, new in enumerate(fresh)]
    return Events(
        experts=np.array([x for step in steps for x in step], np.int32),
        starts=np.concatenate([[0], np.cumsum([len(step) for step in steps])]).astype(np.int64),
        unit=np.arange(count, dtype=np.int32),
        layer=(np.arange(count) % layers).astype(np.int32),
        fresh=np.array(new),
        home=np.repeat(np.arange(layers, dtype=np.int32), experts),
        base=(np.arange(layers) * experts).astype(np.int64),
        units=count,
        per_step=layers,
    )


def known(runs: Sequence[int]) -> Calibration:
    return Calibration((np.array(runs),), np.zeros((1, len(runs), len(runs)), np.float32), 16, 1)


def hits(steps: Sequence[Sequence[int]], experts: int, policy: Policy, held: int, **rules: Any) -> list[int]:
    """Return the hits of each event."""
    found, _ = run_events(events_of(steps, experts), policy, (held,), rules=CacheRules(**rules))
    return [int(n) for n in found[:, 0]]


@pytest.mark.parametrize(
    ("lookahead", "rates"),
    [
        (2, [0.1875, 0.5625, 0.8125, 1.0]),
        (4, [0.1875, 0.4375, 0.8125, 1.0]),
        (8, [0.1875, 0.5, 0.8125, 1.0]),
    ],
)
def test_sch_golden_values(lookahead: int, rates: list[float]) -> None:
    """Made with the published functions: 8 tokens, 2 of 4 experts, capacities 1 to 4."""
    for held, rate in zip((1, 2, 3, 4), rates, strict=True):
        found = hits(GOLDEN, 4, "sch", held, pin=False, cold="hit", lookahead=lookahead)
        assert sum(found) / 16 == rate


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # places 2; accesses a b c a d a b
        ("lru", [0, 0, 0, 0, 0, 1, 0]),  # ab, bc, ca (a missed), ad, then a is there, b is not
        ("lfu", [0, 0, 0, 0, 0, 1, 0]),  # counts 1 1 1: oldest goes; a has 2 when d comes, so c goes
        ("belady", [0, 0, 0, 1, 0, 1, 1]),  # c and d are never used again and are not kept
        ("belady_forced", [0, 0, 0, 1, 0, 1, 0]),  # c takes b's place (b is used last), d takes c's
    ],
)
def test_single_accesses_by_hand(policy: Policy, expected: list[int]) -> None:
    assert hits(LETTERS, 4, policy, 2) == expected


def test_lfu_keeps_what_was_used_often_and_lru_does_not() -> None:
    """a a a b c a: LFU drops b for c and has a; LRU has b c and misses a. LFRU: a 3 uses/3 events, b 1/2: b goes."""
    steps = [[0], [0], [0], [1], [2], [0]]
    assert hits(steps, 3, "lfu", 2)[-1] == 1
    assert hits(steps, 3, "lru", 2)[-1] == 0
    assert hits(steps, 3, "lfru", 2)[-1] == 1


def test_lfru_forgets_what_was_used_long_ago() -> None:
    """a twice, then b at every step: when c comes after 3 steps of b, a has 2/4 and b 3/2; after c, d evicts c or a.

    At d (event 6): a 2 uses, last at 1: 2/6 = 0.33; c 1 use, last at 5: 1/2 = 0.5; b 3 uses, last at 4: 3/3. a goes.
    LFU would evict c (1 use).
    """
    steps = [[0], [0], [1], [1], [1], [2], [3], [0], [2]]
    assert hits(steps, 4, "lfru", 3)[-2:] == [0, 0]  # a is gone; taking a back evicts c (1/3 against 1/2 and 3/4)
    assert hits(steps, 4, "lfu", 3)[-2:] == [1, 0]


def test_lfru_counts_events_since_the_last_use_plus_one() -> None:
    """At the ninth event: 1 has 3 uses, 6 events ago: 3/7; 0 has 1 use, 1 event ago: 1/2; 2 has 4/3. So 1 goes.

    With one event more under the line 0 would go (1/3 against 3/8).
    """
    steps = [[1], [1], [1], [2], [2], [2], [2], [0], [3], [0]]
    assert hits(steps, 4, "lfru", 3)[-1] == 1


def test_fixed_holds_its_own_and_nothing_else() -> None:
    """Calibration says 2 and 0 are used most; their first use loads them."""
    events = events_of([[0], [1], [2], [0], [1], [2]], 4)
    found, _ = run_events(events, "fixed", (2,), rules=CacheRules(), calibration=known([5, 1, 9, 0]))
    assert found[:, 0].tolist() == [0, 0, 0, 1, 0, 1]
    cold, requests = run_events(events, "fixed", (2,), rules=CacheRules(cold="hit"), calibration=known([5, 1, 9, 0]))
    assert cold[:, 0].tolist() == [1, 1, 0, 1, 0, 1]  # 0 and 1 are the first two experts ever seen: free places
    assert requests[:, 0].tolist() == [1] * 6


def test_random_with_one_candidate_is_certain() -> None:
    """Two places, pinned pairs: (0,1) (0,2) evicts 1, the only one that is not needed; then 0 and 2 are there."""
    assert hits([[0, 1], [0, 2], [0, 2]], 3, "random", 2) == [0, 1, 2]


def test_random_keeps_any_with_equal_chance() -> None:
    """Even random requests hit as often as experts are held, whatever is evicted: 3 of 8."""
    rng = np.random.default_rng(5)
    steps = rng.integers(0, 8, (20_000, 1)).tolist()
    assert np.mean(hits(steps, 8, "random", 3)) == pytest.approx(3 / 8, abs=0.012)


def test_predictor_keeps_what_it_expects() -> None:
    """After 0 comes 1, says the table: when 2 needs a place, 3 goes though it is newer than 1."""
    table = np.zeros((1, 4, 4), np.float32)
    table[0, 2, 1], table[0, 2, 3] = 0.9, 0.1
    events = events_of([[1], [3], [2], [1], [3]], 4)
    calibration = Calibration((np.ones(4),), table, 16, 1)
    found, _ = run_events(events, "predictor", (2,), rules=CacheRules(), calibration=calibration)
    assert found[:, 0].tolist() == [0, 0, 0, 1, 0]


def test_least_stale_evicts_layers_whose_turn_is_over() -> None:
    """Two layers of 2 experts (0 1 and 2 3), three places, tokens (0,2) (1,3) (0,2) (1,3).

    When 1 comes (layer 0), 0 is stale and 2, of layer 1, is still to come: 0 goes. LRU evicts the same here. When 3
    comes (layer 1), all layers had their turn: the oldest, 2, goes.
    """
    steps = [[0], [2], [1], [3], [0], [2]]
    events = events_of(steps, 2, layers=2)
    found, _ = run_events(events, "least_stale", (2, 1), rules=CacheRules(scope="pooled"))
    # held: 0 | 0 2 | 0 2 1 | full: 3 evicts 0 (oldest, stale) -> 3 2 1 | 0 evicts 1 (layer 0; 2, 3 to come) | 2 hits
    assert found.sum(1).tolist() == [0, 0, 0, 0, 0, 1]
    lru, _ = run_events(events, "lru", (2, 1), rules=CacheRules(scope="pooled"))
    assert lru.sum(1).tolist() == [0, 0, 0, 0, 0, 0]


def test_pinning_protects_the_event() -> None:
    """Two places hold 0 1; the event (2, 0) needs 0: pinned, 1 goes; taken one by one, 2 evicts 0 and 0 then 1."""
    assert hits([[0, 1], [2, 0], [2, 0]], 3, "lru", 2) == [0, 1, 2]
    assert hits([[0, 1], [1, 0], [2, 1], [2, 1]], 3, "lru", 2, pin=False) == [0, 2, 1, 2]


def test_more_than_fits_streams_through() -> None:
    """Three experts, two places: the first two are kept, the third is used and not kept."""
    assert hits([[0, 1, 2], [0, 1, 2]], 3, "lru", 2) == [0, 2]


def test_forced_belady_keeps_the_soonest_of_too_many() -> None:
    assert hits([[0, 1, 2], [2], [2, 1]], 3, "belady_forced", 2) == [0, 1, 2]
    assert hits([[0, 1, 2], [2], [2, 1]], 3, "lru", 2) == [0, 0, 2]


def test_cold_rules() -> None:
    """0 1 2 0 with two places: the first two fill free places, 2 does not."""
    events = events_of([[0], [1], [2], [0]], 3)
    for cold, expected in (("miss", (0, 4)), ("hit", (2, 4)), ("skip", (0, 2))):
        found, requests = run_events(events, "lru", (2,), rules=CacheRules(cold=cold))
        assert (int(found.sum()), int(requests.sum())) == expected


def test_bypass_leaves_out_the_rarely_used() -> None:
    """LFU with bypass: 2 (one use) does not displace 0 or 1 (two uses each)."""
    steps = [[0, 1], [0, 1], [2], [0, 1]]
    assert hits(steps, 3, "lfu", 2, bypass=True) == [0, 2, 0, 2]
    assert hits(steps, 3, "lfu", 2) == [0, 2, 0, 1]


steps_strategy = st.integers(1, 3).flatmap(
    lambda most: st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=most, unique=True), min_size=1, max_size=40)
)
DETERMINED: tuple[Policy, ...] = ("fixed", "lru", "lfu", "lfru", "sch", "belady", "belady_forced")


@settings(max_examples=300, deadline=None)
@given(
    steps=steps_strategy,
    held=st.integers(1, 6),
    policy=st.sampled_from(DETERMINED),
    pin=st.booleans(),
    bypass=st.booleans(),
    cold=st.sampled_from(["miss", "hit", "skip"]),
    lookahead=st.integers(1, 6),
    cuts=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_equals_the_plain_simulator(
    steps: list[list[int]], held: int, policy: Policy, pin: bool, bypass: bool, cold: Any, lookahead: int, cuts: Any
) -> None:
    rules = CacheRules(pin=pin, bypass=bypass, cold=cold, lookahead=lookahead)
    fresh = cuts[: len(steps)]
    runs = [3, 9, 1, 7, 7, 2]
    resident = frozenset(sorted(range(6), key=lambda e: (-runs[e], e))[:held])
    expected = hits_of(steps, policy, held, rules=rules, fresh=fresh, resident=resident)
    found = run_events(events_of(steps, 6, fresh=fresh), policy, (held,), rules=rules, calibration=known(runs))
    assert [(int(h), int(r)) for h, r in zip(*(one[:, 0] for one in found), strict=True)] == expected


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True), min_size=3, max_size=3),
        min_size=1,
        max_size=12,
    ),
    held=st.integers(2, 9),
    policy=st.sampled_from(["lru", "lfu", "least_stale", "sch", "belady", "belady_forced"]),
)
def test_a_pool_equals_the_plain_simulator(tokens: list[list[list[int]]], held: int, policy: Policy) -> None:
    """Three layers of four experts in one pool."""
    rules = CacheRules(scope="pooled", lookahead=2)
    steps = [[x + 4 * layer for x in chosen] for token in tokens for layer, chosen in enumerate(token)]
    layer = [i % 3 for i in range(len(steps))]
    home = [e // 4 for e in range(12)]
    expected = hits_of(steps, policy, held, rules=rules, layer=layer, home=home, window=6)
    found, _ = run_events(events_of(steps, 4, layers=3), policy, (held, 0, 0), rules=rules)
    assert found.sum(1).tolist() == [hit for hit, _ in expected]
    assert np.array_equal(found.argmax(1)[found.sum(1) > 0], np.array(layer)[found.sum(1) > 0])


@settings(max_examples=300, deadline=None)
@given(
    steps=steps_strategy,
    held=st.integers(1, 5),
    policy=st.sampled_from([policy for policy in CAUSAL if policy not in ("predictor", "least_stale")]),
    pin=st.booleans(),
    bypass=st.booleans(),
    cold=st.sampled_from(["miss", "hit", "skip"]),
)
def test_belady_is_never_beaten(
    steps: list[list[int]], held: int, policy: Policy, pin: bool, bypass: bool, cold: Any
) -> None:
    """The bound holds under all rules; the forced one for pinned events and policies that keep every newcomer."""
    rules = CacheRules(pin=pin, bypass=bypass, cold=cold)
    events = events_of(steps, 6)

    def total(name: Policy) -> int:
        return int(run_events(events, name, (held,), rules=rules, calibration=known([1, 2, 3, 4, 5, 6]))[0].sum())

    assert total("belady") >= total(policy)
    assert total("belady") >= total("belady_forced")
    if pin and not bypass and policy != "fixed":
        assert total("belady_forced") >= total(policy)


TEXTS = [
    Text({}, {0: [[0, 1], [0, 2], [1, 2], [0, 1]], 3: [[1, 0], [2, 3], [1, 0], [2, 3]]}, document="a"),
    Text({}, {0: [[3, 0], [3, 2]], 3: [[0, 1], [0, 1]]}, document="b"),
    Text({}, {0: [[1, 2], [0, 3], [0, 1]], 3: [[2, 3], [2, 3], [1, 2]]}, document="b"),
]


def test_a_trace_gives_the_events_by_hand(tmp_path: Any) -> None:
    """Per layer, text after text: the golden trace up to its eighth token; hits go to the document of the text."""
    trace = write_texts(tmp_path / "t", TEXTS, experts=(4, 4))
    (counts,) = simulate(trace, ["lru"], capacities=["3"], where=Where(layer=(0,)))
    steps = [step for text in TEXTS for step in text.ids[0]]
    expected = hits_of(steps, "lru", 3, rules=CacheRules())
    assert counts.hits[:, 0].tolist() == [sum(h for h, _ in expected[:4]), sum(h for h, _ in expected[4:])]
    assert counts.requests[:, 0].tolist() == [8, 10]
    assert counts.misses_per_token[0] == pytest.approx((18 - sum(h for h, _ in expected)) / 9)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "least_stale"])
@pytest.mark.parametrize("rules", [CacheRules(), CacheRules(batch=3, prefill="pass"), CacheRules(scope="pooled")])
def test_parts_make_no_difference(tmp_path: Any, policy: Policy, rules: CacheRules) -> None:
    """One file of rows, or one for each row or two."""
    options: dict[str, Any] = {"requests": 7, "rows_per_request": (5, 9), "generated": 3, "topic": 1.0}
    whole = make_trace(tmp_path / "whole", **options)
    parts = make_trace(tmp_path / "parts", part_bytes=1, **options)
    assert len(parts.parts) > len(whole.parts)
    calibration = calibrate(whole, rules)
    again = calibrate(parts, rules)
    assert np.array_equal(calibration.tables, again.tables)
    first, second = (
        simulate(trace, [policy], rules=rules, calibration=known_, seed=3)[0]
        for trace, known_ in ((whole, calibration), (parts, again))
    )
    assert np.array_equal(first.hits, second.hits)
    assert np.array_equal(first.requests, second.requests)


def test_a_batch_merges_its_texts(tmp_path: Any) -> None:
    """Two texts of 2 tokens and 1 together: events are the unions {0,1,3} (0 and 3 first), {0,2}."""
    texts = [Text({}, {0: [[0, 1], [0, 2]]}), Text({}, {0: [[3, 0]]})]
    trace = write_texts(tmp_path / "t", texts, experts=(4,))
    (counts,) = simulate(trace, ["lru"], rules=CacheRules(batch=2, capacity="4"))
    assert counts.requests.sum() == 5
    assert counts.hits.sum() == 1  # 0, at the second step


def test_prefill_as_one_pass_or_not_at_all(tmp_path: Any) -> None:
    """Prompt (0,1) (0,2), then (1,2): in one pass three experts are asked for at once, then both are there."""
    texts = [Text({}, {0: [[0, 1], [0, 2], [1, 2]]}, generated=1)]
    trace = write_texts(tmp_path / "t", texts, experts=(4,))
    found = {}
    for prefill in ("tokens", "pass", "bypass"):
        (counts,) = simulate(trace, ["lru"], rules=CacheRules(prefill=prefill, capacity="4"))
        found[prefill] = (int(counts.hits.sum()), int(counts.requests.sum()), counts.tokens)
    assert found == {"tokens": (3, 6, 3), "pass": (2, 5, 3), "bypass": (0, 2, 1)}


def test_a_slot_that_did_not_run_is_not_asked_for(tmp_path: Any) -> None:
    texts = [Text({}, {0: [[0, 1], [0, 1]]}, {0: [[1, 0], [0.5, 0.5]]})]
    trace = write_texts(tmp_path / "t", texts, experts=(4,))
    (counts,) = simulate(trace, ["lru"], capacities=["4"])
    assert (int(counts.hits.sum()), int(counts.requests.sum())) == (1, 3)


def test_starting_empty_forgets_the_last_text(tmp_path: Any) -> None:
    texts = [Text({}, {0: [[0, 1]]}), Text({}, {0: [[0, 1]]})]
    trace = write_texts(tmp_path / "t", texts, experts=(4,))
    kept, emptied = (
        int(simulate(trace, ["lru"], capacities=["2"], rules=CacheRules(between=between))[0].hits.sum())
        for between in ("keep", "empty")
    )
    assert (kept, emptied) == (2, 0)


def test_what_follows_is_counted_by_hand(tmp_path: Any) -> None:
    """0 then 1 then 0 with one of two experts: after 0, within 2 tokens, 1 once and 0 once; then nothing."""
    trace = write_texts(tmp_path / "t", [Text({}, {0: [[0], [1], [0]]})], experts=(2,))
    calibration = calibrate(trace, CacheRules(lookahead=2))
    assert calibration.runs[0].tolist() == [2, 1]
    assert calibration.tables[0].tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_what_cannot_be_is_refused(tmp_path: Any) -> None:
    trace = make_trace(tmp_path / "t")
    for arguments, message in (
        ({"policies": ["lru"], "capacities": ["9"]}, "larger than layer 0, which has 8"),
        ({"policies": ["lru"], "capacities": ["many"]}, "no capacity"),
        ({"policies": ["lur"]}, "did you mean 'lru'"),
        ({"policies": ["fixed"]}, "learns from other documents"),
        ({"policies": ["least_stale"]}, "scope=pooled"),
        ({"policies": ["lru"], "capacities": ["1GB"]}, "bytes of one expert"),
        ({"policies": ["lru"], "rules": CacheRules(prefill="bypass")}, "prompts alone"),
    ):
        with pytest.raises(BadData, match=message):
            simulate(trace, **arguments)
    with pytest.raises(BadData, match="cold cannot be"):
        CacheRules(cold="warm")


def test_capacities(tmp_path: Any) -> None:
    trace = make_trace(tmp_path / "t", experts=(8, 16), top_k=(2, 3))
    words = ["4", "2k", "50%", "600kB"]
    found = simulate(trace, ["lru"], capacities=words, expert_bytes=100_000)
    assert [one.held for one in found] == [(4, 4), (4, 6), (4, 8), (3, 3)]


def test_every_policy_has_a_number() -> None:
    from moeworks.place.cache import _CODES

    assert set(_CODES) == set(get_args(Policy))
    assert len(set(_CODES.values())) == len(_CODES)


def test_sch_equals_the_statistic_of_the_same_name(tmp_path: Any) -> None:
    """`stats.sch_rolling` was written apart from this, for all sizes at once; texts start with an empty cache there."""
    from moeworks.stats.sch import sch_rolling

    trace = make_trace(tmp_path / "t", requests=6, rows_per_request=(20, 31), topic=1.0)
    table = sch_rolling(trace, segments=(4,), capacities=(1, 1.5, 2, 3), bootstrap=5)
    shown = {(row["layer"], row["capacity"]): row["hit_rate"] for row in table.to_pylist()}
    rules = CacheRules(pin=False, cold="hit", between="empty", lookahead=4)
    for held in (2, 3, 4, 6):
        (counts,) = simulate(trace, ["sch"], rules=rules, capacities=[str(held)])
        rates = counts.hits.sum(0) / counts.requests.sum(0)
        for place, layer in enumerate((0, 1)):
            assert rates[place] == pytest.approx(shown[layer, held])
