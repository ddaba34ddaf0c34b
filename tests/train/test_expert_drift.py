"""Expert drift: what routers can take back and what they cannot, on models that were broken in a known way."""

import math
from itertools import islice

import numpy as np
import pytest
import torch

from helpers.models import tiny_engine
from moeworks.data import read_examples
from moeworks.engines import load
from moeworks.engines.fake import planted_examples
from moeworks.errors import BadData
from moeworks.families.expert_weights import expert_weights
from moeworks.stats import measure_outputs
from moeworks.train import expert_drift
from moeworks.train.expert_drift import gap_of

OPTIONS = {"epochs": 2.0, "learning_rate": 2e-2, "batch_size": 4, "max_tokens": 24, "announce": lambda _: None}


def texts():
    return [one.model_copy(update={"text": one.text[:60]}) for one in planted_examples(40)]


def test_gap_by_hand():
    """Documents lost 2, 4, 6, 8, 10 nats over 10 tokens each: 0.6 a token; all of one sign, so p is 2 of 32 signs."""
    gap = gap_of(np.array([2.0, 4, 6, 8, 10]), np.full(5, 10.0), 500, 20000, 0)
    assert math.isclose(gap.value, 0.6)
    assert math.isclose(gap.p, 2 / 32, rel_tol=0.1)
    assert 0.2 < gap.low < 0.6 < gap.high < 1.0
    assert math.isnan(gap_of(np.ones(4), np.ones(4), 100, 9, 0).low)


def test_the_same_model_has_no_drift():
    engine = tiny_engine("softmax")
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    found = expert_drift(engine, tiny_engine("softmax"), texts(), **OPTIONS)
    assert found.forgotten.value == found.unrecoverable.value == 0
    assert found.unrecoverable.p == 1.0
    assert math.isclose(found.control.value, found.recovered.value)
    assert found.control.value != 0  # tuning moves a model that forgot nothing, which is no recovery
    assert set(found.overlap.values()) == {1.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())
    assert found.documents == 12


def lab_drift(change, **options):
    """Drift of the lab model on French texts after `change` of a copy."""
    torch.set_num_threads(1)
    texts = list(islice(read_examples("probe:language/fr:find"), 48))
    before, after = load("lab"), load("lab")
    torch.manual_seed(0)
    with torch.no_grad():
        change(after)
    shared = {"epochs": 3.0, "rank": 32, "learning_rate": 4e-3, "batch_size": 4, "max_tokens": 24}
    return expert_drift(before, after, texts, announce=lambda _: None, **(shared | options))


def test_overwritten_experts_are_unrecoverable():
    """Down projections replaced by noise of their size: no router finds an expert that still knows French."""

    def overwrite(engine):
        for router in engine.routers:
            down = expert_weights(router).down
            down.copy_(torch.randn_like(down) * down.std())

    found = lab_drift(overwrite)
    assert found.forgotten.low > 2
    assert found.unrecoverable.low > 2
    assert found.unrecoverable.value > 0.7 * found.forgotten.value
    assert found.unrecoverable.p < 0.05
    losses = found.losses
    assert math.isclose(found.unrecoverable.value, losses["after_tuned"] - losses["before_tuned"], abs_tol=1e-9)
    assert "unrecoverable" in found.words()


def test_wrong_experts_picked_are_recovered_and_show_in_the_overlap():
    """Rows of two gates exchanged: every expert is as it was, and tuning the routers alone takes much of it back."""

    def exchange(engine):
        gates = dict(engine.model.named_parameters())
        for layer in (2, 3):
            gate = gates[f"model.layers.{layer}.mlp.gate.weight"]
            gate.copy_(gate[torch.randperm(len(gate))])

    found = lab_drift(exchange, epochs=8.0)
    assert found.forgotten.low > 0
    assert found.recovered.value > 2 * found.control.value
    assert found.unrecoverable.value < 0.75 * found.forgotten.value
    assert found.overlap[1] == 1.0  # before the exchange nothing differs
    assert abs(found.overlap[2] - found.overlap_chance[2]) < 0.1
    assert found.overlap_chance[2] == 4 / 32


def test_other_models_are_refused():
    with pytest.raises(BadData, match="other routers"):
        expert_drift(tiny_engine("softmax"), tiny_engine("sigmoid_groups"), texts(), **OPTIONS)
    with pytest.raises(BadData, match="above 0"):
        expert_drift(tiny_engine("softmax"), tiny_engine("softmax"), texts(), epochs=0)


def test_outputs_of_a_model_are_measured(tmp_path):
    """One expert's output made ten times as large: the spread leaves chance, and the loudest says how much."""
    examples = [one.model_copy(update={"labels": {"side": "ab"[n % 2]}}) for n, one in enumerate(texts())]
    plain = measure_outputs(tiny_engine("softmax"), examples, tmp_path / "a", label="side", blocks=5)
    loud = tiny_engine("softmax")
    router = loud.routers[0]
    with torch.no_grad():
        expert_weights(router).down[3] *= 10
    found = measure_outputs(loud, examples, tmp_path / "b", label="side", blocks=5)
    own, other = (one.collapse.to_pylist()[0] for one in (found, plain))
    assert own["layer"] == router.layer
    assert own["spread"] > 2 * other["spread"]
    assert 5 < own["largest"] / other["largest"] < 20
    assert own["p"] < 0.01
    assert own["silent"] >= 0
    assert found.domains.num_rows == 2 * len(loud.routers)
