"""Unlearning by removal finds the plant and refuses what it must: nulls, broken retain sets, safety by accident."""

from __future__ import annotations

import pytest

from helpers.models import tiny_engine
from helpers.twins import twin
from moeworks.edit.plan import EditPlan
from moeworks.edit.unlearn import SideEffect, _judge, unlearn
from moeworks.engines.fake import null_examples, planted_examples
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.plan.evidence import Interval

KEEP = 15 / 16


def sides(examples):
    return {
        name: [example for example in examples if example.labels["side"] == side]
        for name, side in (("forget", "contrast"), ("retain", "against"))
    }


def test_finds_the_plant_and_gives_a_plan_with_evidence():
    engine, planted, _ = twin("single")
    found = unlearn(engine, **sides(planted_examples(44)), keep=KEEP, limit=0.1, bootstrap=200)
    assert found.verdict == "works", found.words()
    assert isinstance(found.plan, EditPlan)
    assert planted in set(found.plan.dropped())
    assert found.plan.counts == (15, 15, 15, 15)
    assert found.plan.evidence["unlearn"]["verdict"] == "works"
    assert found.plan.method == "difference"
    assert found.forget.ratio.value > max(found.forget.random)
    assert len(found.forget.random) == 19
    assert found.retain.ratio.high <= 1.1
    assert "Verdict: works" in found.words()


def test_refuses_on_a_null():
    """Both sides are plain text: whatever is dropped hurts one as much as the other."""
    engine, _, _ = twin("single")
    found = unlearn(engine, **sides(null_examples(44)), keep=KEEP, limit=10.0, bootstrap=200)
    assert found.verdict == "no better than random", found.words()
    assert found.plan is None


def test_refuses_where_the_retain_set_breaks():
    engine, _, _ = twin("single")
    found = unlearn(engine, **sides(planted_examples(44)), keep=0.5, limit=0.01, controls=3, bootstrap=200)
    assert found.plan is None
    assert found.verdict in ("breaks what is to stay", "both fail")
    assert found.retain.ratio.high > 1.01


def effect(ratio, low, high, random, excess):
    interval = Interval(value=excess, low=excess - 0.1, high=excess + 0.1)
    return SideEffect(
        texts=9, documents=9, tokens=90, before=10, after=10 * ratio,
        ratio=Interval(value=ratio, low=low, high=high), random=random, excess=interval,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("forget", "retain", "verdict"),
    [
        (effect(2, 1.8, 2.2, (1.1, 1.2), 0.5), effect(1.01, 1, 1.02, (1.1,), 0), "works"),
        (
            effect(2, 1.8, 2.2, (1.1, 2.1), 0.5),
            effect(1.01, 1, 1.02, (1.1,), 0),
            "no better than random",
        ),  # one is as good
        (effect(2, 1.8, 2.2, (1.1, 1.2), 0.05), effect(1.01, 1, 1.02, (1.1,), 0), "no better than random"),  # interval
        (effect(2, 1.8, 2.2, (1.1, 1.2), 0.5), effect(1.04, 1, 1.06, (1.1,), 0), "breaks what is to stay"),  # upper end
        (effect(2, 1.8, 2.2, (2.1,), 0.5), effect(1.04, 1, float("inf"), (1.1,), 0), "both fail"),
    ],
)
def test_verdicts(forget, retain, verdict):
    assert _judge(forget, retain, 0.05)[0] == verdict


def test_the_excess_is_the_mean_over_random_cuts_of_the_loss():
    """The interval's value against the ratios that are told."""
    import numpy as np

    engine, _, _ = twin("single")
    found = unlearn(engine, **sides(planted_examples(44)), keep=KEEP, controls=3, bootstrap=50)
    expected = np.log(found.forget.ratio.value) - np.mean(np.log(found.forget.random))
    assert found.forget.excess.value == pytest.approx(expected, rel=1e-6)


def test_a_safety_behaviour_is_weakened_only_by_name():
    engine = tiny_engine("softmax")
    with pytest.raises(BadData, match="--weakens-safety"):
        unlearn(engine, forget="probe:requests", retain=[], keep=0.5)


def test_too_few_documents():
    engine = tiny_engine("softmax")
    texts = [Example(text=f"one text of document {n % 3}", document=f"{n % 3}") for n in range(12)]
    with pytest.raises(BadData, match="verdict needs 5"):
        unlearn(engine, forget=texts, retain=texts, keep=0.5)


def test_a_share_that_takes_nothing_away():
    engine, _, _ = twin("single")
    with pytest.raises(BadData, match="takes no expert away"):
        unlearn(engine, **sides(planted_examples(44)), keep=0.99, controls=1)
