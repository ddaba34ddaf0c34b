"""Grid search: the plant is found on dev, the floor holds, the front is right, and held-out items are never read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helpers.plans import small
from moeworks.engines.fake import FakeEngine, neutral_examples, null_probe, planted_probe
from moeworks.errors import BadData, BadPlan
from moeworks.find import find
from moeworks.plan import load_plan, save_plan
from moeworks.probes import Probe
from moeworks.prove import Limits, evaluate
from moeworks.prove.tune import default_counts, pareto, tune
from moeworks.report.front import save_front

SIDES = {"contrast": "side=contrast", "against": "side=against"}
NEUTRAL = neutral_examples(6)


class Locked(Probe):
    """A probe whose held-out items raise when they are read."""

    def items(self, split="held_out"):
        assert split == "dev", f"{split} items were read"
        return [item for item in self.all_items if item.split == "dev"]

    def texts(self, split="find"):
        assert split != "held_out", "held-out texts were read"
        return super().texts(split)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    engine, probe = FakeEngine("single"), planted_probe(120)
    trace = engine.record(list(probe.texts("find")), tmp_path_factory.mktemp("tune") / "trace")
    return engine, find(trace, **SIDES, permutations=200, bootstrap=1), probe


def run(planted, **options):
    engine, scores, probe = planted
    options = {"neutral": NEUTRAL, "bootstrap": 50, **options}
    return tune(engine, scores, Locked(probe.header, probe.all_texts, probe.all_items), **options)


def test_the_plant_alone_is_chosen_and_held_out_is_not_read(planted):
    """All experts are offered: those beside the plant harm neutral text, the plant alone hardly does."""
    engine, _, probe = planted
    gentle = Limits(divergence=0.001)
    found = run(planted, promote=[0], demote=[1, 2, 5, 20], only_passing=False, limits=gentle, early_stop=False)
    assert found.plan.operations[0].experts == engine.planted
    assert [point.within_limits for point in found.points] == [True, False, False, False]
    assert found.points[found.chosen].demote == 1
    assert found.expected == "down"
    assert found.points[found.chosen].effect.high < 0
    evidence = evaluate(engine, found.plan, probe, neutral=NEUTRAL, doses=(), bootstrap=50, controls=3)
    assert evidence.verdict == "works"


def test_the_table_is_in_the_plan(planted, tmp_path):
    found = run(planted, promote=[0], demote=[1, 3], ops=["demote", "add"], strengths=[0.5, 2.0], only_passing=False)
    options = found.plan.provenance.options
    assert options["chosen_on"] == "planted, dev"
    assert options["chosen"] == found.chosen
    effects = [point.effect.value for point in found.points]  # all within the limits: the largest fall is taken
    assert found.chosen == int(np.argmin(effects)) != int(np.argmax(effects))
    assert [(row["op"], row.get("strength"), row["demote"]) for row in options["tried"]] == [
        ("demote", None, 1), ("demote", None, 3), ("add", 0.5, 1), ("add", 0.5, 3), ("add", 2.0, 1), ("add", 2.0, 3)
    ]  # fmt: skip
    assert options["tried"][0]["effect"] == pytest.approx(found.points[0].effect.value, abs=1e-6)
    assert len(options["tried"][0]["interval"]) == 2
    save_plan(found.plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == found.plan
    save_front(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"
    save_front(found, tmp_path / "front.svg")
    assert f"chosen: {found.points[found.chosen].demote} down, 0 up".encode() in (tmp_path / "front.svg").read_bytes()


def test_the_floor_holds_and_ends_the_search(planted):
    """With a floor between the damage of few and of many, the many are never chosen, and still more not even tried."""
    whole = run(planted, promote=[0], demote=[1, 8, 20, 30], only_passing=False, early_stop=False)
    damage = [point.divergence for point in whole.points]
    assert damage[0] < damage[1]
    floor = Limits(divergence=(damage[0] + damage[1]) / 2, perplexity=100.0)
    found = run(planted, promote=[0], demote=[1, 8, 20, 30], only_passing=False, limits=floor)
    assert [point.within_limits for point in found.points] == [True, False]
    assert (found.skipped, found.chosen) == (2, 0)
    with pytest.raises(BadPlan, match="none of 1 settings is within the limits"):
        run(planted, promote=[0], demote=[8, 20], only_passing=False, limits=floor)


def test_the_choice_goes_where_the_probe_says(planted):
    """Turning the behaviour up: the metric must rise, and the plant is promoted."""
    engine, *_ = planted
    found = run(planted, promote=[1], demote=[0], direction="up")
    assert found.expected == "up"
    assert found.plan.operations[0].op == "promote"
    assert found.plan.operations[0].experts == engine.planted


def test_counts_above_what_passes_are_all_that_pass(planted):
    passing = int(np.sum(planted[1].column("passes") & (planted[1].column("score") > 0)))
    found = run(planted, promote=[0], demote=[passing, passing + 1, 500])
    assert [point.demote for point in found.points] == [passing]


def test_a_null_offers_nothing(tmp_path):
    engine, probe = FakeEngine("none"), null_probe(60)
    trace = engine.record(list(probe.texts("find")), tmp_path / "trace")
    scores = find(trace, **SIDES, permutations=200, bootstrap=1)
    with pytest.raises(BadPlan, match="no expert passes"):
        tune(engine, scores, probe, promote=[0], demote=[1, 2], neutral=NEUTRAL)


def test_a_published_policy_is_tuned_in_its_own_way(planted):
    found = run(planted, policy="mote_off", demote=[1], strengths=[0.5])
    assert [(point.op, point.strength, point.promote) for point in found.points] == [("mask", None, 0)]
    scaled = run(planted, policy="rice", direction="up", promote=[1], strengths=[2.0, 8.0])
    assert [(point.op, point.strength) for point in scaled.points] == [("scale", 2.0), ("scale", 8.0)]


def test_the_default_grid_hand_worked():
    """48 layers of 128: 6, 12, 18 up; .5 to 8 % of 6144 is 31, 61, 123, 246, 492 down. Tiny models: at least 1."""
    assert default_counts(small(layers=48, experts=128)) == ([0, 6, 12, 18], [0, 31, 61, 123, 246, 492])
    assert default_counts(small(layers=2, experts=8)) == ([0, 1], [0, 1])


def test_the_front_hand_worked():
    """(effect, damage): (3, 2) and (1, 1) stand; (1, 2) is beaten by both, (3, 3) by the first; twins both stand."""
    assert pareto([3, 1, 1, 3], [2, 1, 2, 3]) == {0, 1}
    assert pareto([1, 1], [1, 1]) == {0, 1}


def test_what_cannot_be_searched(planted):
    with pytest.raises(BadData, match="every setting asks for no expert"):
        run(planted, promote=[0], demote=[0])
    with pytest.raises(BadData, match="numbers of experts from 0 on"):
        run(planted, promote=[-1], demote=[0])
    engine, scores, probe = planted
    bare = dataclasses.replace(probe, all_items=tuple(item for item in probe.all_items if item.split != "dev"))
    with pytest.raises(BadData, match="no dev items"):
        tune(engine, scores, bare, promote=[0], demote=[1], neutral=NEUTRAL)
