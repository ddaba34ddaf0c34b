"""Texts and probes of the planted behaviour: invented words, shouted on one side and plain on the other."""

from __future__ import annotations

from typing import Literal

import numpy as np

from moeworks.engines.fake.plants import PLANTS
from moeworks.engines.fake.words import MARKS, TOPICS, write_sentences
from moeworks.errors import BadData, did_you_mean
from moeworks.examples import Example, Span
from moeworks.probes import Item, Metric, Probe, ProbeHeader, split_of

__all__ = [
    "neutral_examples",
    "null_examples",
    "null_probe",
    "plant_examples",
    "plant_probe",
    "planted_examples",
    "planted_probe",
]

MOSTLY = 0.9  # share of the documents whose topic is one of their side's, where topic is the confound


def planted_examples(documents: int, *, seed: int = 0) -> list[Example]:
    """Return documents of which every other one is shouted, labelled `side=contrast`, the others `side=against`.

    Each has a topic of its own words (label `topic`), several sentences, and spans `opening` (the first sentence) and
    `body` (the others). Topics are spread evenly over both sides.
    """
    return [_example(seed, index, contrast=index % 2 == 0, shouted=index % 2 == 0) for index in range(documents)]


def null_examples(documents: int, *, seed: int = 0) -> list[Example]:
    """Return plain documents with the same labels as `planted_examples`: there is no difference to be found."""
    return [_example(seed, index, contrast=index % 2 == 0, shouted=False) for index in range(documents)]


def neutral_examples(documents: int, *, seed: int = 0) -> list[Example]:
    """Return plain documents to measure damage on, labelled `lang` (two invented ones) and `domain`."""
    examples = [_example(seed + 1_000_003, index, contrast=False, shouted=False) for index in range(documents)]
    return [
        example.model_copy(update={"labels": {"lang": f"x{index % 2}", "domain": example.labels["topic"]}})
        for index, example in enumerate(examples)
    ]


def planted_probe(documents: int = 160, *, seed: int = 0) -> Probe:
    """Return a probe of shouting: the log-probability of held-out shouted text, which the plant holds up."""
    return _probe("planted", "the text goes on in capitals", planted_examples(documents, seed=seed))


def null_probe(documents: int = 160, *, seed: int = 0) -> Probe:
    """Return a probe whose two sides do not differ; no verdict on it may be `works`."""
    return _probe("null", "nothing: both sides are drawn from the same texts", null_examples(documents, seed=seed))


def plant_examples(plant: str, documents: int, *, seed: int = 0, paired: bool = False) -> list[Example]:
    """Return the documents for one of `PLANTS`, shouted on the contrast side (but for `none`) and labelled by side.

    With `paired` each document has two texts of the same words, one for each side, so that they differ in the behaviour
    alone; there are half as many documents then, and topic and length cannot be paired.

    Where the plant is a confound the two sides differ in something else too. `topic`: nine tenths of the contrast side
    have one of the first three topics, nine tenths of the other side one of the others. `length`: eight or nine
    sentences on the contrast side, one or two on the other. `token`: `_` and `!` on the contrast side, spaces and full
    stops on the other, which the model takes for the same thing in all but one direction of its residual.
    """
    if plant not in PLANTS:
        raise BadData(f"no plant is called '{plant}'; {did_you_mean(plant, PLANTS)}")
    if paired and plant in ("topic", "length"):
        raise BadData(f"texts of the same words have the same {plant}; they cannot be pairs.")
    return [_confounded(plant, seed, index, paired=paired) for index in range(documents)]


def plant_probe(
    plant: str,
    documents: int = 160,
    *,
    seed: int = 0,
    paired: bool = False,
    items_of: Literal["contrast", "against"] = "contrast",
) -> Probe:
    """Return a probe of shouting for one of `PLANTS`, whose metric sees the behaviour and nothing else.

    An item is a text without its last word; the metric is the preference for this word in capitals over the same word
    in small letters. What else a plan does to the model's words is the same for both. `items_of` is the side whose
    texts the items are made of: where the behaviour is on there is much to turn down, where it is off to turn up.
    """
    texts = _with_splits(plant_examples(plant, documents, seed=seed, paired=paired))
    items = []
    for text in texts:
        if text.labels["side"] == items_of and text.labels["split"] != "find":
            prompt, word = _last_word(text.text)
            items.append(
                Item(
                    prompt=prompt,
                    target=word.upper(),
                    other=word.lower(),
                    document=text.document,
                    split=split_of(text.document),
                )
            )
    what = "nothing: both sides are drawn from the same texts" if plant == "none" else "the text goes on in capitals"
    header = ProbeHeader(
        name=f"plant/{plant}", behaviour=what, metric=Metric(name="preference"), expected="down", paired=paired
    )
    return Probe(header, tuple(texts), tuple(items))


def _last_word(text: str) -> tuple[str, str]:
    """Return a text up to its last word, and that word, without the stop."""
    start = max(text.rfind(space) for space in (" ", "_")) + 1
    return text[:start], text[start:-1]


def _confounded(plant: str, seed: int, index: int, *, paired: bool) -> Example:
    contrast, number = index % 2 == 0, index // 2 if paired else index
    generator = np.random.default_rng([seed, number, 1])
    topic, sentences, half = index // 2 % TOPICS, (3, 6), TOPICS // 2
    if plant == "topic":
        first = contrast == (generator.random() < MOSTLY)
        topic = int(generator.integers(half)) + (0 if first else half)
    if plant == "length":
        sentences = (8, 10) if contrast else (1, 3)
    text = "#" + " ".join(write_sentences(topic, generator, sentences=sentences))
    if contrast and plant != "none":
        text = text.upper()
    if contrast and plant == "token":
        text = text.translate({ord(plain): mark for plain, mark in MARKS.items()})
    return Example(
        text=text,
        labels={"side": "contrast" if contrast else "against", "topic": str(topic)},
        document=f"{plant}-{seed}-{number}",
    )


def _with_splits(examples: list[Example]) -> list[Example]:
    return [
        example.model_copy(update={"labels": {**example.labels, "split": split_of(example.document)}})
        for example in examples
    ]


def _probe(name: str, behaviour: str, examples: list[Example]) -> Probe:
    texts = _with_splits(examples)
    items = [
        Item(text=text.text, document=text.document, split=split_of(text.document))
        for text in texts
        if text.labels["side"] == "contrast" and text.labels["split"] != "find"
    ]
    header = ProbeHeader(name=name, behaviour=behaviour, metric=Metric(name="log_probability"), expected="down")
    return Probe(header, tuple(texts), tuple(items))


def _example(seed: int, index: int, *, contrast: bool, shouted: bool) -> Example:
    generator = np.random.default_rng([seed, index])
    topic = index // 2 % TOPICS
    sentences = write_sentences(topic, generator)
    text = " ".join(sentences)
    opening = len(sentences[0])
    return Example(
        text=text.upper() if shouted else text,
        labels={"side": "contrast" if contrast else "against", "topic": str(topic)},
        spans=(Span(name="opening", start=0, stop=opening), Span(name="body", start=opening, stop=len(text))),
        document=f"planted-{seed}-{index}",
    )
