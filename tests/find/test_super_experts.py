"""Super experts: the rule by hand, planted ones in a real model, none where none are, and plans that protect them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.models import tiny_engine
from helpers.plans import scores, small
from moeworks.address import Address, parse_addresses
from moeworks.engines.fake import FakeEngine, planted_model, planted_probe
from moeworks.engines.registry import load
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.examples import Example
from moeworks.find import sink_diagnostics, super_experts
from moeworks.find.in_model import find_in_model
from moeworks.find.super_experts import forming_layers, select_super
from moeworks.lab import LAB_MODELS
from moeworks.plan import check, empty_plan, explain, steer
from moeworks.plan.protected import SuperExpertRecord, known_super_experts, remember
from moeworks.plan.schema import Mask

TEXTS = [
    Example(text=text)
    for text in ("The tower stands on a hill.", "Rain.", "In the morning the boats go out to sea, and come back.")
]
SUPER = Address(2, 5)  # of the tiny model


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def planted_engine(*, dimension: int = 7):
    """A tiny model one of whose experts writes a huge value in one dimension of the residual."""
    engine = tiny_engine("softmax")
    with torch.no_grad():
        engine.model.model.layers[SUPER.layer].mlp.experts.down_proj[SUPER.expert, dimension] *= 1e5
    return engine


# ------------------------------------------------------------------ the rule, by hand


def test_the_percentile_binds_where_outputs_are_alike():
    sizes, layer = np.arange(100.0, 501.0), np.zeros(401, int)  # the 99.5th percentile of 401 values is the 399th: 498
    assert np.flatnonzero(select_super(sizes, layer, [0])).tolist() == [399, 400]
    assert not select_super(sizes, layer, [1]).any()
    assert np.flatnonzero(select_super(sizes, np.arange(401) % 2, [1])).tolist() == [399]


def test_the_tenth_binds_where_one_output_is_far_above_all():
    sizes = np.concatenate([np.ones(999), [744.0, 80.0, 70.0, np.nan]])  # 1,002 that ran: percentile 1, a tenth 74.4
    layer = np.repeat([0, 1], [500, 503])
    assert np.flatnonzero(select_super(sizes, layer, [1])).tolist() == [999, 1000]
    assert np.flatnonzero(select_super(sizes, layer, [1], times=11.0)).tolist() == [999, 1000, 1001]
    assert np.flatnonzero(select_super(sizes, layer, [1], quantile=99.95)).tolist() == [999]
    assert not select_super(np.full(4, np.nan), np.zeros(4, int), [0]).any()


def test_layers_form_massive_activations_where_the_largest_grows():
    largest = np.array([2.0, 90.0, 300.0, 900.0, 960.0, 400.0])  # growth 2, 88, 210, 600, 60; a tenth is 96
    ratio = np.array([10.0, 500.0, 2e3, 5e3, 5e3, 3e3])
    assert forming_layers(largest, ratio) == (2, 3)
    assert forming_layers(largest, ratio, share=0.05) == (1, 2, 3, 4)
    assert forming_layers(largest, ratio / 10) == ()  # 500 times the median is not massive
    assert forming_layers(largest / 10, ratio) == ()  # nor is 96


# ------------------------------------------------------------------ in a model


def test_a_planted_super_expert_is_found_and_nothing_else():
    engine = planted_engine()
    found = super_experts(engine, TEXTS, batch_size=2)
    assert found.protected == (SUPER,)
    assert found.forming == (SUPER.layer,)
    assert found.tokens == sum(len(engine.tokenizer(example.text)["input_ids"]) for example in TEXTS)
    assert known_super_experts(engine.identity.weight_hash) == found.record
    assert found.record.addresses == (SUPER,)
    assert f"{SUPER}" in str(found)
    peak = next(peak for peak in found.peaks if peak.address == SUPER)
    assert (peak.size, peak.example, peak.position) == pytest.approx(_largest_by_hand(engine), rel=1e-4)
    tokens = engine.tokenizer(TEXTS[peak.example].text)["input_ids"]
    assert peak.token == tokens[peak.position]


def _largest_by_hand(engine):
    """The largest |output| of the planted expert over all of its tokens, each text alone, weights taken apart."""
    layer = engine.model.model.layers[SUPER.layer].mlp
    best = (0.0, -1, -1)
    for number, example in enumerate(TEXTS):
        given = []
        handle = layer.experts.register_forward_pre_hook(lambda module, args, given=given: given.append(args))
        with torch.no_grad():
            engine.model(torch.tensor([engine.tokenizer(example.text)["input_ids"]]))
            handle.remove()
            hidden, ids, _ = given[0]
            gate, up = (hidden @ layer.experts.gate_up_proj[SUPER.expert].T).split(16, -1)
            out = (torch.nn.functional.silu(gate) * up) @ layer.experts.down_proj[SUPER.expert].T
        sizes = torch.where((ids == SUPER.expert).any(-1), out.abs().amax(-1), 0)
        if float(sizes.max()) > best[0]:
            best = (float(sizes.max()), number, int(sizes.argmax()))
    return best


def test_an_ordinary_model_has_none_and_the_codes_variant_names_one_all_the_same():
    engine = tiny_engine("softmax")
    ordinary = super_experts(engine, TEXTS)
    assert ordinary.protected == ()
    assert ordinary.forming == ()
    assert "none" in str(ordinary)
    assert known_super_experts(engine.identity.weight_hash).experts == ()
    variant = super_experts(engine, TEXTS, layers="first", keep=False)
    assert variant.forming == (0, 1)  # round(0.75 * 3) of layers 0, 1, 2
    assert len(variant.protected) == 1
    assert variant.protected[0].layer == 0  # layer 1 is dense
    assert "whatever their residual is" in str(variant)
    assert known_super_experts(engine.identity.weight_hash).settings["layers"] == "residual"


def test_without_it_the_massive_activation_is_gone():
    engine = planted_engine()
    seen = sink_diagnostics(engine, [SUPER], TEXTS)
    assert seen.ratio[0][SUPER.layer] > 1000 > 100 > seen.ratio[1][SUPER.layer]
    assert np.array_equal(seen.ratio[0][:2], seen.ratio[1][:2])  # what comes before is as it was
    assert seen.largest[0][SUPER.layer] > 100 * seen.largest[1][SUPER.layer]
    tokens = engine.tokenizer(TEXTS[0].text)["input_ids"]
    with torch.no_grad():
        attentions = planted_engine().model(torch.tensor([tokens]), output_attentions=True).attentions
    alone = sink_diagnostics(engine, [SUPER], TEXTS[:1]).attention[0]
    assert alone == pytest.approx([float(a[0, :, 1:, 0].mean()) for a in attentions], rel=1e-5)
    assert "attention to token 0" in str(seen)
    with pytest.raises(BadData, match="no expert is given"):
        sink_diagnostics(engine, [], TEXTS)


def test_nothing_is_left_behind_on_the_model():
    engine = planted_engine()
    engine.model.set_attn_implementation("sdpa")
    super_experts(engine, TEXTS)
    sink_diagnostics(engine, [SUPER], TEXTS)
    assert engine.model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in engine.model.modules())


def test_the_score_tells_both_sides_and_claims_nothing():
    made = planted_model("single")
    engine = TransformersEngine(made.model, made.tokenizer, name="twin")
    found = find_in_model(engine, planted_probe(), method="super_experts")
    both = np.fmax(found.column("contrast_rate"), found.column("against_rate"))
    assert (np.nan_to_num(found.column("score"), nan=0) >= np.nan_to_num(both, nan=0)).all()
    assert np.nanmax(found.column("score")) == np.nanmax(both)
    assert not found.column("passes").any()
    assert found.header.null == "none"
    assert found.header.facts["protected"] == []
    assert "none" in found.summary().splitlines()[-1]


def test_what_cannot_be_asked():
    with pytest.raises(Unsupported, match="no residual stream"):
        super_experts(FakeEngine("none"), TEXTS)
    engine = tiny_engine("softmax")
    for options in ({"layers": "all"}, {"quantile": 100.0}, {"times": 0.5}, {"first_share": 0.0}):
        with pytest.raises(BadData):
            super_experts(engine, TEXTS, **options)


# ------------------------------------------------------------------ plans protect them


def _known(model, *experts):
    remember(SuperExpertRecord(model="toy", weight_hash=model.weight_hash, experts=experts, settings={}))


def test_plans_protect_what_is_known_unless_told_otherwise():
    model = small()
    ranking = scores(model, {"L0.E1": 0.9, "L0.E2": 0.8, "L1.E3": 0.7})
    unknown = steer(ranking, demote=1)
    assert unknown.protected == ()
    assert unknown.provenance.options["protect"] == "super experts: not measured"
    _known(model, "L0.E1", "L1.E7")
    default = steer(ranking, demote=1)
    assert default.operations[0].experts == tuple(parse_addresses("L0.E2"))
    assert default.protected == tuple(parse_addresses("L0.E1, L1.E7"))
    assert "super experts: L0.E1, L1.E7" in explain(default)
    assert steer(ranking, demote=1, protect="none").operations[0].experts == tuple(parse_addresses("L0.E1"))
    given = steer(ranking, demote=1, protect="L0.E1-2")
    assert given.operations[0].experts == tuple(parse_addresses("L1.E3"))
    assert given.protected == tuple(parse_addresses("L0.E1-2"))
    more = steer(ranking, demote=1, protected=parse_addresses("L0.E2"))
    assert more.protected == tuple(parse_addresses("L0.E1-2, L1.E7"))


def test_an_empty_plan_starts_with_them():
    model = small()
    _known(model, "L0.E1")
    by_hand = empty_plan(model).model_copy(update={"operations": (Mask(experts=["L0.E1"]),)})
    with pytest.raises(BadPlan, match="protected"):
        check(by_hand, model)
    assert empty_plan(model, protect="none").protected == ()


def test_a_spoilt_record_is_named():
    model = small()
    _known(model, "L0.E1")
    path = remember(SuperExpertRecord(model="toy", weight_hash=model.weight_hash, experts=("what",), settings={}))
    with pytest.raises(BadData, match="not an expert address"):
        steer(scores(model, {"L0.E1": 0.9}), demote=1)
    path.write_text("{}")
    with pytest.raises(BadData, match="delete it"):
        empty_plan(model)
    assert empty_plan(model, protect="none")


@pytest.mark.parametrize("model", LAB_MODELS)
def test_the_lab_models_records_are_shipped(model):
    record = known_super_experts(load(model).identity.weight_hash)
    how = f'remember(super_experts(load("{model}"), keep=False).record, "src/moeworks/lab/super-experts")'
    assert record is not None, f"{model} has other weights; measure again: {how}"
    assert isinstance(record.addresses, tuple)
