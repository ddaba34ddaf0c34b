"""Half of the experts chosen for French keep French within 5 %, chosen by chance they do not, on held-out text."""

from __future__ import annotations

import math

import numpy as np
import pytest

import moeworks
from moeworks.edit import as_mask, plan_edit, random_plans
from moeworks.edit.collect import collect
from moeworks.probes import load_probe

METHODS = ("frequency", "gate_mass", "wean", "reap")


@pytest.mark.slow
def test_half_of_the_experts_for_one_language(tmp_path):
    """Statistics from find texts, the method chosen on dev texts, the claim judged on held-out ones."""
    engine = moeworks.load("lab")

    def french(split):
        return [text for text in load_probe("language/fr").texts(split) if text.labels["lang"] == "fr"]

    def perplexity(split, plan=None):
        with engine.steered(plan):
            scores = engine.token_scores([text.text for text in french(split)])
            return math.exp(-float(np.concatenate([np.asarray(s.log_probabilities) for s in scores]).mean()))

    statistics = collect(engine, french("find"), tmp_path / "stats", groups=("cheap",))
    plans = {method: plan_edit(statistics, method=method, keep=0.5) for method in METHODS}
    best = min(METHODS, key=lambda method: perplexity("dev", as_mask(plans[method])))
    plain = perplexity("held_out")
    assert perplexity("held_out", as_mask(plans[best])) < 1.05 * plain
    for chance in random_plans(plans[best], seeds=(0, 1, 2)):
        assert perplexity("held_out", as_mask(chance)) > 1.2 * plain
