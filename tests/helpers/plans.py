"""Identities and plans for tests."""

from __future__ import annotations

import pyarrow as pa

from moeworks.address import Address, parse_addresses
from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.contract import Contract
from moeworks.find import Scores, ScoresHeader
from moeworks.find.artefact import COLUMNS
from moeworks.plan import Plan, empty_plan


def identity(*contracts, layers=(), weight_hash="weights-a", opaque=""):
    """A model with one router for each contract; layers are numbered from 0 unless given."""
    numbers = layers or range(len(contracts))
    shapes = [
        LayerShape(layer=layer, experts=c.experts, top_k=c.top_k, contract=None if opaque else c, opaque=opaque)
        for layer, c in zip(numbers, contracts, strict=True)
    ]
    return ModelIdentity(
        name="toy", family="toy_moe", weight_hash=weight_hash, tokenizer_hash="tokens", layers=tuple(shapes)
    )


def small(layers=2, experts=8, top_k=2, **contract):
    """A model of equal softmax routers."""
    return identity(*[Contract(experts=experts, top_k=top_k, **contract)] * layers)


def plan(model, *operations, **fields) -> Plan:
    """A plan for a model."""
    return empty_plan(model).model_copy(update={"operations": operations, **fields})


def at(text):
    """Addresses as an operation takes them."""
    return tuple(parse_addresses(text))


def scores(model, values, *, passing=None):
    """Scores of a model from {address: score}, else 0; `passing`: addresses that pass, all of the former if None."""
    values = {parse_addresses(name)[0]: value for name, value in values.items()}
    rows = [Address(shape.layer, expert) for shape in model.layers for expert in range(shape.experts)]
    passes = values if passing is None else parse_addresses(passing)
    score = [values.get(row, 0.0) for row in rows]
    columns = {name: [0.0] * len(rows) for name in COLUMNS.names}
    columns |= {"layer": [row.layer for row in rows], "expert": [row.expert for row in rows]}
    columns |= {"score": score, "passes": [row in passes for row in rows]}
    header = ScoresHeader(
        moeworks="0.1.0", model=model, contrast="lang=fr", against="lang=en", method="risk_difference",
        aggregate="micro", documents=(4, 4), pairs=4, tokens=(40, 40), null="labels", permutations=10, drawn=10,
        exhaustive=False, smallest_p=0.1, alpha=0.05, bootstrap=0, top=10, hash="scores-hash", text_hash="text-hash",
    )  # fmt: skip
    return Scores(pa.table(columns, schema=COLUMNS), header)


def places(value, path=()):
    """Yield the path of everything in a JSON document."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))
