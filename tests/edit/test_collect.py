"""Collected statistics against a plain loop over tokens and experts with the module's own weights, family by family.

The reference runs each text alone and unpadded, listens to what the experts module is given, and computes every
expert of every token anew in float64 from the formula of the family; nothing of the collector takes part in it.
"""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest
import torch

from helpers.collected import ALL, brute_force, compare, expert
from helpers.models import tiny_engine
from moeworks.edit.collect import COLLECTABLE, collect, columns_of
from moeworks.edit.statistics import COLUMNS
from moeworks.edit.statistics_file import Statistics
from moeworks.engines.fake import FakeEngine
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.examples import Example
from moeworks.families.engine_checks import _examples, _tokenizer
from moeworks.families.tiny import tiny_model as tiny_family
from moeworks.plan import Demote, empty_plan

TEXTS = [
    "The tower stands on a hill.",
    "Rain.",
    "In the morning the boats go out to sea, and in the evening they come back.",
    "One two three four five six seven eight nine ten.",
]
LABELS = ["b", "a", "b", "c"]
EXAMPLES = [Example(text=text, labels={"kind": kind}) for text, kind in zip(TEXTS, LABELS, strict=True)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------ every router type

KINDS = {"softmax": "gated", "sigmoid_groups": "gated", "top_k_first": "gpt_oss"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager", "batched_mm"])
def test_every_array_equals_a_loop_over_tokens_and_experts(kind, implementation, tmp_path):
    engine = tiny_engine(kind)
    engine.model.set_experts_implementation(implementation)
    wanted, sets = brute_force(engine, KINDS[kind], EXAMPLES, LABELS)
    before = {name: (p.data_ptr(), p._version) for name, p in engine.model.named_parameters()}
    statistics = collect(engine, EXAMPLES, tmp_path / "s", label="kind", groups=ALL, batch_size=3)
    compare(statistics, wanted, sets)
    assert statistics.header.labels == ("a", "b", "c")
    assert {name: (p.data_ptr(), p._version) for name, p in engine.model.named_parameters()} == before
    assert all("forward" not in vars(m) for m in engine.model.modules())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in engine.model.modules()) == 0


FAMILIES = {
    "olmoe": {},  # softmax over all, weights not divided by their sum
    "mixtral": {},  # divided by their sum
    "ernie4_5_moe": {},  # softmax with a selection bias
    "glm4_moe": {},  # sigmoid, bias, groups, factor, shared expert
    "qwen2_moe": {},  # shared expert with a gate of its own
    "dots1": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_the_loop(family, tmp_path):
    engine = TransformersEngine(tiny_family(family), _tokenizer(), name="tiny")
    examples = list(_examples())
    labels = ["all"] * len(examples)
    wanted, sets = brute_force(engine, "gated", examples, labels)
    statistics = collect(engine, examples, tmp_path / "s", groups=ALL)
    compare(statistics, wanted, sets)


def test_experts_without_a_gate_and_in_another_width(tmp_path):
    engine = TransformersEngine(tiny_family("nemotron_h"), _tokenizer(), name="tiny")
    examples = list(_examples())
    wanted, sets = brute_force(engine, "ungated", examples, ["all"] * len(examples), residual="norm")
    statistics = collect(engine, examples, tmp_path / "s", groups=ALL)
    without = set(statistics.layer(statistics.layers[0]).refused)
    assert without <= {"turn", "own_turn"}
    compare(statistics, wanted, sets, without=without)


def test_a_factor_between_experts_and_residual_is_refused_for_that_column_alone(tmp_path):
    engine = tiny_engine("granite")
    multiplier = engine.model.config.residual_multiplier
    engine.model.config.residual_multiplier = 0.5
    for layer in engine.model.model.layers:
        layer.residual_multiplier = 0.5
    try:
        wanted, sets = brute_force(engine, "gated", EXAMPLES, ["all"] * 4, residual=None)
        statistics = collect(engine, EXAMPLES, tmp_path / "s", groups=ALL)
        compare(statistics, wanted, sets, without={"turn"})
        with pytest.raises(BadData, match="there is no 'turn' of this model: layer 0: its layer's output is not h"):
            statistics.array("turn")
    finally:
        engine.model.config.residual_multiplier = multiplier


def test_a_factor_that_the_block_names_is_found_and_counts(tmp_path):
    """Laguna multiplies the routed output after the experts: R is that product."""
    engine = TransformersEngine(tiny_family("laguna"), _tokenizer(), name="tiny")
    examples = list(_examples())
    factor = next(r.holder.routed_scaling_factor for r in engine.routers)
    for router in engine.routers:
        router.holder.routed_scaling_factor = 2.5
    assert factor != 2.5
    statistics = collect(engine, examples, tmp_path / "s", groups=["cheap"])
    assert not statistics.layer(statistics.layers[0]).refused
    seen = {}
    router = engine.routers[0]
    block = engine.model.get_submodule(router.name.partition(f".{router.layer}.")[0] + f".{router.layer}")
    handles = [
        block.post_attention_layernorm.register_forward_pre_hook(lambda m, a: seen.update(h=a[0].double())),
        router.experts_module.register_forward_hook(lambda m, a, o: seen.update(given=a, routed=o.double())),
    ]
    total = np.zeros(router.experts)
    weights = {name: p.detach().double() for name, p in router.experts_module.named_parameters()}
    for prepared in engine.reader.read(iter(examples)):
        with torch.inference_mode():
            engine.model(input_ids=torch.tensor([prepared.tokens]), use_cache=False)
        h = seen["h"].flatten(0, 1)
        after = h + 2.5 * seen["routed"].reshape(h.shape)
        turned = 1 - (h * after).sum(-1) / (h.norm(dim=-1) * after.norm(dim=-1))
        x, ids, gates = seen["given"]
        for t in range(len(ids)):
            for e, g in zip(ids[t].tolist(), gates[t].tolist(), strict=True):
                total[e] += max(float(turned[t]), 0) * g * float(expert("gated", weights, e, x[t].double())[2].norm())
    for handle in handles:
        handle.remove()
    assert np.allclose(statistics.layer(router.layer).get("turn"), total, rtol=1e-3, atol=1e-6)


def test_weights_on_the_input_leave_only_what_the_router_says(tmp_path):
    engine = TransformersEngine(tiny_family("llama4"), _tokenizer(), name="tiny")
    statistics = collect(engine, _examples(), tmp_path / "s", groups=["cheap", "router"])
    layer = statistics.layer(statistics.layers[0])
    assert set(layer.arrays) == {
        "count", "first", "first_gate", "gate", "gate_square", "top_logit", "pairs", "logit_gram"
    }  # fmt: skip
    assert layer.get("count").sum() == 24 * engine.routers[0].top_k
    with pytest.raises(BadData, match="input is weighted"):
        layer.get("gated_norm")


def test_experts_that_are_the_identity_have_no_output_statistics(tmp_path):
    engine = TransformersEngine(tiny_family("longcat_flash"), _tokenizer(), name="tiny")
    layer = next(iter(collect(engine, _examples(), tmp_path / "s")))
    assert layer.experts == 10
    assert layer.get("count").sum() == 24 * 2
    assert "hand their input on" in layer.refused["norm"]


def test_a_family_that_does_not_decide_per_token_is_refused(tmp_path):
    engine = TransformersEngine(tiny_family("doge"), _tokenizer(), name="tiny")
    with pytest.raises(Unsupported, match="no statistics can be collected"):
        collect(engine, _examples(), tmp_path / "s")


# ------------------------------------------------------------------ gradients


def test_neuron_loss_is_the_squared_change_of_the_loss_that_a_neuron_makes_at_first_order(tmp_path):
    """Adding the share s of a neuron to one token's output changes the loss by s * <o_j, dL/dy>: finite differences."""
    engine = tiny_engine("softmax", dtype=torch.float64)
    engine.model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    examples = [Example(text="Rain falls.")]
    statistics = collect(engine, examples, tmp_path / "s", groups=["gradients"], batch_size=1)
    router = engine.routers[-1]
    (prepared,) = engine.reader.read(iter(examples))
    ids = torch.tensor([prepared.tokens])
    given = {}
    handle = router.experts_module.register_forward_hook(lambda m, a, o: given.update(args=a))
    with torch.inference_mode():
        engine.model(input_ids=ids, use_cache=False)
    handle.remove()
    x, chosen, gates = given["args"]
    weights = {name: p.detach() for name, p in router.experts_module.named_parameters()}

    def loss(change):
        handle = router.experts_module.register_forward_hook(lambda m, a, o: o + change)
        with torch.inference_mode():
            logits = engine.model(input_ids=ids, use_cache=False).logits[0]
        handle.remove()
        return float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))

    wanted = np.zeros((router.experts, 16))
    step = 0.05  # the norms of this family are computed in float32 whatever the dtype
    for t in range(len(x)):
        for e, g in zip(chosen[t].tolist(), gates[t].tolist(), strict=True):
            _, key, _, down = expert("gated", weights, e, x[t])
            for j in (0, 7):
                change = torch.zeros_like(x)
                change[t] = g * step * down[:, j] * key[j]
                slope = (loss(change) - loss(-change)) / (2 * step)  # <dL/d(sum), g o_j> = <dL/dy, o_j>
                wanted[e, j] += slope**2
    got = statistics.layer(router.layer).get("neuron_loss")
    assert wanted[:, [0, 7]].max() > 1e-3
    assert np.allclose(got[:, [0, 7]], wanted[:, [0, 7]], rtol=1e-2, atol=1e-4 * wanted.max())


def test_gradients_do_not_disturb_what_is_collected_beside_them(tmp_path):
    engine = tiny_engine("sigmoid_groups")
    alone = collect(engine, EXAMPLES, tmp_path / "a", groups=["cheap"], batch_size=2)
    both = collect(engine, EXAMPLES, tmp_path / "b", groups=["cheap", "gradients"], batch_size=2)
    for name in columns_of(["cheap"]):
        assert np.array_equal(alone.array(name), both.array(name)), name
    one = collect(engine, EXAMPLES, tmp_path / "c", groups=["gradients"], batch_size=1)
    assert np.allclose(one.array("neuron_loss"), both.array("neuron_loss"), rtol=1e-3, atol=1e-9)
    assert all(p.grad is None for p in engine.model.parameters())


# ------------------------------------------------------------------ padding, batches


@pytest.mark.parametrize("kind", KINDS)
def test_batches_padded_on_either_side_equal_texts_alone(kind, tmp_path, monkeypatch):
    module = import_module("moeworks.edit.collect")
    engine = tiny_engine(kind)
    alone = collect(engine, EXAMPLES, tmp_path / "a", label="kind", groups=ALL, batch_size=1)
    right = collect(engine, EXAMPLES, tmp_path / "b", label="kind", groups=ALL, batch_size=4)
    plain = module.run_batch
    monkeypatch.setattr(module, "run_batch", lambda *args: plain(*args, pad_left=True))
    left = collect(engine, EXAMPLES, tmp_path / "c", label="kind", groups=ALL, batch_size=4)
    for name in columns_of(ALL):
        one = [layer.arrays[name] for layer in alone]
        for other in (right, left):
            for a, b in zip(one, [layer.arrays[name] for layer in other], strict=True):
                if name in ("count", "first", "pairs"):
                    assert np.array_equal(a, b)
                else:
                    assert np.allclose(a, b, rtol=1e-3, atol=1e-4 * max(np.abs(a).max(), 1e-9)), name


def test_counts_and_weights_are_those_of_the_recorded_trace_to_the_last(tmp_path):
    engine = TransformersEngine.load("lab")
    examples = [Example(text=" ".join(TEXTS[i:] * 6)) for i in range(4)]
    statistics = collect(engine, examples, tmp_path / "s", batch_size=4)
    trace = engine.record(examples, tmp_path / "t", batch_size=4, logits=True)
    assert statistics.header.tokens == (len(trace),)
    for layer in statistics:
        ids, weights = trace.ids(layer.layer), trace.weights(layer.layer).astype(float)
        E = layer.experts
        assert np.array_equal(layer.get("count"), np.bincount(ids.ravel(), minlength=E))
        assert np.allclose(layer.get("gate"), np.bincount(ids.ravel(), weights.ravel(), E), rtol=1e-12)
        logits = trace.logits(layer.layer).astype(float)
        assert np.allclose(layer.get("logit_gram"), logits.T @ logits, rtol=1e-9)


def test_the_models_output_is_untouched_to_the_bit(tmp_path):
    from moeworks.edit.collect import Run, attached
    from moeworks.edit.collecting.corpus import read_corpus
    from moeworks.edit.collecting.taps import Layout, Tap, new_gather

    engine = TransformersEngine.load("lab")
    corpus = read_corpus(engine.reader, EXAMPLES, tmp_path / "texts")
    tensors = corpus.batch(corpus.batches(4)[0]).tensors(engine.pad_token, "cpu")
    with torch.inference_mode():
        plain = engine.model(**tensors, use_cache=False).logits
    names = columns_of(ALL)
    run = Run(corpus, tmp_path, names, tuple(ALL), 0, 0, False)
    layout = Layout(torch.from_numpy(corpus.rows_of(corpus.batch(corpus.batches(4)[0]))[0]))
    taps = [Tap(engine.model, r, new_gather(r, 1, names, sets=True), layout) for r in engine.routers]
    with attached(taps), torch.inference_mode():
        for _ in range(2):  # the pass that proves, and one after it
            for tap in taps:
                tap.begin()
            assert torch.equal(engine.model(**tensors, use_cache=False).logits, plain)
    assert all(tap._products.own for tap in taps)  # the module's own products were read, nothing was recomputed
    assert run.names == names


# ------------------------------------------------------------------ rows


def test_kept_rows_are_a_uniform_choice_the_same_in_every_layer_and_batching(tmp_path):
    engine = tiny_engine("softmax")
    one = collect(engine, EXAMPLES, tmp_path / "a", rows=7, batch_size=1, seed=3)
    four = collect(engine, EXAMPLES, tmp_path / "b", rows=7, batch_size=4, seed=3)
    every = collect(engine, EXAMPLES, tmp_path / "c", rows=10**6, batch_size=2)
    tokens = sum(every.header.tokens)
    chosen = np.sort(np.random.default_rng(3).choice(tokens, 7, replace=False))
    trace = engine.record(EXAMPLES, tmp_path / "t", logits=True)
    order = np.lexsort((trace.rows().position, trace.rows().request))
    for layer in every:
        rows = layer.rows()
        assert rows.hidden.shape == (tokens, 32)
        assert np.array_equal(rows.ids, trace.ids(layer.layer)[order])
        assert np.allclose(rows.weights, trace.weights(layer.layer)[order], atol=1e-6)
        assert np.allclose(rows.logits, trace.logits(layer.layer)[order], atol=1e-4)
        few = one.layer(layer.layer).rows()
        assert np.allclose(few.hidden, rows.hidden[chosen], atol=1e-4)
        assert np.array_equal(few.ids, rows.ids[chosen])
        assert np.allclose(four.layer(layer.layer).rows().hidden, few.hidden, atol=1e-4)
        weight = dict(engine.model.named_parameters())[f"model.layers.{layer.layer}.mlp.gate.weight"]
        assert np.allclose(rows.hidden @ weight.detach().numpy().T, rows.logits, atol=1e-4)
    with pytest.raises(BadData, match="kept no rows"):
        collect(engine, EXAMPLES, tmp_path / "d").layer(0).rows()


# ------------------------------------------------------------------ killed and resumed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_killed_and_resumed_gives_equal_arrays(after, tmp_path, monkeypatch):
    module = import_module("moeworks.edit.collect")
    engine = tiny_engine("sigmoid_groups")
    options = {"label": "kind", "groups": [*COLLECTABLE], "batch_size": 1, "checkpoint_every": 2, "rows": 9}
    whole = collect(engine, EXAMPLES, tmp_path / "whole", **options)
    plain, left = module.run_batch, [after]

    def dies(*args):
        if not left[0]:
            raise Killed
        left[0] -= 1
        plain(*args)

    monkeypatch.setattr(module, "run_batch", dies)
    with pytest.raises(Killed):
        collect(engine, EXAMPLES, tmp_path / "s", **options)
    monkeypatch.setattr(module, "run_batch", plain)
    if after >= 2:
        with pytest.raises(BadData, match=r"unfinished collection; finish it with resume"):
            Statistics.open(tmp_path / "s")
        with pytest.raises(BadData, match=r"unfinished collection; go on"):
            collect(engine, EXAMPLES, tmp_path / "s", **options)
        with pytest.raises(BadData, match="another model, other texts or other options"):
            collect(engine, EXAMPLES[1:], tmp_path / "s", resume=True, **options)
    ran = []
    monkeypatch.setattr(module, "run_batch", lambda *args: (ran.append(1), plain(*args)))
    again = collect(engine, EXAMPLES, tmp_path / "s", resume=True, **options)
    assert len(ran) == (4 if after < 2 else 2)
    assert again.header.hash == whole.header.hash
    for layer in whole:
        other = again.layer(layer.layer)
        assert all(np.array_equal(other.arrays[name], array) for name, array in layer.arrays.items())
        assert np.array_equal(other.rows().hidden, layer.rows().hidden)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


# ------------------------------------------------------------------ mistakes


def test_mistakes_are_one_sentence(tmp_path):
    engine = tiny_engine("softmax")
    with pytest.raises(BadData, match="no group 'cheep' of statistics; did you mean 'cheap'"):
        collect(engine, EXAMPLES, tmp_path / "a", groups=["cheep"])
    with pytest.raises(BadData, match=r"1 of 5 texts have no label 'kind' \(text 5\)"):
        collect(engine, [*EXAMPLES, Example(text="none")], tmp_path / "b", label="kind")
    with pytest.raises(BadData, match="no text to collect"):
        collect(engine, [], tmp_path / "c")
    done = collect(engine, EXAMPLES, tmp_path / "d")
    with pytest.raises(BadData, match="holds statistics already"):
        collect(engine, EXAMPLES, tmp_path / "d")
    assert math.isfinite(done.array("gate").sum())
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "letter.txt").write_text("mine")
    with pytest.raises(BadData, match="other files"):
        collect(engine, EXAMPLES, tmp_path / "e")
    plan = empty_plan(engine.identity).model_copy(update={"operations": (Demote(experts=["L0.E1"]),)})
    with engine.steered(plan), pytest.raises(BadPlan, match="plain model"):
        collect(engine, EXAMPLES, tmp_path / "f")
    with pytest.raises(Unsupported, match="take the transformers engine"):
        collect(FakeEngine(), EXAMPLES, tmp_path / "g")


def test_the_cost_is_told_before_anything_runs(tmp_path):
    engine = tiny_engine("softmax")
    told = []
    collect(engine, EXAMPLES, tmp_path / "a", rows=5, groups=["cheap", "everywhere"], announce=told.append)
    (cost,) = told
    assert (cost.texts, cost.layers, cost.batches, cost.expert_runs) == (4, 2, 1, 8)
    assert cost.rows_bytes == 2 * 5 * (4 * 32 + 8 * 2 + 4 * 8)
    sums = len(columns_of(["cheap"])) * 8 + 8 * 32
    assert cost.statistics_bytes == 2 * 8 * sums
    assert "layers in 1 batches" in cost.sentence()
    assert all(group in COLLECTABLE for group, *_ in COLUMNS.values())
