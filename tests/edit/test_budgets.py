"""Layer budgets and the rules of plans, against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.cuts import layer_of, shape_of
from moeworks.address import Address
from moeworks.edit.budgets import BUDGETS, Constraints, dropped, hamilton, proportional, target
from moeworks.errors import BadPlan


def rules(*shapes, uneven: bool = True, **more) -> Constraints:
    return Constraints(shapes=tuple(shapes), uneven=uneven, **more)


def counts(budget: str, keep: float, constraints: Constraints, scores=None, **options) -> list[int]:
    return BUDGETS.get(budget)(None if scores is None else np.array(scores), keep, constraints, **options).tolist()


FOUR = [shape_of(layer, experts=8, top_k=1) for layer in range(4)]
GROUPED = {"groups": 4, "groups_kept": 2, "score": "sigmoid", "renormalise": True}


@pytest.mark.parametrize(
    ("experts", "keep", "gone"),
    [(8, 0.5, 4), (10, 0.9, 1), (10, 0.75, 2), (128, 0.7, 38), (7, 0.5, 3), (3, 0.9, 0), (60, 0.95, 3), (8, 1.0, 0)],
)
def test_so_many_go_as_in_reap(experts: int, keep: float, gone: int) -> None:
    """int(E × ratio): 10 × 0.1 is 1 although 1 - 0.9 is 0.0999…; 2.5 → 2, 38.4 → 38, 3.5 → 3, 0.3 → 0, 3.0 → 3."""
    assert dropped(experts, keep) == gone


@pytest.mark.parametrize("keep", [0, -0.1, 1.1])
def test_a_share_is_a_share(keep: float) -> None:
    with pytest.raises(BadPlan, match="share"):
        dropped(8, keep)


def test_hamilton_gives_places_to_the_largest_remainders() -> None:
    # floors 1, 2, 3 = 6; one place left, remainders .2 .7 .1
    assert hamilton([1.2, 2.7, 3.1], 7, [9, 9, 9]).tolist() == [1, 3, 3]


def test_hamilton_breaks_ties_by_the_earlier_layer() -> None:
    assert hamilton([1.5, 1.5, 1.5, 1.5], 6, [9] * 4).tolist() == [2, 2, 1, 1]
    # 0.1 + 0.2 and 0.3 differ in the 17th digit alone
    assert hamilton([1 + (0.1 + 0.2), 1.3, 1.4], 4, [9] * 3).tolist() == [1, 1, 2]
    assert hamilton([1.3, 1 + (0.1 + 0.2), 0.4], 3, [9] * 3).tolist() == [1, 1, 1]
    assert hamilton([1.3, 1 + (0.1 + 0.2), 0.4], 4, [9] * 3).tolist() == [2, 1, 1]


def test_hamilton_respects_caps_and_sums() -> None:
    assert hamilton([2.9, 1.4, 1.7], 6, [2, 9, 9]).tolist() == [2, 2, 2]
    assert hamilton([2, 2], 4, [9, 9]).tolist() == [2, 2]
    with pytest.raises(BadPlan, match="proportions"):
        hamilton([1.0, 1.0], 9, [9, 9])


def test_uniform_rounds_up_to_multiples_and_leaves_the_rest_to_the_rules() -> None:
    wide = [shape_of(layer, experts=60, top_k=4) for layer in range(2)]
    assert counts("uniform", 0.75, rules(*wide)) == [45, 45]
    assert counts("uniform", 0.75, rules(*wide, multiple_of=8)) == [48, 48]
    assert counts("uniform", 0.75, rules(*wide, multiple_of=8, expert_parallel=3)) == [48, 48]
    assert counts("uniform", 0.75, rules(*wide, expert_parallel=10)) == [50, 50]
    assert counts("uniform", 0.99, rules(*wide, multiple_of=8)) == [60, 60]  # nothing goes, nothing is asked


def test_group_equal_drops_as_many_from_each_group() -> None:
    grouped = [shape_of(0, experts=16, top_k=2, **GROUPED)]
    assert counts("uniform", 0.6, rules(*grouped)) == [10]  # int(6.4) = 6 go, which four groups cannot share
    assert counts("group_equal", 0.6, rules(*grouped)) == [8]  # round(6 / 4) = 2 of each (half to even)
    assert counts("group_equal", 0.7, rules(*grouped)) == [12]  # round(4 / 4)
    assert counts("group_equal", 0.6, rules(*FOUR[:1])) == counts("uniform", 0.6, rules(*FOUR[:1]))


def test_global_takes_the_best_of_all_layers_above_the_floors() -> None:
    # shares: layer 0: .4 .3 .2 .1, layer 1: .7 .1 .1 .1 — half of 8: floors .4 and .7, then .3 and .2
    two = [shape_of(layer, experts=4, top_k=1) for layer in range(2)]
    scores = [[4.0, 3.0, 2.0, 1.0], [700.0, 100.0, 100.0, 100.0]]
    assert counts("global", 0.5, rules(*two), scores) == [3, 1]
    assert counts("global", 0.5, rules(*two), scores, normalise="max") == [3, 1]
    # two protected experts of layer 1 take their places in any case, and the one left goes to .7
    assert counts("global", 0.5, rules(*two, protected=(Address(1, 2), Address(1, 3))), scores) == [1, 3]
    # ties of .1: the earlier layer first
    assert counts("global", 0.7, rules(*two), scores) == [4, 2]  # int(2.4) go, 6 stay: .3 .2 .1 | .1


def test_coverage_is_the_smallest_prefix_of_a_common_share() -> None:
    # layer 0 covers .5 .8 .9 1, layer 1 covers .9 .94 .98 1; 4 of 8: a share in (.8, .9] takes 3 + 1
    two = [shape_of(layer, experts=4, top_k=1) for layer in range(2)]
    scores = [[5.0, 3.0, 1.0, 1.0], [0.90, 0.04, 0.04, 0.02]]
    assert counts("coverage", 0.4, rules(*two), scores) == [3, 1]  # int(4.8) go, 4 stay
    assert counts("coverage", 0.4, rules(*two), scores[::-1]) == [1, 3]
    assert counts("coverage", 0.625, rules(*two), scores) == [4, 1]  # 5: share .9 … 0.9 + → 4 + 1
    assert counts("coverage", 0.25, rules(*two), scores) == [1, 1]
    assert counts("coverage", 1.0, rules(*two), scores) == [4, 4]


def test_coverage_gives_what_a_tie_leaves_over_to_the_layer_that_covers_least() -> None:
    # .9 …, .5 .8 …, .5 .8 …: up to .8 they take 1 2 2, above it 1 3 3; the sixth place goes to the first that covers .8
    three = [shape_of(layer, experts=4, top_k=1) for layer in range(3)]
    scores = [[0.90, 0.05, 0.03, 0.02], [5.0, 3.0, 1.0, 1.0], [5.0, 3.0, 1.0, 1.0]]
    assert counts("coverage", 0.5, rules(*three), scores) == [1, 3, 2]


def test_coverage_hits_the_rate_where_experts_are_worth_nothing() -> None:
    two = [shape_of(layer, experts=4, top_k=1) for layer in range(2)]
    assert counts("coverage", 0.75, rules(*two), [[1.0, 0, 0, 0], [1.0, 1.0, 1.0, 1.0]]) == [2, 4]
    assert counts("coverage", 0.75, rules(*two), [[-1.0, 1.0, 0, 0], [0.0, 0, 0, 0]]) == [4, 2]


def test_proportional_clips_between_floor_and_all() -> None:
    # 16 places, weights 1 1 1 9: c × 9 is cut off at 8, the others share 8 → 8/3 each = 2.67 → 3 3 2
    assert proportional([1, 1, 1, 9], 16, rules(*FOUR)).tolist() == [3, 3, 2, 8]
    # no divergence anywhere: alike
    assert proportional([0, 0, 0, 0], 16, rules(*FOUR)).tolist() == [4, 4, 4, 4]
    # floor 2 holds where the weight says 0: 14 left for 1 and 3 → 3.5, 10.5 → cut off at 8 → 6
    wide = [shape_of(layer, experts=8, top_k=2) for layer in range(3)]
    assert proportional([0, 1, 3], 16, rules(*wide)).tolist() == [2, 6, 8]
    with pytest.raises(BadPlan, match="need 6 at least"):
        proportional([1, 1, 1], 5, rules(*wide))


def test_proportional_in_multiples() -> None:
    # 18 places in steps of 4 are 4 steps of at most 2: weights 1 1 2 → 1 1 2 steps
    three = [shape_of(layer, experts=8, top_k=2) for layer in range(3)]
    assert proportional([1, 1, 2], 18, rules(*three, multiple_of=4)).tolist() == [4, 4, 8]


def js(p: list[float], q: list[float]) -> float:
    """Return the divergence by its definition: mean Kullback–Leibler to the middle."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return sum(a * math.log(a / m) / 2 for side in (p, q) for a, m in zip(side, middle, strict=True) if a > 0)


def test_divergence_gives_more_where_labels_part() -> None:
    four = [shape_of(layer, experts=4, top_k=1) for layer in range(3)]
    gates = [
        ([1.0, 1, 1, 1], [2.0, 2, 2, 2]),  # alike: floor 1
        ([3.0, 1, 0, 0], [1.0, 3, 0, 0]),
        ([2.0, 1, 1, 0], [0.0, 1, 1, 2]),
    ]
    layers = [
        layer_of(n, labels=["fr", "en"], tokens=[4, 8], gate=[a, b], count=[a, b]) for n, (a, b) in enumerate(gates)
    ]
    first = js([0.75, 0.25], [0.25, 0.75])
    second = js([0.5, 0.25, 0.25, 0], [0, 0.25, 0.25, 0.5])
    # half of 12: 1 for the layer without difference, 5 for the others in proportion (1.37 and 3.63)
    share = 5 * first / (first + second)
    assert 1.3 < share < 1.5
    found = counts("divergence", 0.5, rules(*four), statistics=layers, label="fr", against="en")
    assert found == [1, 1, 4]
    with pytest.raises(BadPlan, match="two values"):
        counts("divergence", 0.5, rules(*four), statistics=layers, label="fr")


def test_trapezoid_rises_with_depth() -> None:
    # keep 4 of 8 on average; slope .25: 3, 3.67, 4.33, 5 → floors 3 3 4 5, the place left to .67
    assert counts("trapezoid", 0.5, rules(*FOUR), slope=0.25) == [3, 4, 4, 5]
    assert counts("trapezoid", 0.5, rules(*FOUR), slope=-0.25) == [5, 4, 4, 3]
    assert sum(counts("trapezoid", 0.7, rules(*FOUR))) == target(rules(*FOUR), 0.7)
    with pytest.raises(BadPlan, match="slope"):
        counts("trapezoid", 0.5, rules(*FOUR), slope=1)


def test_every_broken_rule_is_one_sentence_all_at_once() -> None:
    grouped = shape_of(3, experts=16, top_k=6, **GROUPED)
    plain = shape_of(1, experts=8, top_k=2)
    constraints = Constraints(
        shapes=(plain, grouped),
        protected=(Address(1, 0), Address(1, 1), Address(1, 2), Address(3, 40)),
        multiple_of=4,
        expert_parallel=3,
    )
    found = constraints.problems([1, 10])
    text = " ".join(found)
    for part in (
        "The protected expert L3.E40 does not exist.",
        "Layer 1 would keep 1 experts and its router chooses 2",
        "Layer 1 would keep 1 experts and 3 are protected",
        "Layer 1 would keep 1 experts, no multiple of 4",
        "Layer 1 would keep 1 experts, no multiple of 3 (devices)",
        "Layer 3 would keep 10 experts and 2 of its 4 groups have to hold 6; keep at least 12 of 16.",
        "Layer 3 would keep 10 experts in 4 groups, which have to be equal; use the budget group_equal",
        "Layers would keep unequal numbers (1, 10 experts)",
    ):
        assert part in text
    assert all(sentence.endswith(".") for sentence in found)
    with pytest.raises(BadPlan, match=f"{len(found)} problems"):
        constraints.check([1, 10])
    assert Constraints(shapes=(plain,)).problems([2]) == []


def test_groups_need_two_for_their_best_two() -> None:
    by_two, by_best = (shape_of(0, experts=16, top_k=2, **GROUPED, group_score=s) for s in ("top_2_sum", "max"))
    assert "its best two" in " ".join(Constraints(shapes=(by_two,)).problems([4]))
    assert Constraints(shapes=(by_best,)).problems([4]) == []
    # two protected experts in one group of four: every group keeps two
    crowded = Constraints(shapes=(by_best,), protected=(Address(0, 4), Address(0, 5)))
    assert "2 are protected, up to 2 in one group; keep at least 8 of 16" in " ".join(crowded.problems([4]))
    assert crowded.floor(0) == 8


def test_layers_that_stay_whole_make_a_model_uneven() -> None:
    hashed = shape_of(0, experts=8, top_k=2, hashed=True)
    plain = shape_of(1, experts=8, top_k=2)
    assert "Layers 0 would stay whole (4, 8 experts)" in " ".join(
        Constraints(shapes=(plain,), whole=(hashed,)).problems([4])
    )
    assert Constraints(shapes=(plain,), whole=(hashed,), uneven=True).problems([4]) == []
    assert Constraints(shapes=(plain,), whole=(hashed,)).problems([8]) == []


def test_a_rule_that_nobody_knows_is_refused() -> None:
    opaque = shape_of(2).model_copy(update={"contract": None, "opaque": "it has capacity"})
    assert "rule is not known (it has capacity)" in " ".join(Constraints(shapes=(opaque,)).problems([4]))
