"""The endpoints that read traces: tokens, maps, cards, layers, comparisons; the same numbers as `moeworks inspect`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, get_args

from fastapi import FastAPI, Request
from fastapi.responses import Response

from moeworks.address import parse_address
from moeworks.errors import BadData, did_you_mean
from moeworks.view.answers import tagged
from moeworks.view.cards import expert_card
from moeworks.view.comparing import compared_tokens, comparison_json
from moeworks.view.expert_map import MapBy, expert_map
from moeworks.view.kept import trace_hash
from moeworks.view.layers import cache_rows, layer_rows, possible_layers
from moeworks.view.tokens import request_table, token_table

if TYPE_CHECKING:
    from moeworks.find import Scores
    from moeworks.trace import Trace
    from moeworks.view.sources import Sources

__all__ = ["add_tables"]

TRACE = "/view/api/traces/{id}"
COMPARED = "/view/api/compare/{a}/{b}"


def add_tables(app: FastAPI, sources: Sources) -> None:
    """Add what is asked of one trace, or of two."""
    _add_tokens(app, sources)
    _add_experts(app, sources)
    _add_layers(app, sources)
    _add_comparisons(app, sources)


def _add_tokens(app: FastAPI, sources: Sources) -> None:
    @app.get(f"{TRACE}/requests")
    def requests(id: str, request: Request) -> Response:
        """Give the requests of a trace."""
        return _of_trace(request, sources, id, lambda trace: request_table(trace, decoder=sources.decoder(id)))

    @app.get(f"{TRACE}/tokens")
    def tokens(id: str, request: Request, start: int = 0, stop: int | None = None, layers: str = "") -> Response:
        """Give the tokens of some rows."""
        wanted = _numbers(layers, "layers")

        def make(trace: Trace) -> Any:
            return token_table(trace, start=start, stop=stop, layers=wanted, decoder=sources.decoder(id))

        return _of_trace(request, sources, id, make)


def _add_experts(app: FastAPI, sources: Sources) -> None:
    @app.get(f"{TRACE}/map")
    def map_of_experts(
        id: str, request: Request, by: str = "load", label: str = "", value: str = "", scores: str = ""
    ) -> Response:
        """Give one number for every expert."""
        if by not in get_args(MapBy):
            raise BadData(f"by does not take '{by[:80]}'; {did_you_mean(by[:80], get_args(MapBy))}")
        found = sources.scores(scores) if scores else None

        def make(trace: Trace) -> Any:
            return expert_map(trace, by=cast(MapBy, by), label=label, value=value, scores=found)

        return _of_trace(request, sources, id, make, more="" if found is None else found.header.hash)

    @app.get(f"{TRACE}/experts/{{address}}")
    def card(id: str, address: str, request: Request) -> Response:
        """Give the card of an expert."""
        expert, scores = parse_address(address), _scores_of(sources, id)
        hashes = " ".join(one.header.hash for one in scores.values())

        def make(trace: Trace) -> Any:
            engine = sources.engine_of(id)
            return expert_card(
                trace,
                expert,
                decoder=sources.decoder(id),
                engine=engine,
                unembedding=sources.unembedding if engine is not None else None,
                scores=scores,
            )

        return _of_trace(request, sources, id, make, more=hashes)


def _add_layers(app: FastAPI, sources: Sources) -> None:
    @app.get(f"{TRACE}/layers")
    def possible(id: str, request: Request) -> Response:
        """List what can be asked of the layers of a trace, and why the rest cannot."""
        return _of_trace(request, sources, id, possible_layers)

    @app.get(f"{TRACE}/layers/{{what}}")
    def layers(id: str, what: str, request: Request, label: str = "", base: str = "") -> Response:
        """Give a diagnostic, layer by layer."""
        return _of_trace(
            request, sources, id, lambda trace: layer_rows(trace, what, label=label or None, base=base or None)
        )

    @app.get(f"{TRACE}/cache")
    def cache(id: str, request: Request, capacity: str = "2k") -> Response:
        """Give the curve of a cache of experts over its size."""
        return _of_trace(request, sources, id, lambda trace: cache_rows(trace, capacity=capacity))


def _add_comparisons(app: FastAPI, sources: Sources) -> None:
    @app.get(COMPARED)
    def summary(a: str, b: str, request: Request, label: str = "") -> Response:
        """Say in what two traces differ."""
        first, second = sources.trace(a), sources.trace(b)
        what = f"{trace_hash(first)} {trace_hash(second)}"
        return tagged(request, what, lambda: comparison_json(first, second, label=label or None))

    @app.get(f"{COMPARED}/tokens")
    def tokens_of_both(a: str, b: str, request: Request, start: int = 0, stop: int | None = None) -> Response:
        """Give the tokens of two traces side by side."""
        first, second = sources.trace(a), sources.trace(b)
        decoders = (sources.decoder(a), sources.decoder(b))
        what = f"{trace_hash(first)} {trace_hash(second)} {decoders[0].reason} {decoders[1].reason}"
        return tagged(request, what, lambda: compared_tokens(first, second, start=start, stop=stop, decoders=decoders))


def _scores_of(sources: Sources, id: str) -> dict[str, Scores]:
    """Return the scores of a trace's model."""
    model = sources.trace(id).header.model
    found = {one: sources.scores(one) for one in sources.ids("scores")}
    return {
        name: one
        for name, one in found.items()
        if model is not None and one.header.model is not None and one.header.model.weight_hash == model.weight_hash
    }


def _of_trace(request: Request, sources: Sources, id: str, make: Callable[[Trace], Any], *, more: str = "") -> Response:
    trace = sources.trace(id)
    return tagged(request, f"{trace_hash(trace)} {sources.decoder(id).reason} {more}", lambda: make(trace))


def _numbers(words: str, name: str) -> list[int] | None:
    """Read numbers separated by commas; None where nothing is said."""
    if not words:
        return None
    if not re.fullmatch(r"\d{1,6}(,\d{1,6}){0,4095}", words):
        raise BadData(f"{name} takes numbers separated by commas, as in 0,3, not '{words[:80]}'.")
    return [int(word) for word in words.split(",")]
