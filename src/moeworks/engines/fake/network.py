"""The fake model's arithmetic: tokens → residual → routers and experts → log-probabilities, in numpy.

All parameters lie on a coarse binary grid and the residual is rounded to a finer one after every layer, so that every
sum of products is exact in float64. The order of summation, and with it the batch, cannot change a single bit.

Letters in shapes: n tokens, L layers, E experts, k chosen, d residual, m neurons of an expert, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract, Decision, decide
from moeworks.engines.fake.plants import CALL, HALF, REST, Plant
from moeworks.engines.fake.words import LONG, MARKS, TOPICS, topic_letters, write_sentences
from moeworks.errors import BadData
from moeworks.plan.neurons import Site

__all__ = [
    "END",
    "VOCABULARY",
    "Network",
    "build_network",
    "last_residual",
    "layer_values",
    "own_decision",
    "predict",
    "residual_of",
]

Array = NDArray[Any]
Decide = Callable[[int, Array], Decision]  # (index of the layer, logits (n, E)) → what the router decides
Inside = Callable[[int, Site, Array], Array]  # (index of the layer, site, values (n, E, m)) → values in their place

END = 256  # the token that closes a text; 0 to 255 are bytes
VOCABULARY = 257
# The residual: named directions before and after the content. LATE is 1 some way into a text, MARKED on other spaces
# and stops; only plants that are confounded with length or token identity have a router that hears them.
BEHAVIOUR, SIGNATURE, CONSTANT, LATE, MARKED = 0, 1, 2, 24, 25
CONTENT = slice(3, 24)
WIDTH, NEURONS = 26, 4
CONTENT_WIDTH = CONTENT.stop - CONTENT.start
RECENT = 8  # tokens over which the behaviour is heard
SHOUT = -3.0  # logits of shouted letters where nothing writes the signature
SMALL, CAPITAL = np.arange(97, 123), np.arange(65, 91)
FIT_TEXTS = 36
PARAMETER_GRID, RESIDUAL_GRID = 2.0**-8, 2.0**-16


@dataclass(frozen=True)
class Network:
    """The parameters."""

    embedding: Array  # (V, d)
    shouted: Array  # (V,) 1 for capital letters, -1 for small ones, 0 elsewhere
    router: Array  # (L, E, d)
    bias: Array  # (L, E) selection bias, used where the contract has one
    expert_scale: Array  # (L, E) factors, used where the contract has them
    up: Array  # (L, E, m, d)
    down: Array  # (L, E, d, m)
    unembedding: Array  # (V, d)

    def arrays(self) -> dict[str, Array]:
        """All parameters by name, for hashing."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def build_network(plant: Plant, contract: Contract, *, layers: int, seed: int) -> Network:
    """Draw a network and put the plant into it; the same seed gives the same network, whatever the plant."""
    if contract.hashed:
        raise BadData("the fake engine has no hash tables; take a contract with hashed=False.")
    generator = np.random.default_rng([seed, 0])
    content = CONTENT_WIDTH
    shouted = np.zeros(VOCABULARY)  # (V,)
    shouted[CAPITAL], shouted[SMALL] = 1.0, -1.0

    embedding = np.zeros((VOCABULARY, WIDTH))  # (V, d)
    embedding[:, CONTENT] = generator.normal(size=(VOCABULARY, content))
    embedding[CAPITAL] = embedding[SMALL]  # capitals carry the same content, so that only the behaviour differs
    for plain, mark in MARKS.items():
        embedding[ord(mark)] = embedding[ord(plain)]
        embedding[ord(mark), MARKED] = 1.0
    embedding[:, CONSTANT] = 1.0

    experts = contract.experts
    router = np.zeros((layers, experts, WIDTH))  # (L, E, d)
    router[..., CONTENT] = generator.normal(size=(layers, experts, content)) / np.sqrt(content)
    router[..., CONSTANT] = generator.normal(size=(layers, experts)) * 0.3
    up = np.zeros((layers, experts, NEURONS, WIDTH))  # (L, E, m, d)
    up[..., CONTENT] = generator.normal(size=(layers, experts, NEURONS, content)) / np.sqrt(content)
    down = np.zeros((layers, experts, WIDTH, NEURONS))  # (L, E, d, m)
    down[..., CONTENT, :] = generator.normal(size=(layers, experts, content, NEURONS))
    bias = generator.normal(size=(layers, experts)) * 0.05
    expert_scale = 1.0 + generator.normal(size=(layers, experts)) * 0.1

    drawn = (embedding, shouted, router, bias, expert_scale, up, down, np.zeros((VOCABULARY, WIDTH)))
    network = Network(*(_on_grid(array, PARAMETER_GRID) for array in drawn))
    network.unembedding[:] = _read_out(network, contract, seed)
    _put(plant, network)
    return network


def _read_out(network: Network, contract: Contract, seed: int) -> Array:
    """Fit the unembedding, (V, d), on plain text: each next token a spherical Gaussian in the last residual."""
    generator = np.random.default_rng([seed, 2])
    sums, squares, counts = np.zeros((VOCABULARY, WIDTH)), 0.0, np.zeros(VOCABULARY)
    for text in range(FIT_TEXTS):
        tokens = np.frombuffer(" ".join(write_sentences(text % TOPICS, generator)).encode(), np.uint8)
        last = last_residual(network, residual_of(network, tokens), own_decision(network, contract))[:-1]
        np.add.at(sums, tokens[1:], last)
        counts += np.bincount(tokens[1:], minlength=VOCABULARY)
        squares += (last[:, CONTENT] ** 2).sum()
    means = (sums / np.maximum(counts, 1)[:, None])[:, CONTENT]  # (V, d - 3)
    within = (squares - (counts[:, None] * means**2).sum()) / (counts.sum() * means.shape[1])  # variance a direction
    unembedding = np.zeros((VOCABULARY, WIDTH))
    unembedding[:, CONTENT] = means / within
    unembedding[:, CONSTANT] = np.log((counts + 0.01) / counts.sum()) - (means**2).sum(-1) / (2 * within)
    unembedding[CAPITAL] = unembedding[SMALL]
    unembedding[CAPITAL, CONSTANT] += SHOUT
    unembedding[:, SIGNATURE] = network.shouted
    return _on_grid(unembedding, PARAMETER_GRID)


def _put(plant: Plant, network: Network) -> None:
    router, up, down = network.router, network.up, network.down
    for (layer, expert), call in plant.calls.items():
        router[layer, expert, BEHAVIOUR], router[layer, expert, CONSTANT] = call, REST
    for (layer, expert), call in plant.off_calls.items():
        router[layer, expert, BEHAVIOUR], router[layer, expert, CONSTANT] = -call, call + REST
    for (layer, expert), call in plant.standing.items():
        router[layer, expert, CONTENT] = 0.0  # chosen for nothing
        router[layer, expert, CONSTANT] = call
    for (layer, expert), confound in plant.hears.items():
        router[layer, expert, CONSTANT] = REST
        if confound == "topic":
            router[layer, expert, CONTENT] = _on_grid(_topic_direction(network.embedding), PARAMETER_GRID)
            router[layer, expert, CONSTANT] = 0.0
        else:
            router[layer, expert, LATE if confound == "length" else MARKED] = CALL
    states = list(plant.states)
    for layer, expert in states[1:]:  # experts that differ in what they state, and in nothing else
        up[layer, expert], down[layer, expert] = up[states[0]], down[states[0]]
    for place, strength in plant.writes.items():
        _write(network, place, plant.neuron, strength, reads={BEHAVIOUR: 1.0})
    for place, strength in plant.states.items():
        _write(network, place, plant.neuron, strength, reads={CONSTANT: 1.0})
    for place, strength in plant.relays.items():
        _write(network, place, plant.neuron, strength, reads={SIGNATURE: 1 / HALF})
    network.unembedding[:, BEHAVIOUR] = plant.direct * network.shouted


def _write(network: Network, place: tuple[int, int], neuron: int, strength: float, *, reads: dict[int, float]) -> None:
    """Let a neuron read named directions and nothing else, and write the signature and nothing else."""
    network.up[*place, neuron] = 0.0
    for direction, factor in reads.items():
        network.up[*place, neuron, direction] = factor
    network.down[*place, :, neuron] = 0.0
    network.down[*place, SIGNATURE, neuron] = strength


def _topic_direction(embedding: Array) -> Array:
    """Return the content, (content,), that tells the first half of the topics from the second, as router weights.

    Its scale moves the logits of the mean text of either half to + and - 2.
    """
    shares = np.stack([topic_letters(topic) for topic in range(TOPICS)])  # (topics, 26)
    direction = (shares[: TOPICS // 2].mean(0) - shares[TOPICS // 2 :].mean(0)) @ embedding[SMALL][:, CONTENT]
    return np.asarray(direction * 4 / (direction**2).sum())


def residual_of(network: Network, tokens: Array) -> Array:
    """Return what enters the first layer for each token of one text, (n, d).

    It is the token's embedding, half the mean of the four before it and the mean of all before it: context and topic.
    The behaviour is on where the last tokens, this one included, hold more capital letters than small ones.
    """
    n = len(tokens)
    own = network.embedding[tokens]  # (n, d)
    before = np.concatenate([np.zeros((1, WIDTH)), np.cumsum(own, axis=0)])[:n]  # (n, d) sums, exact
    place = np.arange(n)
    recent = (before - before[np.maximum(place - 4, 0)]) / 4
    topic = before / np.maximum(place, 1)[:, None]
    residual = own.copy()
    residual[:, CONTENT] += (0.5 * recent + topic)[:, CONTENT]
    balance = np.concatenate([[0.0], np.cumsum(network.shouted[tokens])])  # (n + 1,)
    residual[:, LATE] = place >= LONG
    residual[:, BEHAVIOUR] = balance[1:] > balance[np.maximum(place + 1 - RECENT, 0)]
    return _on_grid(residual, RESIDUAL_GRID)


def own_decision(network: Network, contract: Contract) -> Decide:
    """Return what the routers decide when nobody steers."""

    def route(layer: int, logits: Array) -> Decision:
        return decide(logits, contract, **layer_values(network, contract, layer))

    return route


def layer_values(network: Network, contract: Contract, layer: int) -> dict[str, Array | None]:
    """Return the values that belong to a layer's router, None where its contract has none."""
    return {
        "bias": network.bias[layer] if contract.bias else None,
        "expert_scale": network.expert_scale[layer] if contract.expert_scale else None,
    }


def predict(network: Network, last: Array) -> Array:
    """Return the log-probabilities of the next token, (n, V), from the last residual."""
    return _log_softmax(last @ network.unembedding.T)


def last_residual(network: Network, residual: Array, route: Decide, inside: Inside | None = None) -> Array:
    """Return the normalised residual after all layers, (n, d); `inside` may change values of neurons.

    Routers hear the tokens only, not what experts wrote: an expert that a planted one pushes out changes nothing in
    later layers' routing, so that the plant is the whole truth about which experts rise.
    """
    heard = _normalise(residual)
    for layer in range(len(network.router)):
        decision = route(layer, heard @ network.router[layer].T)
        written = _experts(network, layer, _normalise(residual), decision, inside)
        residual = _on_grid(residual + written, RESIDUAL_GRID)
    return _normalise(residual)


def _normalise(residual: Array) -> Array:
    """Return the residual with its content at a root mean square of 1; the named directions stay."""
    normed = residual.copy()
    content = residual[:, CONTENT]
    normed[:, CONTENT] /= np.sqrt((content**2).mean(-1, keepdims=True) + 1e-6)
    return _on_grid(normed, RESIDUAL_GRID)


def _experts(network: Network, layer: int, normed: Array, decision: Decision, inside: Inside | None) -> Array:
    ids, weights = decision.ids, decision.weights.astype(np.float64)
    hidden = (normed @ network.up[layer].reshape(-1, WIDTH).T).reshape(len(normed), -1, NEURONS)  # (n, E, m)
    hidden = np.maximum(_changed(inside, layer, "up", hidden), 0.0)
    hidden = _changed(inside, layer, "key", hidden)
    chosen = np.take_along_axis(hidden, ids[..., None].astype(np.intp), axis=1)  # (n, k, m)
    outputs = np.einsum("nkm,nkdm->nkd", chosen, network.down[layer][ids])  # (n, k, d)
    total = np.zeros_like(normed)
    for slot in range(ids.shape[1]):  # in the router's order: this sum is the only one that rounds
        total += weights[:, slot, None] * outputs[:, slot]
    return total


def _changed(inside: Inside | None, layer: int, site: Site, values: Array) -> Array:
    """Return the values with what is changed in them on the grid; what is not changed stays as it is."""
    if inside is None:
        return values
    new = inside(layer, site, values)
    return np.where(new == values, values, _on_grid(new, RESIDUAL_GRID))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _on_grid(array: Array, grid: float) -> Array:
    return np.asarray(np.round(array / grid) * grid)
