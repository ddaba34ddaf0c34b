"""Compares two models, or one without and with a change, on texts: KL, overlap, perplexity, loops, size, speed."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import hash_texts
from moeworks.edit.comparison import ALL, Comparison, Loops, Perplexity, Size, Speed, share
from moeworks.edit.loops import find_loop
from moeworks.edit.sides import Side, run_logits, side_of, write_answers
from moeworks.edit.token_sums import TokenSums, compare_texts
from moeworks.engines.progress import Progress
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.plan.evidence import Interval
from moeworks.prove.resample import Resamples, document_numbers

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["LABELS", "compare", "compare_requests", "compare_several", "measure_speed"]

LABELS = ("lang", "domain")
ROUNDS = 5  # of the speed measurement
SPEED_BATCHES = 3
Array = NDArray[np.float64]


def compare(
    before: Engine | Side,
    after: Engine | Side,
    texts: Iterable[Example],
    *,
    labels: Sequence[str] = LABELS,
    prompts: int = 0,
    prompt_tokens: int = 32,
    new_tokens: int = 1024,
    temperature: float = 0.0,
    speed: bool = False,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compare two models on texts; all numbers a token come with a bootstrap interval over documents.

    Overlap is ESAP, the mean over tokens of sum over the vocabulary of min(p, q), teacher-forced on answers that the
    model before wrote itself. Source: EvoESAP, arXiv 2603.06003 [secondary]. The loop rule is that of `find_loop`.

    Args:
        before: the original, an engine or a side of `under`.
        after: what became of it.
        texts: to predict; texts with an answer count by their answer alone.
        labels: perplexity is told for each value of these.
        prompts: texts that are continued, for overlap and loops; each of another document. 0: neither is measured.
        prompt_tokens: a prompt is so much of a text's beginning.
        new_tokens: at most so many are generated; the context limits them.
        temperature: of generating; 0 is greedy.
        speed: measure tokens a second, taking turns.
        batch_size: texts a forward pass.
        bootstrap: samples.
        seed: of the bootstrap, of which prompts are taken, and of sampling.
        progress: show a bar on standard error.

    Raises:
        BadData: there is no text, or the two models read text differently.
        Unsupported: an engine holds no torch model.
    """
    one, other = side_of(before), side_of(after)
    requests = _read(one, [other], texts)
    openings = _openings(one, requests, prompts, prompt_tokens, new_tokens, seed) if prompts else []
    with Progress("comparing", "texts", total=len(requests) + 3 * len(openings), show=progress) as bar:
        (found,) = _compared(one, [other], requests, labels, batch_size, bootstrap, seed, bar)
        told: dict[str, Any] = {"size": _size(one, other)}
        if openings:
            room = one.engine.context - max(len(opening.tokens) for opening in openings)
            tokens = min(new_tokens, room)
            written = []
            for side in (one, other):
                written.append(
                    write_answers(side, openings, tokens, temperature=temperature, batch_size=batch_size, seed=seed)
                )
                bar.advance(len(openings))
            told["overlap"] = _overlap(one, other, written[0], batch_size, bootstrap, seed)
            told["loops"] = _loops(*written, tokens=tokens, temperature=temperature)
            bar.advance(len(openings))
    if speed:
        told["speed"] = measure_speed(one, other, requests, batch_size=batch_size)
    return found.model_copy(update=told)


def compare_several(
    before: Engine | Side,
    afters: Sequence[Engine | Side],
    texts: Iterable[Example],
    *,
    labels: Sequence[str] = LABELS,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> list[Comparison]:
    """Compare one model with several others by KL, agreement and perplexity; it runs once for all of them.

    Args and errors are those of `compare`.
    """
    one, others = side_of(before), [side_of(after) for after in afters]
    return compare_requests(
        one,
        others,
        _read(one, others, texts),
        labels=labels,
        batch_size=batch_size,
        bootstrap=bootstrap,
        seed=seed,
        progress=progress,
    )


def compare_requests(
    before: Side,
    afters: Sequence[Side],
    requests: Sequence[Prepared],
    *,
    labels: Sequence[str] = LABELS,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> list[Comparison]:
    """Compare on texts that were read already; see `compare_several`."""
    with Progress("comparing", "texts", total=len(requests) * len(afters), show=progress) as bar:
        return _compared(before, afters, requests, labels, batch_size, bootstrap, seed, bar)


def _read(one: Side, others: Sequence[Side], texts: Iterable[Example]) -> list[Prepared]:
    for other in others:
        if one.engine.identity.tokenizer_hash != other.engine.identity.tokenizer_hash:
            raise BadData(
                f"{one.name} and {other.name} have different tokenizers, so that their predictions cannot be compared."
            )
    requests = list(one.engine.reader.read(iter(texts)))
    if not requests:
        raise BadData("there is no text to compare on; give some (--data).")
    return requests


def _compared(
    one: Side,
    others: Sequence[Side],
    requests: Sequence[Prepared],
    labels: Sequence[str],
    batch_size: int,
    bootstrap: int,
    seed: int,
    bar: Progress,
) -> list[Comparison]:
    sums = np.zeros((len(others), len(requests), len(TokenSums._fields)))
    for number, place, found in compare_texts(one, others, requests, batch_size=batch_size):
        sums[number, place] = found
        bar.advance(1)
    documents = document_numbers([request.document for request in requests])
    resamples = Resamples(documents, samples=bootstrap, seed=seed)
    text_hash = hash_texts(request.content for request in requests)
    comparisons = []
    for other, table in zip(others, sums, strict=True):
        columns = dict(zip(TokenSums._fields, table.T, strict=True))  # each (texts,)
        comparisons.append(
            Comparison(
                before=one.name,
                after=other.name,
                texts=len(requests),
                documents=int(documents.max()) + 1,
                tokens=int(columns["tokens"].sum()),
                text_hash=text_hash,
                divergence=resamples.ratio(columns["divergence"], columns["tokens"]),
                agreement=resamples.ratio(columns["agreement"], columns["tokens"]),
                perplexity=_perplexities(requests, labels, columns, documents, bootstrap, seed),
            )
        )
    return comparisons


def measure_speed(
    before: Side, after: Side, requests: Sequence[Prepared], *, batch_size: int = 8, rounds: int = ROUNDS
) -> Speed:
    """Time forward passes over the longest texts, the two sides taking turns, so that a busy machine slows both alike.

    One round that does not count comes first. What a side needs to be set up is not timed.
    """
    longest = sorted(requests, key=lambda request: -len(request.tokens))[: SPEED_BATCHES * batch_size]
    tokens = sum(len(request.tokens) for request in longest)
    rates: dict[int, list[float]] = {0: [], 1: []}
    for number in range(rounds + 1):
        for turn in (0, 1) if number % 2 else (1, 0):
            side = (before, after)[turn]
            with side.running():
                start = time.perf_counter()
                for place in range(0, len(longest), batch_size):
                    logits = run_logits(side, longest[place : place + batch_size])
                    logits[0][-1, 0].item()  # waits for a device that runs behind
                elapsed = time.perf_counter() - start
            if number:
                rates[turn].append(tokens / elapsed)
    ratios = [after_rate / before_rate for before_rate, after_rate in zip(rates[0], rates[1], strict=True)]
    return Speed(
        before=statistics.median(rates[0]),
        after=statistics.median(rates[1]),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        rounds=rounds,
    )


def _openings(
    side: Side, requests: Sequence[Prepared], count: int, length: int, new_tokens: int, seed: int
) -> list[Prepared]:
    """Return the beginnings of at most `count` texts, each of another document, drawn by the seed."""
    room = side.engine.context - min(new_tokens, max(1, side.engine.context // 2))
    by_document = {request.document: request for request in reversed(requests)}  # the first of each
    names = sorted(by_document)
    drawn = np.random.default_rng([seed, 5]).permutation(len(names))[:count]
    chosen = [by_document[names[place]] for place in np.sort(drawn)]
    return [_opening(request, min(length, room)) for request in chosen]


def _opening(request: Prepared, length: int) -> Prepared:
    """Return what is given before a text goes on: its prompt where it has an answer, else its first tokens."""
    answered = 0 < request.prompt_tokens < len(request.tokens)
    tokens = request.tokens[: request.prompt_tokens][-length:] if answered else request.tokens[:length]
    return replace(request, tokens=tokens, prompt_tokens=len(tokens), spans=())


def _overlap(
    one: Side, other: Side, answers: Sequence[Prepared], batch_size: int, bootstrap: int, seed: int
) -> Interval:
    """Return ESAP on answers of the first side, pooled over tokens."""
    sums = np.zeros((len(answers), 2))  # overlap, tokens
    for _, place, found in compare_texts(one, [other], answers, batch_size=batch_size):
        sums[place] = found.overlap, found.tokens
    documents = document_numbers([answer.document for answer in answers])
    return Resamples(documents, samples=bootstrap, seed=seed).ratio(sums[:, 0], sums[:, 1])


def _loops(before: Sequence[Prepared], after: Sequence[Prepared], *, tokens: int, temperature: float) -> Loops:
    looping = [
        np.array([find_loop(text.tokens[text.prompt_tokens :]) is not None for text in side])
        for side in (before, after)
    ]  # each (texts,)
    return Loops(
        texts=len(before),
        before=share(looping[0]),
        after=share(looping[1]),
        begun=int((looping[1] & ~looping[0]).sum()),
        tokens=tokens,
        temperature=temperature,
    )


def _perplexities(
    requests: Sequence[Prepared],
    labels: Sequence[str],
    columns: dict[str, Array],
    documents: NDArray[np.int64],
    bootstrap: int,
    seed: int,
) -> dict[str, Perplexity]:
    """Return exp(-log-probability a token), tokens of a group pooled, of all texts and of each value of each label."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        groups[ALL].append(place)
        for label in labels:
            if request.labels.get(label):
                groups[f"{label}={request.labels[label]}"].append(place)
    found = {}
    for name in sorted(groups, key=lambda name: (name != ALL, name)):
        places = np.array(groups[name])
        tokens, before, after = (columns[column][places] for column in ("tokens", "before", "after"))
        numbers = np.unique(documents[places], return_inverse=True)[1]
        rise = Resamples(numbers, samples=bootstrap, seed=seed).ratio(after - before, tokens)
        with np.errstate(over="ignore"):
            found[name] = Perplexity(
                texts=len(places),
                documents=int(numbers.max()) + 1,
                tokens=int(tokens.sum()),
                before=float(np.exp(before.sum() / tokens.sum())),
                after=float(np.exp(after.sum() / tokens.sum())),
                ratio=Interval(
                    value=float(np.exp(rise.value)), low=float(np.exp(rise.low)), high=float(np.exp(rise.high))
                ),
            )
    return found


def _size(one: Side, other: Side) -> Size:
    with one.running():
        before = one.engine.size()
    with other.running():
        after = other.engine.size()
    return Size(
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        bytes_before=before.bytes,
        bytes_after=after.bytes,
    )
