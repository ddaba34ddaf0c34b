"""Which texts and tokens a step trains on."""

from __future__ import annotations

import pytest

from helpers.models import tiny_engine
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.train import batches
from moeworks.train.batches import chosen, in_order, read_requests, split_documents, training_batch


def requests(count: int, documents: int) -> list[Prepared]:
    return [Prepared(n, (1, 2, 3 + n), 3, (), {}, f"d{n % documents}", "", 0) for n in range(count)]


def test_every_epoch_takes_each_text_once_in_an_order_of_the_seed() -> None:
    texts = requests(6, 6)
    steps = [[r.number for r in in_order(texts, step, 2, seed=1)] for step in range(6)]
    first, second = [n for step in steps[:3] for n in step], [n for step in steps[3:] for n in step]
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    batches._permutation.cache_clear()  # a new process knows nothing of the old one
    assert [[r.number for r in in_order(texts, step, 2, seed=1)] for step in range(6)] == steps
    assert [[r.number for r in in_order(texts, step, 2, seed=2)] for step in range(6)] != steps
    assert [r.number for r in in_order(texts, 1, 4, seed=1)] == [*first[4:], *second[:2]]  # over the end of an epoch


def test_documents_are_held_out_whole() -> None:
    found = split_documents(requests(20, 5), share=0.4, seed=0, name="forget")
    apart = {r.document for r in found.held_out}
    assert len(apart) == 2
    assert not apart & {r.document for r in found.training}
    assert len(found.training) + len(found.held_out) == 20
    assert split_documents(requests(2, 2), share=0.01, seed=0, name="forget").held_out  # at least one
    assert split_documents(requests(2, 2), share=0.99, seed=0, name="forget").training
    with pytest.raises(BadData, match="one document"):
        split_documents(requests(4, 1), share=0.5, seed=0, name="forget")


def test_chosen_texts_keep_their_order() -> None:
    found = [r.number for r in chosen(requests(50, 50), 10, seed=0)]
    assert len(found) == 10
    assert found == sorted(found)
    assert found != [r.number for r in chosen(requests(50, 50), 10, seed=1)]


def test_counted_tokens_are_the_answer_or_all_but_the_first() -> None:
    engine = tiny_engine("softmax")
    examples = [Example(text="one two three"), Example(text="a question:", answer=" forty two")]
    read = read_requests(engine, examples, name="task")
    batch = training_batch(engine, read)
    plain, answered = (len(request.tokens) for request in read)
    assert batch.counted[0].sum() == plain - 1
    assert batch.counted[1].sum() == answered - read[1].prompt_tokens
    assert batch.counted[1, : read[1].prompt_tokens - 1].sum() == 0
    assert batch.tokens == plain + answered
    assert batch.inputs["input_ids"].shape[1] == max(plain, answered)
    with pytest.raises(BadData, match="must not be cut off"):
        read_requests(engine, examples[1:], name="task", max_tokens=read[1].prompt_tokens)
    with pytest.raises(BadData, match="are empty"):
        read_requests(engine, [], name="task")
