"""CULNIG: neurons whose values bear on the right answers to questions of one kind, control questions taken off."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.find.artefact import NEURON_COLUMNS
from moeworks.find.inside.base import MODEL_SCORES
from moeworks.find.inside.observe import influence, memory
from moeworks.find.inside.tested import finished
from moeworks.find.inside.texts import Texts, expert_columns, texts_of
from moeworks.find.sides import AGAINST, CONTRAST

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.gradients import Influence
    from moeworks.find.artefact import Scores
    from moeworks.probes.probe import Probe, Split

__all__ = ["Influences", "culnig", "general", "influences", "specific"]

Array = NDArray[Any]
Site = Literal["gate", "up", "key"]
Divisor = Literal["samples", "routed"]


def general(score: Array, surface: Array, *, share: float = 0.01) -> Array:
    """Return which neurons are in the top share by score and not in the top share by `surface`, (n,) booleans.

    Args:
        score: (n,) control subtracted.
        surface: (n,) score on answers that need no knowledge, such as the names alone.
        share: 1 % in the paper for neurons of the gate.
    """
    return _top(score, share) & ~_top(surface, share)


def specific(
    scores: Array, surface: Array, of: int, *, share: float = 0.003, drop: float = 0.01, least: float = 0.5
) -> Array:
    """Return which neurons are specific to one label, (n,) booleans.

    Args:
        scores: (labels, n) control subtracted, one row a label.
        surface: (n,) the label's score on answers that need no knowledge.
        of: row of the label.
        share: top share by its score.
        drop: top share by `surface` that is left out.
        least: z over all labels (population deviation) that is kept; a neuron alike for all labels has z = 0.
    """
    spread = scores.std(0)
    z = (scores[of] - scores.mean(0)) / np.where(spread > 0, spread, 1.0)
    return np.asarray(_top(scores[of], share) & ~_top(surface, drop) & (z >= least))


def _top(score: Array, share: float) -> Array:
    """Return the ceil(share · n) largest, (n,) booleans; what is not above 0 is never among them."""
    strength = np.where(score > 0, score, 0.0)  # NaN is not above 0
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-strength, kind="stable")[: int(np.ceil(share * len(score) - 1e-9))]] = True
    return chosen & (strength > 0)


@dataclass
class Influences:
    """Sums over samples of each side; g groups are the two sides, or the values of a label on both."""

    groups: tuple[str, ...]
    sums: dict[int, Array]  # layer → (g, E, I)
    weight: dict[int, Array]  # layer → (g, E): w · dP/dw, which is no part of the score
    ran: dict[int, Array]  # layer → (g, E) samples in which the expert ran
    samples: Array  # (g,)

    def mean(self, layer: int, divide: Divisor) -> Array:
        """Return the mean influence, (g, E, I), over all samples, or those in which the expert ran (0 if never)."""
        by = self.samples[:, None] if divide == "samples" else self.ran[layer]
        return np.asarray(self.sums[layer] / np.maximum(by, 1)[..., None])


def influences(
    engine: Engine,
    texts: Texts,
    *,
    label: str = "",
    site: Site = "gate",
    batch_size: int = 8,
    say: Callable[[str], None] | None = None,
) -> Influences:
    """Run one forward and backward pass over each text's answer and return what neurons had to do with it.

    Args:
        engine: the transformers engine.
        texts: whole texts of either side; the answer is the first token of `answer`. Of a text without one, the mean
            probability of all its tokens takes the place of the answer's.
        label: sums are kept apart for each value of this label.
        site: gate, up or key.
        batch_size: texts a pass.
        say: called with a sentence about the memory it will take, before it starts; by default it is printed to
            standard error.
    """
    side = np.array([_side(texts, number) for number in range(len(texts.examples))])
    kept = np.flatnonzero(side >= 0)
    names = [texts.examples[number].labels.get(label, "") if label else "" for number in kept]
    values = sorted(set(names))
    groups = tuple(f"{which}{value}" for which in ("contrast ", "against ") for value in values)
    group = side[kept] * len(values) + np.array([values.index(name) for name in names])  # (samples,)
    columns = expert_columns(engine.identity, texts.where)
    found = Influences(groups, {}, {}, {}, np.bincount(group, minlength=len(groups)).astype(np.float64))
    for which, clause in ((CONTRAST, texts.contrast), (AGAINST, texts.against)):
        if not (side == which).any():
            raise BadData(f"no text of {len(side)} matches the clause '{clause}' as a whole.")
    _announce(engine, texts, columns, len(groups), batch_size, say)

    def add(seen: Influence) -> None:
        experts = columns[seen.layer][1]
        if seen.layer not in found.sums:
            found.sums[seen.layer] = np.zeros((len(groups), experts, seen.neurons.shape[1]))
            found.weight[seen.layer] = np.zeros((len(groups), experts))
            found.ran[seen.layer] = np.zeros((len(groups), experts))
        of = group[seen.samples]  # (g,)
        control = of >= len(values)  # only of control samples are negative values set to 0
        neurons = np.where(control[:, None], np.maximum(seen.neurons, 0), seen.neurons)
        np.add.at(found.sums[seen.layer][:, seen.expert], of, neurons)
        np.add.at(found.weight[seen.layer][:, seen.expert], of, seen.weight)
        np.add.at(found.ran[seen.layer][:, seen.expert], of, 1)

    influence(engine, [texts.examples[n] for n in kept], add, site=site, layers=tuple(columns), batch_size=batch_size)
    return found


@MODEL_SCORES.register("culnig")
def culnig(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    where: str = "",
    site: Site = "gate",
    divide: Divisor = "samples",
    batch_size: int = 8,
    say: Callable[[str], None] | None = None,
) -> Scores:
    """Score neurons by activation × gradient of the right answer's probability, control texts subtracted.

    Source: CULNIG (arXiv 2510.08284) and its code: one forward and backward pass of P(right answer) a sample;
    s = max over prompt tokens of act · dP/d act, times P (confidence), below 0 set to 0 for control samples only;
    summed over samples and divided by their number; the control's score taken off. `general` and `specific` select
    from it as the paper does. The official hook switches to training mode to get gradients, which turns dropout on;
    here the model stays in evaluation mode.

    For experts: a neuron has values only where its expert is chosen. The choice is held fixed in the backward pass, a
    top-k having no gradient; what the combine weight's gradient says is kept apart (`Influences.weight`). Dividing by
    all samples makes rarely chosen experts look unimportant, dividing by those in which the expert ran makes them look
    important: `influences` keeps both. Query, key and value projections, which the paper scores too, are not looked at.

    Texts without an answer are read by the mean probability of their tokens, which the paper does not do.

    It ranks without a test: p and q are NaN and nothing passes.

    Args:
        engine, probe, split, seed, command: as in `find_in_model`; nothing is drawn at random.
        where: layers that count.
        site: gate, up (pre-activations, as in the paper), or key.
        divide: by `samples` or by the samples in which the expert ran (`routed`).
        batch_size: texts a pass.
        say: told how much memory it will take before it starts; by default this goes to standard error.
    """
    if site not in ("gate", "up", "key"):
        raise BadData(f"there is no site '{site}'; {did_you_mean(site, ('gate', 'up', 'key'))}")
    if divide not in ("samples", "routed"):
        raise BadData(f"'{divide}' is no number to divide by; {did_you_mean(divide, ('samples', 'routed'))}")
    texts = texts_of(probe, split, where=where)
    found = influences(engine, texts, site=site, batch_size=batch_size, say=say)
    means = {layer: found.mean(layer, divide) for layer in sorted(found.sums)}
    first, second = (np.concatenate([mean[side].reshape(-1) for mean in means.values()]) for side in (0, 1))
    nan = np.full(len(first), np.nan)
    shapes = [(layer, *mean.shape[1:]) for layer, mean in means.items()]
    table = pa.table(
        [
            np.concatenate([np.full(e * i, layer) for layer, e, i in shapes]).astype(np.int32),
            np.concatenate([np.repeat(np.arange(e), i) for _, e, i in shapes]).astype(np.int32),
            np.concatenate([np.tile(np.arange(i), e) for _, e, i in shapes]).astype(np.int32),
            first - second,
            first,
            second,
            nan,
            nan,
            nan,
            nan,
            nan,
            np.zeros(len(first), bool),
        ],
        schema=NEURON_COLUMNS,
    )
    for number in range(len(texts.examples)):
        texts.tokens[_side(texts, number), texts.document[number]] += 1  # one answer of each text counts
    return finished(
        engine, texts, table, command=command, seed=seed, method="culnig", options={"site": site, "divide": divide},
        aggregate="macro", null="none", permutations=0, drawn=0, exhaustive=False, smallest_p=1.0, alpha=0.05,
        bootstrap=0, top=10, quantity="influence on the answer",
    )  # fmt: skip


def _side(texts: Texts, number: int) -> int:
    """Return the side of a whole text by its labels."""
    labels = texts.examples[number].labels
    for which, clause in ((CONTRAST, texts.contrast), (AGAINST, texts.against)):
        if clause.model_copy(update={"labels": {}}) != type(clause)():
            raise BadData(f"this method takes whole texts by their labels; the clause '{clause}' names parts of texts.")
        if all(labels.get(name) in values for name, values in clause.labels.items()):
            return which
    return -1


def _announce(
    engine: Engine, texts: Texts, columns: Any, groups: int, batch_size: int, say: Callable[[str], None] | None
) -> None:
    longest = max(len(engine.tokens(example.content())) for example in texts.examples)
    needed = memory(engine, tokens=batch_size * longest, columns=columns, groups=groups)
    words = ", ".join(f"{what} {amount / 2**20:,.0f} MiB" for what, amount in needed.items())
    total = sum(needed.values()) / 2**30
    sentence = f"gradients will take about {total:.2f} GiB ({words}; {batch_size} texts of up to {longest} tokens)."
    if say is None:
        print(sentence, file=sys.stderr)
    else:
        say(sentence)
