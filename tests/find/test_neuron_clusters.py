"""Granularity of specialisation and keys of one expert: by hand, on clear clusters, on a plant."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.twins import plant, twin
from moeworks.address import Address
from moeworks.engines.fake import planted_examples
from moeworks.errors import BadData
from moeworks.find.inside.granularity import divergence_from_layer, granularity, spherical_kmeans
from moeworks.find.inside.keys import expert_keys
from moeworks.find.key_space import Box


def test_divergence_by_hand() -> None:
    """(1, 0) against (1/2, 1/2): m = (3/4, 1/4); (log2(4/3) + (log2(2/3) + log2 2) / 2) / 2 = .3113."""
    np.testing.assert_allclose(
        divergence_from_layer(np.array([[3, 0], [0, 3], [0, 0]])), [0.3113, 0.3113, np.nan], atol=1e-4
    )
    np.testing.assert_allclose(divergence_from_layer(np.array([[5, 5], [1, 1]])), [0, 0], atol=1e-12)
    np.testing.assert_allclose(divergence_from_layer(np.array([[1, 0]]), np.array([0.0, 1.0])), [1.0])


def test_clusters_are_directions() -> None:
    rng = np.random.default_rng(0)
    directions = np.eye(4)[:, :] * 5
    points = np.concatenate([d * rng.uniform(0.1, 9, (50, 1)) + rng.normal(size=(50, 4)) * 0.01 for d in directions])
    label = spherical_kmeans(points, 4, seed=3)
    groups = label.reshape(4, 50)
    assert all(len(set(group)) == 1 for group in groups)  # lengths from 0.1 to 9 do not matter
    assert len(set(groups[:, 0])) == 4


def test_every_cluster_has_a_point() -> None:
    points = np.repeat(np.eye(3), 5, axis=0)  # three directions only
    assert len(np.unique(spherical_kmeans(points, 7, seed=0))) == 7
    assert len(np.unique(spherical_kmeans(np.zeros((6, 2)), 3))) == 3
    with pytest.raises(BadData, match="16 clusters of 15 tokens"):
        spherical_kmeans(points, 16)


def test_experts_diverge_from_their_layer_beyond_chance() -> None:
    engine, expert, _ = twin("single")
    table = granularity(engine, planted_examples(6), clusters=(2, 60), draws=5)
    rows = {(r["layer"], r["expert"], r["clusters"]): r for r in table.to_pylist()}
    carrier = rows[*expert, 60]
    assert carrier["divergence"] > carrier["by_chance"] + 10 * carrier["deviation"]
    assert all(0 <= r["divergence"] <= 1 and r["tokens"] > 0 and r["tokens"] % 3 == 0 for r in rows.values())
    finer = [rows[layer, e, 60]["divergence"] - rows[layer, e, 2]["divergence"] for layer, e, k in rows if k == 2]
    assert min(finer) >= -1e-12  # 60 clusters of k-means need not refine 2, but distributions only move apart here


def test_the_key_of_the_last_token_for_which_it_ran() -> None:
    engine, expert, _ = twin("neurons")
    examples = planted_examples(12)
    keys = expert_keys(engine, examples, expert, batch_size=5)
    assert keys.examples.tolist() == list(range(12))  # this expert stands in for every token
    for number, position in zip(keys.examples, keys.positions, strict=True):
        assert position == len(examples[number].text) - 1
    alone = expert_keys(engine, [examples[4]], expert)
    np.testing.assert_allclose(alone.points[0], keys.points[4], rtol=1e-4, atol=1e-6)
    early = expert_keys(engine, examples, expert, where="position=0:5")
    assert early.positions.max() <= 4


def test_a_box_of_keys_knows_the_behaviour() -> None:
    engine, expert, neuron = twin("neurons")
    examples = planted_examples(80, seed=5)
    keys = expert_keys(engine, examples, expert)
    one = np.array([examples[number].labels["side"] == "contrast" for number in keys.examples])
    skill = keys.points[one][:, [neuron.neuron]]
    box = Box.fit(skill[:20]).calibrate(skill[20:30], coverage=0.9)
    assert box.contains(skill[30:]).mean() >= 0.7
    assert not box.contains(keys.points[~one][:, [neuron.neuron]]).any()


def test_an_expert_that_is_not_there() -> None:
    engine, _, _ = twin("neurons")
    with pytest.raises(BadData, match="has experts 0 to 15"):
        expert_keys(engine, list(plant().texts()), Address(0, 16))
