"""Scores from inside the experts on families that store and compute experts in other ways, or do not show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import Unsupported
from moeworks.examples import Example
from moeworks.families.engine_checks import _tokenizer
from moeworks.families.tiny import TINY_VOCABULARY, tiny_model
from moeworks.find.in_model import find_in_model
from moeworks.find.inside.decode import decode
from moeworks.probes import Metric, Probe, ProbeHeader

METHODS: dict[str, dict[str, Any]] = {
    "activity": {"permutations": 5},
    "attribution": {"permutations": 5},
    "neuron_gap": {"permutations": 5, "site": "up"},
    "culnig": {"site": "up", "say": lambda words: None},
    "neuron_adjust": {"site": "up", "least": 1},
}


def probe() -> Probe:
    rng = np.random.default_rng(0)
    words = [[f"w{n}" for n in rng.integers(3, TINY_VOCABULARY, 11)] for _ in range(12)]
    texts = tuple(
        Example(
            text=" ".join(line[:10]) + " ",
            answer=line[10],
            labels={"side": ("contrast", "against")[number % 2], "split": "find"},
        )
        for number, line in enumerate(words)
    )
    return Probe(ProbeHeader(name="words", behaviour="none", metric=Metric(name="exact_match")), texts, ())


@pytest.mark.families
@pytest.mark.parametrize("family", ["dbrx", "gpt_oss", "granitemoe"])
def test_other_layouts(family: str) -> None:
    """DBRX keeps experts in one matrix, gpt-oss interleaves gate and up and has biases, Granite scales its logits."""
    engine = TransformersEngine(tiny_model(family), _tokenizer())
    for method, options in METHODS.items():
        scores = find_in_model(engine, probe(), method=method, **options)
        assert scores.table.num_rows
        assert np.isfinite(scores.column("score")).all()
    assert set(decode(engine, top=1)["vector"].to_pylist()) == {"gate", "up", "down", "router"}


@pytest.mark.families
@pytest.mark.parametrize("method", METHODS)
def test_a_family_that_weights_inputs_is_refused_with_the_reason(method: str) -> None:
    engine = TransformersEngine(tiny_model("jetmoe"), _tokenizer())
    with pytest.raises(Unsupported, match="their input is weighted"):
        find_in_model(engine, probe(), method=method, **METHODS[method])
