"""Predictors of the experts of a later layer, learned from the routes of some documents: one short class each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["PREDICTORS", "Chunk", "Predictor", "PredictorName", "make_predictor"]

Array = NDArray[Any]
PredictorName = Literal["load", "token", "markov", "activation_matrix", "oracle"]
PREDICTORS: tuple[PredictorName, ...] = get_args(PredictorName)


class Chunk:
    """The rows of one text, in order: what a predictor may look at. n tokens."""

    def __init__(self, token: Array, ran: Sequence[Array]) -> None:
        self.token = token  # (n,) token ids
        self.ran = ran  # a (n, E) 0/1 float32 array for each layer looked at


class Predictor(Protocol):
    """Learns from whole texts, then scores the experts of a layer from what is known `distance` layers before it."""

    def learn(self, text: Chunk) -> None:
        """Take one text of the documents to learn from."""
        ...

    def finish(self) -> None:
        """Called once after the last text to learn from."""
        ...

    def scores(self, text: Chunk, known: int, target: int) -> Array:
        """Return scores, (n, E), for layer number `target` when layers up to `known` have been routed."""
        ...


class Load:
    """The experts that are used most, whatever comes: what any other predictor must beat."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.runs = [np.zeros(count) for count in experts]

    def learn(self, text: Chunk) -> None:
        """Add how often each expert ran."""
        for runs, ran in zip(self.runs, text.ran, strict=True):
            runs += ran.sum(0)

    def finish(self) -> None:
        """Nothing is left to do."""

    def scores(self, text: Chunk, known: int, target: int) -> Array:
        """Return the same scores for every token."""
        return np.broadcast_to(self.runs[target], (len(text.token), len(self.runs[target])))


class Token:
    """The experts that the same token id used; for one that was never seen, those used most."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.load = Load(experts)
        self.experts = experts
        self.texts: list[tuple[Array, list[Array]]] = []
        self.ids = np.zeros(0, np.int64)
        self.runs: list[Array] = []

    def learn(self, text: Chunk) -> None:
        """Sum the text by its token ids."""
        self.load.learn(text)
        ids, entry = np.unique(text.token, return_inverse=True)
        sums = [np.zeros((len(ids), count), np.float32) for count in self.experts]
        for total, ran in zip(sums, text.ran, strict=True):
            np.add.at(total, entry, ran)
        self.texts.append((ids, sums))
        if len(self.texts) >= 64:  # memory follows the vocabulary that was seen, not the number of texts
            self._merge()

    def finish(self) -> None:
        """Make one table of all texts."""
        self._merge()
        ((self.ids, self.runs),) = self.texts

    def scores(self, text: Chunk, known: int, target: int) -> Array:
        """Return the token's own counts, with the load as the decider among equals."""
        load = self.load.runs[target] / max(1.0, self.load.runs[target].sum())
        place = np.minimum(np.searchsorted(self.ids, text.token), len(self.ids) - 1)
        found = self.ids[place] == text.token
        return np.asarray(self.runs[target][place] * found[:, None] + load * 0.5)

    def _merge(self) -> None:
        ids, entry = np.unique(np.concatenate([ids for ids, _ in self.texts]), return_inverse=True)
        merged = []
        for layer, count in enumerate(self.experts):
            total = np.zeros((len(ids), count), np.float32)
            np.add.at(total, entry, np.concatenate([sums[layer] for _, sums in self.texts]))
            merged.append(total)
        self.texts = [(ids, merged)]


class Markov:
    """P(expert j at the target layer | expert i at the last known layer), averaged over the token's experts there."""

    def __init__(self, experts: Sequence[int], distance: int) -> None:
        self.distance = distance
        pairs = zip(experts, experts[distance:], strict=False)
        self.tables = [np.zeros((first, second)) for first, second in pairs]

    def learn(self, text: Chunk) -> None:
        """Count pairs of experts over the distance."""
        for layer, table in enumerate(self.tables):
            table += text.ran[layer].T @ text.ran[layer + self.distance]

    def finish(self) -> None:
        """Turn counts into rates; an expert that never ran says what all together say."""
        for table in self.tables:
            whole, total = table.sum(0), table.sum(1, keepdims=True)
            np.divide(table, total, out=table, where=total > 0)
            table[total[:, 0] == 0] = whole / max(1.0, whole.sum())

    def scores(self, text: Chunk, known: int, target: int) -> Array:
        """Return the summed rates of the token's experts."""
        return np.asarray(text.ran[known] @ self.tables[known])


class ActivationMatrix:
    """The nearest of the stored texts by its expert activation matrix (MoE-Infinity): what it used at the target.

    A text's matrix holds how often each expert ran in each layer. Of the current text the layers up to the known one
    are compared, all its tokens so far and this one counted: 1 - mean over layers of the cosine of rows. The released
    code sets the stored matrix's past layers to zero before it compares, so that layers seen are compared with layers
    to come and the nearest one means nothing; the paper's form is used here. Its decay with the distance of layers
    orders prefetches of different layers and does not change the order within one.

    Source: arXiv 2401.14361.
    """

    def __init__(self, experts: Sequence[int], stored: int, seed: int) -> None:
        self.experts, self.stored = experts, stored
        self.generator = np.random.default_rng([seed, 31])
        self.count = 0
        self.matrices: list[list[Array]] = []
        self.stacked: list[Array] = []
        self.unit: list[Array] = []

    def learn(self, text: Chunk) -> None:
        """Keep the text's matrix, or, when the collection is full, in place of a random one (reservoir sampling)."""
        matrix = [ran.sum(0, dtype=np.float64) for ran in text.ran]
        self.count += 1
        if len(self.matrices) < self.stored:
            self.matrices.append(matrix)
            return
        place = int(self.generator.integers(self.count))
        if place < self.stored:
            self.matrices[place] = matrix

    def finish(self) -> None:
        """Stack the collection and scale its rows to length 1."""
        self.stacked = [np.stack([matrix[layer] for matrix in self.matrices]) for layer in range(len(self.experts))]
        self.unit = [_unit(rows) for rows in self.stacked]

    def scores(self, text: Chunk, known: int, target: int) -> Array:
        """Return the target row of the nearest stored matrix."""
        alike = np.zeros((len(text.token), len(self.matrices)))
        for layer in range(known + 1):
            so_far = np.cumsum(text.ran[layer], axis=0, dtype=np.float64)  # (n, E)
            alike += _unit(so_far) @ self.unit[layer].T
        return np.asarray(self.stacked[target][alike.argmax(1)])


class Oracle:
    """What was used in fact: the upper end."""

    def learn(self, text: Chunk) -> None:
        """Nothing is learned."""

    def finish(self) -> None:
        """Nothing is left to do."""

    def scores(self, text: Chunk, known: int, target: int) -> Array:
        """Return 1 for each expert that ran."""
        return text.ran[target]


def make_predictor(
    name: PredictorName, experts: Sequence[int], *, distance: int, stored: int = 100, seed: int = 0
) -> Predictor:
    """Return a predictor by name, ready to learn.

    Args:
        name: one of `PREDICTORS`.
        experts: E of each layer.
        distance: layers between what is known and what is predicted.
        stored: texts that `activation_matrix` keeps.
        seed: of which texts it keeps.
    """
    if name == "load":
        return Load(experts)
    if name == "token":
        return Token(experts)
    if name == "markov":
        return Markov(experts, distance)
    if name == "activation_matrix":
        return ActivationMatrix(experts, stored, seed)
    return Oracle()


def _unit(rows: Array) -> Array:
    """Return rows scaled to length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(np.divide(rows, length, out=np.zeros_like(rows), where=length > 0))
