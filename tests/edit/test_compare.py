"""Comparisons against plain formulas in numpy on whole logits, and the loop detector on made token lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from helpers.models import tiny_engine
from moeworks.edit import token_sums
from moeworks.edit.compare import compare
from moeworks.edit.comparison import share
from moeworks.edit.loops import LONGEST, find_loop
from moeworks.edit.sides import Side, side_of, under, write_answers
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example
from moeworks.plan import Mask, empty_plan
from moeworks.prove.resample import Resamples, document_numbers

TEXTS = [
    Example(text="The quick brown fox jumps over the lazy dog.", labels={"lang": "en"}, document="a"),
    Example(text="Der Hund schläft.", labels={"lang": "de"}, document="b"),
    Example(
        text="A second text, somewhat longer than the others, of the first document.",
        labels={"lang": "en"},
        document="a",
    ),
    *(Example(text=f"Numbers {n} and {n * n} and more.", labels={"lang": "en"}, document=str(n)) for n in range(4)),
]


def logits_of(engine, tokens):
    with torch.inference_mode():
        return engine.model(torch.tensor([tokens]), use_cache=False).logits[0].double().numpy()  # (n, V)


def masked(engine):
    from moeworks.address import parse_addresses

    plan = empty_plan(engine.identity, protect="none")
    return plan.model_copy(update={"operations": (Mask(experts=tuple(parse_addresses("L0.E1 L0.E5 L2.E0"))),)})


def by_hand(engine, plan):
    """Per text (tokens, KL, agreement, overlap, nll before, nll after), from whole logits, one text at a time."""
    rows = []
    for text in TEXTS:
        tokens = engine.tokens(text.text)
        before = log_softmax(logits_of(engine, tokens), axis=-1)[:-1]
        with engine.steered(plan):
            after = log_softmax(logits_of(engine, tokens), axis=-1)[:-1]
        p, q, own = np.exp(before), np.exp(after), np.arange(len(tokens) - 1)
        rows.append(
            (
                len(own),
                (p * (before - after)).sum(),
                (before.argmax(-1) == after.argmax(-1)).sum(),
                np.minimum(p, q).sum(),
                -before[own, tokens[1:]].sum(),
                -after[own, tokens[1:]].sum(),
            )
        )
    return np.array(rows)


@pytest.mark.parametrize("window", [1, token_sums.WINDOW_BYTES])
@pytest.mark.parametrize("chunk", [4 * 8192 * 3, token_sums.CHUNK_BYTES])
def test_numbers_are_those_of_the_formulas(monkeypatch, window, chunk):
    monkeypatch.setattr(token_sums, "WINDOW_BYTES", window)
    monkeypatch.setattr(token_sums, "CHUNK_BYTES", chunk)
    engine = tiny_engine("softmax")
    plan = masked(engine)
    tokens, kl, agree, _, before, after = by_hand(engine, plan).T
    found = compare(engine, under(engine, plan), TEXTS, batch_size=2)
    assert found.tokens == tokens.sum()
    assert found.divergence.value == pytest.approx(kl.sum() / tokens.sum(), rel=1e-4)
    assert found.divergence.value > 0.01
    assert found.agreement.value == pytest.approx(agree.sum() / tokens.sum())
    assert found.perplexity["all"].before == pytest.approx(np.exp(before.sum() / tokens.sum()), rel=1e-4)
    assert found.perplexity["all"].after == pytest.approx(np.exp(after.sum() / tokens.sum()), rel=1e-4)
    de = found.perplexity["lang=de"]
    assert de.ratio.value == pytest.approx(np.exp((after[1] - before[1]) / tokens[1]), rel=1e-4)
    assert (de.texts, de.documents, de.ratio.high) == (1, 1, np.inf)
    assert found.documents == 6
    assert found.divergence.low < found.divergence.value < found.divergence.high


def test_overlap_is_esap_on_answers_of_the_first_model():
    engine = tiny_engine("softmax")
    plan = masked(engine)
    found = compare(engine, under(engine, plan), TEXTS, prompts=3, prompt_tokens=4, new_tokens=10, batch_size=2)
    by_document = {text.document: text for text in reversed(TEXTS)}
    names = sorted(by_document)
    drawn = np.sort(np.random.default_rng([0, 5]).permutation(len(names))[:3])
    overlap, count = 0.0, 0
    for place in drawn:
        opening = engine.tokens(by_document[names[place]].text)[:4]
        tokens = list(opening)
        for _ in range(10):  # greedy, by hand
            tokens.append(int(logits_of(engine, tokens)[-1].argmax()))
            if tokens[-1] == engine.model.generation_config.eos_token_id:
                break
        p = np.exp(log_softmax(logits_of(engine, tokens), axis=-1))[3:-1]
        with engine.steered(plan):
            q = np.exp(log_softmax(logits_of(engine, tokens), axis=-1))[3:-1]
        overlap, count = overlap + np.minimum(p, q).sum(), count + len(p)
    assert found.overlap.value == pytest.approx(overlap / count, rel=1e-4)
    assert found.loops.texts == 3
    assert found.loops.tokens == 10


def test_a_model_equals_itself():
    engine = tiny_engine("sigmoid_groups")
    found = compare(engine, engine, TEXTS, prompts=2, new_tokens=6, speed=True)
    assert found.divergence.value == 0
    assert found.agreement.value == 1
    assert found.perplexity["all"].ratio.value == 1
    assert found.overlap.value == pytest.approx(1, abs=1e-5)
    assert found.loops.before == found.loops.after
    assert found.size.ratio == 1
    assert 0.2 < found.speed.ratio < 5
    assert "lang=de" in found.words()


def test_answers_count_alone_and_prompts_end_where_the_answer_begins():
    engine = tiny_engine("softmax")
    example = Example(text="What is it?", answer=" A dog.", document="x")
    found = compare(engine, engine, [example])
    prompt, whole = engine.tokens(example.text), engine.tokens(example.text + example.answer)
    assert found.tokens == len(whole) - len(prompt)
    own = log_softmax(logits_of(engine, whole), axis=-1)[
        np.arange(len(prompt) - 1, len(whole) - 1), whole[len(prompt) :]
    ]
    assert found.perplexity["all"].before == pytest.approx(np.exp(-own.mean()), rel=1e-4)


def test_refusals():
    engine = tiny_engine("softmax")
    with pytest.raises(BadData, match="no text"):
        compare(engine, engine, [])
    other = tiny_engine("softmax")
    other.identity = other.identity.model_copy(update={"tokenizer_hash": "another"})
    with pytest.raises(BadData, match="tokenizers"):
        compare(engine, other, TEXTS)
    with pytest.raises(Unsupported, match="transformers"):
        side_of(object())
    broken = tiny_engine("softmax")
    broken.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(BadData, match="second model gives NaN"):
        compare(engine, broken, TEXTS)


def test_ratio_interval_resamples_documents():
    """Sums over sums of whole documents, drawn as by the class itself."""
    values, weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    documents = document_numbers(["a", "a", "b", "c", "d", "e"])
    resamples = Resamples(documents, samples=400, seed=3)
    drawn = resamples._drawn  # (samples, 5)
    sums, counts = np.array([3.0, 3.0, 4.0, 5.0, 6.0]), np.array([2.0, 2.0, 2.0, 4.0, 4.0])
    expected = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    found = resamples.ratio(values, weights)
    assert found.value == 21 / 14
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_share_has_the_wilson_interval():
    """0 of 20: (0, z² / (n + z²)) with z = 1.96, worked by hand."""
    none = share([False] * 20)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        ([*range(100)], None),
        ([*range(50), *[7] * 30], (1, 30)),
        ([*range(50), *[7] * 23], None),  # too short a tail
        ([*range(50), *[1, 2, 3] * 8], (3, 24)),
        ([*range(50), *[1, 2, 3] * 8, 1, 2], (3, 26)),  # stops within the n-gram
        ([*range(50), *[1, 2, 3] * 8, 9], None),  # goes on: the closing token, say
        ([*range(50), *range(LONGEST), *range(LONGEST), *range(LONGEST), *range(LONGEST)], (LONGEST, 4 * LONGEST)),
        ([*range(50), *range(100, 110), *range(100, 110), *range(100, 110)], None),  # three times only
        ([token for n in range(40) for token in (5, 6, 100 + n)], None),  # counts up
        ([4] * 200, (1, 200)),
        ([], None),
        ([1], None),
    ],
)
def test_loops_in_made_lists(tokens, loop):
    assert find_loop(tokens) == loop


def test_answers_are_those_of_generate():
    engine = tiny_engine("softmax")
    (request,) = engine.reader.read(iter([Example(text="The quick brown fox")]))
    (written,) = write_answers(Side(engine, "it"), [request], 8, temperature=0, batch_size=1, seed=0)
    (generated,) = engine.generate(["The quick brown fox"], max_new_tokens=8)
    assert written.tokens[len(request.tokens) :] == generated.tokens
    assert written.prompt_tokens == len(request.tokens)
