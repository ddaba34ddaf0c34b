"""Which experts become one: every method on numbers worked by hand, HC-SMoE against scipy."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.cluster.hierarchy import fcluster, linkage

from helpers.merging import random_layer, route, statistics_of
from moeworks.edit.merge import GROUPINGS, adaptive_counts, group_layer
from moeworks.edit.statistics import COLUMNS, LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadData, MoeworksError


def statistics(layer: int = 0, tokens: int = 100, **arrays: object) -> LayerStatistics:
    return LayerStatistics(
        layer=layer,
        tokens=np.array([tokens]),
        labels=("all",),
        arrays={name: np.array(array, float)[None] for name, array in arrays.items()},
    )


def gram(cosine: dict[tuple[int, int], float], lengths: list[float]) -> np.ndarray:
    """Inner products of vectors of these lengths and cosines."""
    table = np.diag(np.ones(len(lengths)))
    for (a, b), value in cosine.items():
        table[a, b] = table[b, a] = value
    return table * np.outer(lengths, lengths)


def rounded(grouping) -> tuple:
    return tuple(tuple((expert, round(share, 6)) for expert, share in group) for group in grouping.groups)


def test_m_smoe_by_hand():
    given = statistics(
        count=[10, 1, 5, 4],
        logit_gram=gram({(0, 1): 0.2, (1, 2): 0.9, (0, 3): 0.5, (2, 3): 0.1}, [2, 1, 30, 1]),
    )
    grouping = group_layer("m_smoe", given, 2)
    assert grouping.keep == (0, 2)
    assert rounded(grouping) == (((0, 0.714286), (3, 0.285714)), ((2, 0.833333), (1, 0.166667)))
    assert grouping.order == (0, 2, 3, 1)
    cut = grouping.cut(0, 4)
    assert (cut.keep, cut.groups, cut.dropped) == (grouping.keep, grouping.groups, ())


def test_m_smoe_compares_what_it_is_told_to():
    layer = random_layer(experts=3)
    layer.router[2] = 3 * layer.router[1]
    layer.router[0] = -layer.router[2]
    layer.up[2] = layer.up[0]
    layer.gate[2] = layer.gate[0]
    layer.down[2] = layer.down[0]
    given = statistics(count=[5, 4, 1], all_output_sum=[[1, 0], [0, 1], [5, 1]], logit_gram=gram({(1, 2): 1}, [1] * 3))
    for similarity, partner in (("logits", 1), ("rows", 1), ("weights", 0), ("outputs", 0)):
        grouping = group_layer("m_smoe", given, 2, weights=layer, similarity=similarity)
        assert grouping.groups is not None
        assert [expert for expert, _ in grouping.groups[partner]] == [partner, 2], similarity
    for similarity, message in (("rows", "needs the weights"), ("names", "compared by")):
        with pytest.raises(BadData, match=message):
            group_layer("m_smoe", given, 2, similarity=similarity)


def test_adaptive_counts_by_hand():
    """Usage .6 .2 .1 .1 and .3 .3 .2 .2; the first of each layer is in, then .3, then the earliest of three .2."""
    layers = [statistics(count=[6, 2, 1, 1]), statistics(1, count=[30, 30, 20, 20])]
    assert [adaptive_counts(layers, total) for total in (2, 3, 4, 5, 8)] == [(1, 1), (1, 2), (2, 2), (2, 3), (4, 4)]
    assert adaptive_counts(layers, 5, at_least=2) == (2, 3)
    assert adaptive_counts(layers, 5, at_least=1) == (2, 3)
    assert adaptive_counts([statistics(count=[1, 1]), statistics(1, count=[0, 0])], 3) == (2, 1)
    # Two experts of one layer are used more than any of the other, which still gets a centre of its own.
    steep = [statistics(count=[6, 4]), statistics(1, count=[1] * 10)]
    assert [adaptive_counts(steep, total) for total in (2, 3)] == [(1, 1), (2, 1)]
    assert adaptive_counts(steep, 4, at_least=2) == (2, 2)
    for total, at_least in ((1, 1), (9, 1), (3, 2)):
        with pytest.raises(BadData, match="not possible"):
            adaptive_counts(layers, total, at_least=at_least)
    assert GROUPINGS.get("m_smoe").layer_counts is adaptive_counts


VECTORS = np.array([[0, 0], [1, 0], [0, 1.2], [10, 10], [10, 11.5], [30, 0]])


def test_hc_smoe_is_scipys_average_linkage_on_means():
    given = statistics(count=[1, 3, 2, 5, 5, 0], all_output_sum=VECTORS * 100)
    for kept in (2, 3, 4):
        for method in ("average", "complete", "single", "ward"):
            grouping = group_layer("hc_smoe", given, kept, linkage=method)
            wanted = fcluster(linkage(VECTORS, method), kept, "maxclust")
            ours = {frozenset(expert for expert, _ in group) for group in grouping.groups or ()}
            assert ours == {frozenset(np.flatnonzero(wanted == label).tolist()) for label in set(wanted)}
    grouping = group_layer("hc_smoe", given, 3)
    assert grouping.keep == (1, 3, 5)  # the most frequent, the lower number of two alike
    assert rounded(grouping) == (((1, 0.5), (0, 0.166667), (2, 0.333333)), ((3, 0.5), (4, 0.5)), ((5, 1.0),))
    nearest = group_layer("hc_smoe", given, 3, centre="nearest")
    assert nearest.keep == (0, 3, 5)  # mean (1/3, 0.4) of the first group


def test_hc_smoe_where_linkages_differ():
    """A chain: single linkage follows it, complete linkage cuts it in the middle."""
    chain = statistics(count=[1] * 6, all_output_sum=[[0.0, 0], [1.0, 0], [2.1, 0], [3.3, 0], [4.6, 0], [6.2, 0]])
    single = group_layer("hc_smoe", chain, 2, linkage="single").groups
    complete = group_layer("hc_smoe", chain, 2, linkage="complete").groups
    assert sorted(len(group) for group in single or ()) == [1, 5]
    assert sorted(len(group) for group in complete or ()) == [2, 4]
    with pytest.raises(BadData, match="linkage is"):
        group_layer("hc_smoe", chain, 2, linkage="median")
    with pytest.raises(BadData, match="centre of a group"):
        group_layer("hc_smoe", chain, 2, centre="first")


def test_sub_moe_groups_directions():
    given = statistics(count=[1, 2, 3, 0, 0], all_output_sum=[[1, 0], [5, 0.1], [0, 2], [0.1, 9], [3, 0]])
    grouping = group_layer("sub_moe", given, 2)
    assert grouping.keep == (1, 2)
    assert rounded(grouping) == (((1, 0.666667), (0, 0.333333), (4, 0.0)), ((2, 1.0), (3, 0.0)))
    many = statistics(count=np.arange(40), all_output_sum=np.random.default_rng(0).normal(size=(40, 3)))
    assert group_layer("sub_moe", many, 9, seed=3) == group_layer("sub_moe", many, 9, seed=3)
    assert any(group_layer("sub_moe", many, 9, seed=s) != group_layer("sub_moe", many, 9) for s in range(1, 5))


def test_merge_moe_groups_by_up_and_gate():
    layer = random_layer(experts=4)
    layer.up[3], layer.gate[3] = 2 * layer.up[1], 2 * layer.gate[1]
    layer.down[3], layer.down[2] = 50 * layer.down[0], 50 * layer.down[1]  # which is not looked at
    layer.up[2], layer.gate[2] = layer.up[0] + 0.1, layer.gate[0]
    given = statistics(count=[4, 8, 2, 0])
    grouping = group_layer("merge_moe", given, 2, weights=layer)
    assert rounded(grouping) == (((0, 0.666667), (2, 0.333333)), ((1, 1.0), (3, 0.0)))
    with pytest.raises(BadData, match="compares weights"):
        group_layer("merge_moe", given, 2)


def ream_example(**changed: object) -> LayerStatistics:
    """Saliency 9 1 8 2 7 0.5: centres 0, 2, 4 in this order. Expert 3 is most like 4, then 0; 1 most like 0, then 2."""
    cosine = {
        **{(0, 1): 0.8, (0, 3): 0.9, (0, 5): 0.1},
        **{(2, 1): 0.7, (2, 3): 0.2, (2, 5): 0.6},
        **{(4, 1): 0.3, (4, 3): 0.95, (4, 5): 0.2},
    }
    arrays: dict[str, object] = {
        "count": [2, 4, 1, 1, 1, 2],
        "gated_norm": [18, 4, 8, 2, 7, 1],
        "logit_gram": gram(cosine, [1, 2, 3, 4, 5, 6]),
        "gated_output_sum": np.zeros((6, 2)),
    }
    return statistics(**{**arrays, **changed})


def members(grouping) -> dict[int, list[int]]:
    return {c: [e for e, _ in g] for c, g in zip(grouping.keep, grouping.groups, strict=True)}


def test_ream_lets_the_most_salient_grab_first():
    grouping = group_layer("ream", ream_example(), 3, group_size=2)
    assert members(grouping) == {0: [0, 3], 2: [2, 1], 4: [4, 5]}
    assert grouping.order == (0, 2, 4, 3, 1, 5)
    assert grouping.groups is not None
    np.testing.assert_allclose([share for _, share in grouping.groups[0]], [9 / 11, 2 / 11])
    assert members(group_layer("ream", ream_example(), 3, group_size=3)) == {0: [0, 3, 1], 2: [2, 5], 4: [4]}
    # With the paper's size of 16 the first takes in all; the others stay alone.
    assert members(group_layer("ream", ream_example(), 3)) == {0: [0, 3, 1, 5], 2: [2], 4: [4]}
    with pytest.raises(BadData, match="do not hold 6"):
        group_layer("ream", ream_example(), 3, group_size=1)


def test_ream_weighs_outputs_and_logits_alike():
    outputs = np.zeros((6, 2))
    outputs[0], outputs[5] = [3, 0], [7, 0]  # (0.1 + 1) / 2 beats (0.9 + 0) / 2
    changed = ream_example(gated_output_sum=outputs, output_sum=np.zeros((6, 2)))
    assert members(group_layer("ream", changed, 3, group_size=2))[0] == [0, 5]
    assert members(group_layer("ream", changed, 3, group_size=2, gated=False))[0] == [0, 3]


def test_ream_of_an_expert_that_never_ran():
    """It scores 0 and does not divide by 0; two that never ran share alike."""
    given = ream_example(count=[2, 0, 1, 0, 1, 2], gated_norm=[18, 0, 8, 0, 7, 1])
    grouping = group_layer("ream", given, 2)
    assert grouping.order == (0, 2, 4, 5, 1, 3)
    only = group_layer("ream", ream_example(count=[0] * 6, gated_norm=[0] * 6), 1)
    np.testing.assert_allclose([share for _, share in (only.groups or ())[0]], [1 / 6] * 6)


def test_dern_keeps_the_gate_mass():
    grouping = group_layer("dern", statistics(count=[9, 9, 9, 9], gate=[1, 4, 4, 2]), 2)
    assert (grouping.keep, grouping.groups, grouping.order) == ((1, 2), None, (1, 2, 3, 0))
    assert grouping.cut(0, 4).dropped == (0, 3)


@pytest.mark.parametrize("method", GROUPINGS.names())
def test_every_method_names_its_transform_and_what_it_reads_and_says_what_is_missing(method):
    function = GROUPINGS.get(method)
    assert function.transform in TRANSFORMS.names()
    groups = {group for group, *_ in COLUMNS.values()} | {"rows"}
    assert set(function.collect) <= groups
    layer = random_layer()
    hidden = np.random.default_rng(0).normal(size=(30, 4))
    whole = statistics_of(layer, hidden, route(layer, hidden, 2))
    # It reads no array of a group that it does not name: with these alone it works, without any one it says which.
    named = {name: a for name, a in whole.arrays.items() if COLUMNS[name][0] in function.collect or name == "count"}
    enough = replace(whole, arrays=named)
    for kept in (1, 2, 5, 6):
        grouping = group_layer(method, enough, kept, weights=layer)
        assert len(grouping.keep) == kept
        assert grouping == group_layer(method, enough, kept, weights=layer)
        alive = [expert for group in grouping.groups or () for expert, _ in group]
        if method != "dern" and kept < 6:
            assert sorted(alive) == list(range(6))  # nothing is lost
            assert all(np.isclose(sum(share for _, share in group), 1) for group in grouping.groups)
        grouping.cut(layer.layer, 6)
    if method != "merge_moe":  # which needs the count alone
        bare = replace(whole, arrays={"count": whole.arrays["count"]})
        with pytest.raises(BadData, match="collect it with --collect"):
            group_layer(method, bare, 3, weights=layer)


@pytest.mark.parametrize("method", GROUPINGS.names())
def test_protected_experts_stay_by_themselves(method):
    layer = random_layer()
    hidden = np.random.default_rng(0).normal(size=(30, 4))
    given = statistics_of(layer, hidden, route(layer, hidden, 2))
    unloved = int(np.argmin(given.get("gate")))
    grouping = group_layer(method, given, 3, weights=layer, protected=[unloved])
    assert unloved in grouping.keep
    assert len(grouping.keep) == 3
    if grouping.groups is not None:
        assert dict(zip(grouping.keep, grouping.groups, strict=True))[unloved] == ((unloved, 1.0),)
    cut = grouping.cut(layer.layer, 6)
    assert len(cut.dropped) == (3 if method == "dern" else 0)
    with pytest.raises(BadData, match="keep more"):
        group_layer(method, given, 1, weights=layer, protected=[unloved])


def test_protected_experts_are_taken_out_of_every_table():
    """Without expert 0, whose numbers lead astray: centres 1 and 3, and 2 is most like 3."""
    cosine = {(0, 1): 0.9, (0, 2): 0.95, (1, 2): 0.1, (2, 3): 0.8, (1, 3): -0.5}
    given = statistics(count=[99, 5, 1, 4], logit_gram=gram(cosine, [1, 2, 3, 4]))
    assert members(group_layer("m_smoe", given, 3, protected=[0])) == {0: [0], 1: [1], 3: [3, 2]}
    assert group_layer("m_smoe", given, 3, protected=[2]).order == (2, 0, 1, 3)


def test_what_cannot_be_is_refused_with_all_reasons_at_once():
    given = statistics(count=[1, 2, 3], logit_gram=np.eye(3))
    with pytest.raises(BadData, match=r"(?s)no option 'linkag'.*cannot have 4|cannot have 4.*no option 'linkag'"):
        group_layer("hc_smoe", given, 4, linkag="ward")
    with pytest.raises(BadData, match="no expert 7"):
        group_layer("m_smoe", given, 2, protected=[7])
    with pytest.raises(BadData, match="weights of 6"):
        group_layer("m_smoe", given, 2, weights=random_layer())
    with pytest.raises(MoeworksError, match="did you mean 'hc_smoe'"):
        group_layer("hcsmoe", given, 2)
    with pytest.raises(BadData, match="not finite"):
        group_layer("m_smoe", statistics(count=[1, np.nan], logit_gram=np.eye(2)), 1)
    whole = group_layer("m_smoe", given, 3)
    assert (whole.keep, whole.groups) == ((0, 1, 2), None)
    with pytest.raises(ValidationError):  # a plan is checked again where it is written
        group_layer("m_smoe", given, 2).cut(0, 2)
