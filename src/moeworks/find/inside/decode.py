"""What expert neurons and router rows point to in the vocabulary: their weights read with the unembedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from moeworks.address import Address
from moeworks.errors import BadData, Unsupported, did_you_mean
from moeworks.find.inside.observe import as_numpy, reading

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.unembedding import Unembedding

__all__ = ["DECODED", "VECTORS", "Vector", "decode", "decoded_words"]

Vector = Literal["gate", "up", "down", "router"]
VECTORS: tuple[Vector, ...] = ("gate", "up", "down", "router")
DECODED = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("neuron", pa.int32()),  # null for rows of the router
        ("vector", pa.string()),
        ("rank", pa.int32()),
        ("token", pa.int32()),
        ("text", pa.string()),
        ("score", pa.float32()),
    ]
)


def decode(
    engine: Engine,
    experts: Sequence[Address] | None = None,
    *,
    neurons: Sequence[int] | None = None,
    vectors: Sequence[Vector] = VECTORS,
    top: int = 5,
    sign: Literal[1, -1] = 1,
    unembedding: Unembedding | None = None,
) -> pa.Table:
    """Return the tokens that the weights of experts point to, one row a token.

    Source: "Flash Interpretability" (arXiv 2501.02688; the formula here is recalled, not read): a row of an up
    projection lives in the residual, so that W_U w names it, one matrix product for all neurons of a layer. For experts
    three vectors a neuron are read: its gate row and its up row (what it reads) and its down column (what it writes),
    the last one times the gain of the final norm; and the row of the router. Rows of W_U are centred: a score is a
    logit above the mean over the vocabulary.

    The sign of a neuron is free: a negative activation writes the opposite of its down column, which `sign=-1` shows.
    Early layers decode poorly. Validate a name by clamping the neuron and looking at the token's probability.

    Args:
        engine: the transformers engine.
        experts: which; None for all.
        neurons: which of their neurons; None for all.
        vectors: which of gate, up, down and router.
        top: tokens for each vector.
        sign: -1 for the tokens that a vector points away from most.
        unembedding: of this engine, as `reading` gives it; without it the model runs once, on a few tokens.

    Returns:
        A table with the columns of `DECODED`, by layer, expert, neuron, vector and rank; router rows come first.

    Raises:
        BadData: an expert, a neuron or a vector is not there.
        Unsupported: the model's experts, router or unembedding are no plain matrices; with the reason.
    """
    for vector in vectors:
        if vector not in VECTORS:
            raise BadData(f"experts have no vector '{vector}'; {did_you_mean(vector, VECTORS)}")
    if not vectors or top < 1 or sign not in (1, -1):
        raise BadData("decoding needs a vector, at least one token for each, and a sign of 1 or -1.")
    wanted = _by_layer(engine, experts)
    unembedding = unembedding or reading(engine)
    routers: Any = {router.layer: router for router in engine.routers}  # type: ignore[attr-defined]
    parts = [
        part
        for layer, chosen in wanted.items()
        for part in _of_layer(engine, unembedding, routers[layer], chosen, neurons, vectors, top, sign)
    ]
    order = [(name, "ascending") for name in ("layer", "expert", "place_neuron", "place", "rank")]
    return pa.concat_tables(parts).sort_by(order).select(DECODED.names)


def decoded_words(table: pa.Table) -> list[str]:
    """Return a decoded table in words, a line for each vector."""
    lines: dict[str, list[str]] = {}
    for row in table.to_pylist():
        neuron = "" if row["neuron"] is None else f".N{row['neuron']}"
        name = f"{Address(row['layer'], row['expert'])}{neuron} {row['vector']}"
        lines.setdefault(name, []).append(f"{row['text']!r} {row['score']:+.2f}")
    width = max(map(len, lines), default=0)
    return [f"{name:<{width}}  {', '.join(words)}" for name, words in lines.items()]


def _by_layer(engine: Engine, experts: Sequence[Address] | None) -> dict[int, list[int]]:
    wanted: dict[int, list[int]] = {}
    if experts is None:
        return {shape.layer: list(range(shape.experts)) for shape in engine.identity.layers}
    for address in sorted(set(experts)):
        shape = engine.identity.layer(address.layer)
        if address.expert >= shape.experts:
            raise BadData(f"{address} is not there: layer {address.layer} has experts 0 to {shape.experts - 1}.")
        wanted.setdefault(address.layer, []).append(address.expert)
    if not wanted:
        raise BadData("say which experts to decode, or leave them out for all.")
    return wanted


def _of_layer(
    engine: Engine,
    unembedding: Unembedding,
    router: Any,
    experts: list[int],
    neurons: Sequence[int] | None,
    vectors: Sequence[Vector],
    top: int,
    sign: Literal[1, -1],
) -> Iterator[pa.Table]:
    """Yield one table for each kind of vector of one layer."""
    from moeworks.families.expert_weights import expert_weights

    if "router" in vectors:
        directions = _router_rows(router)[experts]  # (experts, H)
        yield _table(engine, unembedding, router.layer, experts, None, "router", directions, top, sign)
    if set(vectors) == {"router"}:
        return
    weights = expert_weights(router)
    held = [expert for expert in experts if expert < weights.experts]  # others are the identity: nothing to read
    if not held:
        return
    inner = weights.up.shape[1]
    chosen = list(range(inner)) if neurons is None else sorted(set(neurons))
    if not chosen or chosen[0] < 0 or chosen[-1] >= inner:
        raise BadData(f"experts of layer {router.layer} have neurons 0 to {inner - 1}; {neurons} are not all there.")
    for vector in vectors:
        matrix = {"gate": weights.gate, "up": weights.up, "down": weights.down.transpose(1, 2)}.get(vector)
        if matrix is None:  # the router's rows, done above, or the gate of experts without one
            continue
        rows = matrix[held][:, chosen]  # (experts, neurons, H)
        directions = rows.reshape(-1, rows.shape[-1]).float()
        if vector == "down":
            directions = unembedding.written(directions)
        yield _table(engine, unembedding, router.layer, held, chosen, vector, directions, top, sign)


def _table(
    engine: Engine,
    unembedding: Unembedding,
    layer: int,
    experts: list[int],
    neurons: list[int] | None,
    vector: Vector,
    directions: Any,
    top: int,
    sign: Literal[1, -1],
) -> pa.Table:
    if directions.shape[-1] != unembedding.rows.shape[1]:
        raise Unsupported(
            f"the {vector} vectors of layer {layer} are {directions.shape[-1]} wide, the residual is "
            f"{unembedding.rows.shape[1]}: they do not live in it, so that the unembedding cannot read them."
        )
    found = unembedding.top_tokens(directions, top, sign=sign)
    tokens, scores = as_numpy(found.tokens), as_numpy(found.scores)  # (vectors, top)
    count, each = len(tokens), tokens.shape[1]
    inner = 1 if neurons is None else len(neurons)
    number = np.tile(np.zeros(1) if neurons is None else np.asarray(neurons), len(experts))
    decoder: Any = engine.tokenizer  # type: ignore[attr-defined]
    unique, place = np.unique(tokens, return_inverse=True)
    texts = np.array([decoder.decode([int(token)]) for token in unique], dtype=object)[place.reshape(-1)]
    return pa.table(
        {
            "layer": pa.array(np.full(count * each, layer), pa.int32()),
            "expert": pa.array(np.repeat(np.repeat(experts, inner), each), pa.int32()),
            "neuron": pa.array(np.repeat(number, each), pa.int32(), mask=np.full(count * each, neurons is None)),
            "vector": pa.array([vector] * (count * each), pa.string()),
            "rank": pa.array(np.tile(np.arange(each), count), pa.int32()),
            "token": pa.array(tokens.reshape(-1), pa.int32()),
            "text": pa.array(texts, pa.string()),
            "score": pa.array(scores.reshape(-1), pa.float32()),
            "place_neuron": pa.array(
                np.full(count * each, -1) if neurons is None else np.repeat(number, each), pa.int32()
            ),
            "place": pa.array(np.full(count * each, VECTORS.index(vector)), pa.int32()),
        }
    )


def _router_rows(router: Any) -> Any:
    """Return what a router reads, (E, H) float32."""
    modules = [module for module in (router.module, router.logits_module) if module is not None]
    found = {
        id(weight): weight
        for module in modules
        for weight in module.parameters()
        if weight.ndim == 2 and len(weight) >= router.experts and weight.shape[1] == router.hidden_size
    }
    if len(found) == 1:
        return next(iter(found.values())).detach().float()
    raise Unsupported(f"the router '{router.name}' is no single matrix; decode the other vectors only.")
