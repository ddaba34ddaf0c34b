"""The activation rule of a checkpoint's experts, taken from the family's own code without loading a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.layer import Activation
from moeworks.errors import Unsupported

__all__ = ["FamilyActivation", "family_activations"]


def family_activations(config: Mapping[str, Any]) -> dict[int, Activation]:
    """Return layer → rule (gate pre-activations or None, up) → what the down projection reads.

    The model that the configuration describes is built on the meta device, and its experts' own code is the rule.

    Args:
        config: as in `config.json`.

    Raises:
        Unsupported: transformers does not know the model, or its experts do not show their rule; with the reason.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from moeworks.engines.transformers.experts import activation_rule
    from moeworks.families import discover

    kind = str(config.get("model_type", ""))
    with TemporaryDirectory() as folder:  # from a file, so that what JSON cannot say (infinity) is read as written
        Path(folder, "config.json").write_text(json.dumps(config), "utf-8")
        try:
            known = AutoConfig.from_pretrained(folder)
            builder = AutoModelForCausalLM if type(known) in AutoModelForCausalLM._model_mapping else AutoModel
            with torch.device("meta"):
                model = builder.from_config(known)
        except Exception as error:  # whatever the family's code raises; the reason goes on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unsupported(f"transformers builds no '{kind}' from this config.json: {reason}") from error
    rules, reasons = {}, []
    for router in discover(model):
        try:
            rules[router.layer] = activation_rule(router)
        except Unsupported as error:
            reasons.append(str(error))
    if not rules:
        raise Unsupported(reasons[0] if reasons else f"'{kind}' declares no router, so that its experts are not known.")
    return rules


class FamilyActivation:
    """The rule of one layer, found when it is first called; layers of one checkpoint share what is built for it.

    A layer for multi-token prediction, which the family's code may leave out, computes as the last layer does.

    Args:
        config: as in `config.json`.
        layer: global layer number.
    """

    def __init__(self, config: Mapping[str, Any], layer: int) -> None:
        self.config, self.layer = config, layer
        self._rule: Activation | None = None

    def __call__(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """Return what the down projection reads, (n, I).

        Raises:
            Unsupported: the rule is not known, or needs parameters of its own.
        """
        if self._rule is None:
            rules = _rules(json.dumps(self.config, sort_keys=True))
            self._rule = rules.get(self.layer, rules[max(rules)])
        result = self._rule(gate, up)
        if result.device != up.device:
            raise Unsupported("the activation of these experts has parameters of its own and cannot be run apart.")
        return result


@lru_cache(maxsize=2)
def _rules(config: str) -> dict[int, Activation]:
    return family_activations(json.loads(config))
