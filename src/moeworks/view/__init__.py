"""The page in the browser, `moeworks view`, and the data behind it; names are loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.lazy import lazily

if TYPE_CHECKING:
    from moeworks.view.app import build_page
    from moeworks.view.cards import expert_card
    from moeworks.view.comparing import compared_tokens, comparison_json
    from moeworks.view.expert_map import expert_map
    from moeworks.view.export import export_page
    from moeworks.view.layers import cache_rows, layer_rows, possible_layers
    from moeworks.view.run import view
    from moeworks.view.sources import Sources
    from moeworks.view.tokens import request_table, token_table
    from moeworks.view.widget import ExpertMap, TokenView

_HOMES = {
    "ExpertMap": "widget",
    "Sources": "sources",
    "TokenView": "widget",
    "build_page": "app",
    "compared_tokens": "comparing",
    "comparison_json": "comparing",
    "expert_card": "cards",
    "expert_map": "expert_map",
    "export_page": "export",
    "cache_rows": "layers",
    "layer_rows": "layers",
    "possible_layers": "layers",
    "request_table": "tokens",
    "token_table": "tokens",
    "view": "run",
}

__all__ = [
    "ExpertMap",
    "Sources",
    "TokenView",
    "build_page",
    "cache_rows",
    "compared_tokens",
    "comparison_json",
    "expert_card",
    "expert_map",
    "export_page",
    "layer_rows",
    "possible_layers",
    "request_table",
    "token_table",
    "view",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
