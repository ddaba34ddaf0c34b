"""Same-token and different-token overlap: pairs are what they should be, and known routing gives known numbers."""

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from moeworks.errors import BadData
from moeworks.stats import token_overlap
from moeworks.stats.sets import chance_jaccard
from moeworks.stats.token_overlap import pair_tokens


def test_pairs_are_of_different_documents_and_of_the_right_kind():
    rng = np.random.default_rng(0)
    token, document = rng.integers(0, 20, 1000), rng.integers(0, 15, 1000)
    for same in (True, False):
        pairs = pair_tokens(token, document, same=same, rng=rng)
        assert len(pairs) > 400
        assert ((token[pairs[:, 0]] == token[pairs[:, 1]]) == same).all()
        assert (document[pairs[:, 0]] != document[pairs[:, 1]]).all()
        assert len(np.unique(pairs)) == pairs.size  # a token is in one pair at most


def test_overlap_by_hand(tmp_path):
    """Token 0 always chooses {0, 1}, token 1 always {1, 2}: same 1, different 1/3."""
    texts = [
        Text({}, {0: [[0, 1], [2, 1], [1, 0]]}, tokens=[0, 1, 0], document=f"d{i}") for i in range(20)
    ]  # fmt: skip
    (line,) = token_overlap(write_texts(tmp_path / "t", texts)).to_pylist()
    assert [line["same_token"], line["same_token_low"]] == pytest.approx([1, 1])
    assert [line["different_token"], line["different_token_high"]] == pytest.approx([1 / 3, 1 / 3])
    assert [line["excess"], line["excess_low"]] == pytest.approx([2 / 3, 2 / 3])
    assert line["chance"] == chance_jaccard(4, 2)


def test_slots_that_did_not_run_are_no_common_expert(tmp_path):
    """By hand: token 0 chose {0}, token 1 chose {1}, both with a slot of weight 0: same 1, different 0."""
    alone = [Text({}, {0: [[i % 2, 3]]}, {0: [[1, 0]]}, tokens=[i % 2], document=f"d{i}") for i in range(20)]
    (line,) = token_overlap(write_texts(tmp_path / "u", alone)).to_pylist()
    assert (line["same_token"], line["different_token"]) == (1, 0)


def test_random_routing_is_at_chance(tmp_path):
    rng = np.random.default_rng(1)
    texts = [
        Text(
            {},
            {layer: rng.random((60, 8)).argpartition(2, axis=1)[:, :2].tolist() for layer in (0, 1)},
            tokens=rng.integers(0, 10, 60).tolist(),
        )
        for _ in range(40)
    ]
    trace = write_texts(tmp_path / "t", texts, experts=8, part_bytes=5000)
    assert len(trace.parts) > 2
    for line in token_overlap(trace, sample=1500).to_pylist():
        assert line["same_pairs"] + line["different_pairs"] <= 1500
        for name in ("same_token", "different_token"):
            assert line[f"{name}_low"] <= line["chance"] <= line[f"{name}_high"]
        assert line["excess_low"] <= 0 <= line["excess_high"]


def test_texts_that_cannot_be_paired_are_refused(tmp_path):
    texts = [Text({}, {0: [[0]]}, tokens=[i]) for i in range(4)]
    with pytest.raises(BadData, match="the same token id"):
        token_overlap(write_texts(tmp_path / "t", texts))
