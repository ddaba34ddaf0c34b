"""Clustering: scipy's own cut, hand-worked centres, and exact numbers of clusters whatever the ties."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from moeworks.edit.algebra.clustering import agglomerate, cosine_kmeans, nearest, spherical_kmeans
from moeworks.errors import BadData


def partition(labels) -> set[frozenset[int]]:
    values = list(labels)
    return {frozenset(i for i, label in enumerate(values) if label == other) for other in set(values)}


@pytest.mark.parametrize("method", ["average", "complete", "single", "ward"])
@pytest.mark.parametrize("clusters", [1, 4, 11, 20])
def test_without_ties_the_cut_is_scipys(method, clusters):
    points = np.random.default_rng(0).normal(size=(20, 3))
    ours = agglomerate(points, clusters, method=method)
    assert partition(ours) == partition(fcluster(linkage(points, method), clusters, "maxclust"))
    assert list(dict.fromkeys(ours.tolist())) == list(range(clusters))  # numbered by first member


def test_ties_give_exactly_as_many_clusters_as_asked_for():
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    assert len(set(fcluster(linkage(square, "single"), 3, "maxclust"))) == 2  # by height, three cannot be had
    ours = agglomerate(square, 3, method="single")
    assert len(set(ours)) == 3
    assert ours.tolist() == agglomerate(square, 3, method="single").tolist()
    same = np.ones((6, 2))
    assert [len(set(agglomerate(same, n))) for n in (1, 3, 6)] == [1, 3, 6]


def test_distances_and_points_agree_and_clusters_are_numbered_by_first_member():
    points = np.array([[5.0], [0.0], [5.2], [0.1]])
    assert agglomerate(points, 2).tolist() == [0, 1, 0, 1]
    assert agglomerate(pdist(points), 2, distances=True).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("cluster", [agglomerate, cosine_kmeans])
def test_impossible_numbers_are_refused(cluster):
    points = np.ones((3, 2))
    for clusters in (0, 4):
        with pytest.raises(BadData, match="cannot be"):
            cluster(points, clusters)
    with pytest.raises(BadData, match="not finite"):
        cluster(points * np.nan, 2)


def test_nearest_takes_the_first_of_equal_centres_and_works_in_parts(monkeypatch):
    centres = torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 0.0]])
    points = torch.tensor([[3.0, 0.1], [0.0, 0.5], [0.0, 0.0]])
    value, index = nearest(points, centres)
    assert index.tolist() == [1, 0, 0]
    np.testing.assert_allclose(value, [3 / np.hypot(3, 0.1), 1, 0], rtol=1e-6)
    monkeypatch.setattr("moeworks.edit.algebra.clustering.CHUNK", 1)
    assert torch.equal(nearest(points, centres)[1], index)


def test_spherical_kmeans_by_hand():
    """Cluster one: (2, 0) of weight 3 and 4 (0.8, 0.6) of weight 1; mean length 3; direction 3 (1, 0) + (0.8, 0.6)."""
    points = torch.tensor([[2.0, 0.0], [3.2, 2.4], [0.0, -5.0]], dtype=torch.float64)
    labels, centres = spherical_kmeans(
        points, torch.tensor([3.0, 1.0, 1.0]), torch.tensor([[1.0, 0.1], [0.1, -1.0]], dtype=torch.float64)
    )
    assert labels.tolist() == [0, 0, 1]
    wanted = 3 * np.array([3.8, 0.6]) / np.hypot(3.8, 0.6)
    np.testing.assert_allclose(centres, [wanted, [0, -5]], rtol=1e-12)


def test_spherical_kmeans_leaves_points_that_are_their_own_centres():
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, centres = spherical_kmeans(points, torch.ones(7), points)
    assert labels.tolist() == list(range(7))
    np.testing.assert_allclose(centres, points, rtol=1e-12)


def test_spherical_kmeans_keeps_the_centre_of_an_empty_cluster_and_counts_alike_without_weight():
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    labels, centres = spherical_kmeans(points, torch.zeros(3), points)
    assert labels.tolist() == [0, 0, 2]
    np.testing.assert_allclose(centres, points)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    start = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    np.testing.assert_allclose(spherical_kmeans(opposite, torch.ones(2), start)[1], start)


def test_spherical_kmeans_goes_on_until_nothing_moves_but_no_further_than_told():
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(60, 3, generator=draw, dtype=torch.float64)
    start = points[:5]
    weights = torch.rand(60, generator=draw)
    one = spherical_kmeans(points, weights, start, iterations=1)[1]
    many, centres = spherical_kmeans(points, weights, start, iterations=100)
    assert not torch.allclose(one, centres)
    assert torch.equal(nearest(points, centres)[1], many)


def test_cosine_kmeans_finds_directions_and_gives_exactly_as_many_as_asked_for():
    random = np.random.default_rng(0)
    directions = np.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    points = (directions + 0.05 * random.normal(size=(7, 3))) * random.uniform(0.1, 10, size=(7, 1))
    assert partition(cosine_kmeans(points, 3)) == {frozenset({0, 3, 6}), frozenset({1, 4}), frozenset({2, 5})}
    same = np.ones((6, 2))
    for clusters in range(1, 7):
        for seed in range(5):
            assert len(set(cosine_kmeans(same, clusters, seed=seed))) == clusters
            assert len(set(cosine_kmeans(points, clusters, seed=seed))) == clusters
    noise = random.normal(size=(40, 3))
    assert cosine_kmeans(noise, 9, seed=4).tolist() == cosine_kmeans(noise, 9, seed=4).tolist()
    assert any(partition(cosine_kmeans(noise, 9, seed=s)) != partition(cosine_kmeans(noise, 9)) for s in range(1, 6))
