"""MoTE's functional map: prompt tokens only, a prompt counts once, and classes are balanced."""

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from moeworks.errors import BadData
from moeworks.find import find, find_by_label
from moeworks.find.scores import Groups, functional_map_of_classes


def text(answer, hits, misses, *, generated=0, document=""):
    """Expert 0 runs on `hits` prompt tokens, expert 1 on the others; expert 2 on generated ones."""
    ids = [[0]] * hits + [[1]] * misses + [[2]] * generated
    return Text({"answer": answer}, {0: ids}, generated=generated, document=document)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Refused: 3 of 4 and 1 of 2 prompt tokens. Answered: 1 of 10. Reasoned: 1 of 2, 1 of 2 and 0 of 5."""
    texts = [text("refused", 3, 1, generated=3), text("refused", 1, 1), text("answered", 1, 9, generated=2)]
    texts += [text("reasoned", 1, 1), text("reasoned", 1, 1), text("reasoned", 0, 5)]
    return write_texts(tmp_path_factory.mktemp("map") / "t", texts)


def scores_of(trace, **options):
    found = find(
        trace, contrast="answer=refused", against="answer=answered,reasoned", method="functional_map", permutations=20,
        **options,
    )  # fmt: skip
    return found, found.column("score").tolist()


def test_two_sides(trace):
    """By hand: (3/4 + 1/2) / 2 = 5/8 against the mean of 1/10, 1/2, 1/2, 0 = 11/40; generated tokens do not count."""
    found, score = scores_of(trace)
    assert score == pytest.approx([5 / 8 - 11 / 40, 11 / 40 - 5 / 8, 0, 0])
    assert (found.header.where, found.header.aggregate) == ("phase=prompt", "macro")


def test_counts_without_length(trace):
    """By hand: 2 tokens a prompt against 3/4 of a token, expert 1 on 1 against 16/4."""
    found, score = scores_of(trace, length_normalised=False)
    assert score == pytest.approx([2 - 3 / 4, 1 - 4, 0, 0])
    assert found.header.quantity == "tokens a text"


def test_a_clause_may_name_another_phase(trace):
    """By hand: of all tokens, expert 0 has 3/7 and 1/2."""
    found, _ = scores_of(trace, where="phase=prompt,generated")
    assert found.column("contrast_rate")[0] == pytest.approx((3 / 7 + 1 / 2) / 2)


def test_classes_count_alike_however_many_prompts_they_have(trace):
    """By hand: 5/8 minus the mean of answered 1/10 and reasoned 1/3."""
    found = find_by_label(trace, label="answer", target="refused", method="functional_map", permutations=20)
    assert found.column("score")[:2] == pytest.approx([5 / 8 - (1 / 10 + 1 / 3) / 2, (1 / 10 + 1 / 3) / 2 - 5 / 8])
    assert found.header.where == "phase=prompt"
    assert found.column("contrast_rate")[0] == pytest.approx(5 / 8)
    raw = find_by_label(
        trace, label="answer", target="refused", method="functional_map", length_normalised=False, permutations=20
    )
    assert raw.column("score")[0] == pytest.approx(2 - (1 + 2 / 3) / 2)


def test_two_classes_give_the_same_both_ways(trace):
    sides = find(trace, contrast="answer=refused", against="answer=reasoned", method="functional_map")
    label = find_by_label(
        trace, label="answer", target="refused", values=["refused", "reasoned"], method="functional_map"
    )
    assert label.column("score") == pytest.approx(sides.column("score"))


def test_a_class_must_be_named():
    groups = Groups(np.ones((1, 2, 3)), np.ones((1, 2, 1)), ("a", "b"), None)
    with pytest.raises(BadData, match="say which"):
        functional_map_of_classes(groups)
