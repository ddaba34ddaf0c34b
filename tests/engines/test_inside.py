"""What is shown of experts: equal to the modules' own outputs and to sums done by hand, and nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.models import CONFIGS, tiny_engine
from moeworks.engines.fake import FakeEngine
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.experts import open_experts
from moeworks.engines.transformers.inside import observe_experts
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example, Message
from moeworks.families.engine_checks import _examples, _tokenizer
from moeworks.families.tiny import families
from moeworks.families.tiny import tiny_model as tiny_family
from moeworks.plan import Demote, Mask, empty_plan
from moeworks.where import PHASES, Where

TEXTS = [
    "The tower stands on a hill.",
    "Rain.",
    "In the morning the boats go out to sea, and in the evening they come back.",
]
EXAMPLES = [Example(text=text, labels={"number": str(n)}) for n, text in enumerate(TEXTS)]
# Of every family the reason why not, or nothing; `encoder` models are no decoders.
REFUSED = {"doge", "jetmoe", "llama4"}
ENCODERS = {"nllb_moe", "switch_transformers"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def passes_of(engine, examples=EXAMPLES, **options):
    seen = []
    observe_experts(engine, examples, lambda p, rows, requests: seen.append((p, rows, requests)), **options)
    return seen


def state_of(model):
    """Everything that a block could leave behind."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    forwards = [name for name, m in model.named_modules() if "forward" in m.__dict__]
    flags = [(p.requires_grad, p.grad is None, p.data_ptr(), p._version) for p in model.parameters()]
    return hooks, forwards, flags, [m.training for m in model.modules()]


# ------------------------------------------------------------------ every family


@pytest.mark.families
def test_every_family_matches_its_own_experts_or_is_refused_with_a_reason():
    matched, refused, encoders = [], {}, []
    for family in families():
        model = tiny_family(family)
        if model.config.is_encoder_decoder:
            encoders.append(family)
            continue
        engine = TransformersEngine(model, _tokenizer(), name="tiny")
        try:
            _check_sums(engine)
            matched.append(family)
        except Unsupported as error:
            refused[family] = str(error)
    print(f"{len(matched)} families match, {len(refused)} are refused, {len(encoders)} have an encoder")
    assert set(refused) == REFUSED
    assert all("cannot be told apart" in reason for reason in refused.values())
    assert set(encoders) == ENCODERS
    assert len(matched) == len(families()) - len(REFUSED) - len(ENCODERS)
    assert {"qwen3_moe", "mixtral", "olmoe", "gpt_oss", "dbrx", "granitemoe", "nemotron_h", "aria"} <= set(matched)


def _check_sums(engine):
    """Weighted outputs of what was shown, added up, must be what the module itself gave to the next layer."""
    own, given = {}, {}
    handles = []
    for router in engine.routers:
        if router.experts_module is not None:

            def keep(module, args, output, layer=router.layer):
                own[layer], given[layer] = output.reshape(-1, output.shape[-1]).float(), args[1]

            handles.append(router.experts_module.register_forward_hook(keep))
    sums, counts = {}, {}
    try:
        for p, rows, _ in passes_of(engine, _examples(), batch_size=2):
            total = sums.setdefault(p.layer, torch.zeros(len(rows), p.outputs.shape[-1]))
            total.index_add_(0, p.rows, (p.outputs * p.weights[:, None]).float())
            counts[p.layer] = counts.get(p.layer, 0) + len(p.rows)
            real = rows
    finally:
        for handle in handles:
            handle.remove()
    assert len(real) == 24  # 16 + 8 tokens; the padded batch has 32
    flat = real.request * 16 + real.position
    for router in engine.routers:
        plain = (given[router.layer][flat] < open_experts(router).weights.experts).all(-1)  # no identity expert
        assert plain.any()
        assert torch.allclose(sums[router.layer][plain], own[router.layer][flat][plain], rtol=1e-3, atol=2e-5)


# ------------------------------------------------------------------ values, by hand


@pytest.mark.parametrize("kind", CONFIGS)
def test_values_are_those_of_the_familys_formula(kind):
    engine = tiny_engine(kind)
    for p, _, _ in passes_of(engine):
        experts = dict(engine.model.named_modules())[_experts_name(engine, p.layer)]
        w = {name: t.detach().double() for name, t in experts.named_parameters()}
        x = p.inputs.double()
        if (
            kind == "top_k_first"
        ):  # gpt-oss: interleaved columns, biases, clamped, gate * sigmoid(1.702 gate) * (up + 1)
            both = x @ w["gate_up_proj"][p.expert] + w["gate_up_proj_bias"][p.expert]
            gate, up = both[:, 0::2], both[:, 1::2]
            g, u = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
            key = (u + 1) * g / (1 + torch.exp(-1.702 * g))
            out = key @ w["down_proj"][p.expert] + w["down_proj_bias"][p.expert]
        else:
            gate, up = (x @ w["gate_up_proj"][p.expert].T).split(16, -1)
            key = gate / (1 + torch.exp(-gate)) * up
            out = key @ w["down_proj"][p.expert].T
        for shown, wanted in ((p.gate, gate), (p.up, up), (p.key, key), (p.outputs, out)):
            assert torch.allclose(shown.double(), wanted, rtol=1e-4, atol=1e-5)


def _experts_name(engine, layer):
    return next(r.name for r in engine.routers if r.layer == layer).rpartition(".")[0] + ".experts"


def test_ungated_experts_have_no_gate():
    engine = TransformersEngine(tiny_family("nemotron_h"), _tokenizer(), name="tiny")
    p = passes_of(engine, _examples())[0][0]
    assert p.gate is None
    assert torch.equal(p.key, torch.relu(p.up) ** 2)


# ------------------------------------------------------------------ which rows


def test_rows_slots_and_weights_are_those_of_the_trace(tmp_path):
    engine = tiny_engine("softmax")
    trace = engine.record(EXAMPLES, tmp_path / "trace", batch_size=2)
    table, rows_of_trace = trace.request_table(), trace.rows()
    place = {
        (int(r), int(p)): n for n, (r, p) in enumerate(zip(rows_of_trace.request, rows_of_trace.position, strict=True))
    }
    seen = 0
    for p, rows, requests in passes_of(engine, batch_size=2):
        numbers = requests.numbers[p.take(rows.request)]
        there = [place[int(n), int(q)] for n, q in zip(numbers, p.take(rows.position), strict=True)]
        assert np.array_equal(trace.ids(p.layer)[there, p.slots], np.full(len(there), p.expert))
        assert np.array_equal(trace.weights(p.layer)[there, p.slots], p.weights.numpy())
        assert list(requests.labels["number"][p.take(rows.request)]) == [str(n) for n in numbers]
        assert list(requests.labels["document"][p.take(rows.request)]) == [str(n) for n in numbers]
        seen += len(there)
    assert seen == len(trace) * 2 * len(trace.layers)
    assert len(table) == 3


def test_where_takes_rows_and_layers():
    engine = tiny_engine("softmax")
    last = passes_of(engine, where=Where.parse("position=-1: number=2 layer=2"))
    assert {p.layer for p, _, _ in last} == {2}
    assert sum(len(p.rows) for p, _, _ in last) == 2  # one token, two slots
    for p, rows, requests in last:
        assert (p.take(rows.position) == requests.prompt_tokens[p.take(rows.request)] - 1).all()
    with pytest.raises(BadData, match="no token of 3 texts"):
        passes_of(engine, where=Where.parse("number=7"))
    with pytest.raises(BadData, match="no text"):
        passes_of(engine, [])
    with pytest.raises(BadData, match="batch of 0"):
        passes_of(engine, batch_size=0)


def test_phases_and_roles_select():
    engine = tiny_engine("softmax")
    chat = [
        Example(
            messages=[Message(role="user", content="Where is it?"), Message(role="assistant", content="Over there.")]
        )
    ]
    shown = passes_of(engine, chat, where=Where.parse("phase=forced"))
    assert {PHASES[phase] for p, rows, _ in shown for phase in p.take(rows.phase)} == {"forced"}


def test_slots_that_do_not_run_are_not_shown_and_plans_are():
    engine = tiny_engine("softmax")
    ran = {(p.layer, p.expert) for p, _, _ in passes_of(engine)}
    first, second = sorted(place for place in ran if place[0] == 2)[:2]
    gone = Mask(experts=[f"L2.E{first[1]}"], refill=False), Demote(experts=[f"L2.E{second[1]}"])
    plan = empty_plan(engine.identity).model_copy(update={"operations": gone})
    under = {(p.layer, p.expert) for p, _, _ in passes_of(engine, plan=plan)}
    assert any(layer == 2 for layer, _ in under)
    assert not under & {first, second}


def test_the_fake_engine_shows_nothing():
    with pytest.raises(Unsupported, match="transformers engine"):
        passes_of(FakeEngine("none"))


# ------------------------------------------------------------------ nothing changes, nothing stays


@pytest.mark.parametrize("kind", CONFIGS)
def test_watching_changes_no_bit_and_leaves_nothing_behind(kind):
    engine = tiny_engine(kind)
    before, plain, watched = state_of(engine.model), [], []
    observe_experts(engine, EXAMPLES, lambda p, r, q: None, after=lambda logits, batch: watched.append(logits.clone()))
    with engine.session(None, record=False) as tap, torch.inference_mode():
        from moeworks.engines.transformers.layout import Batch

        batch = Batch(sorted(engine.reader.read(iter(EXAMPLES)), key=lambda r: len(r.tokens)))
        tap.start(batch)
        plain.append(engine.model(**batch.tensors(engine.pad_token, "cpu"), use_cache=False).logits)
    assert torch.equal(plain[0], watched[0])
    assert state_of(engine.model) == before

    def fail(p, rows, requests):
        raise KeyError("from the observer")

    for gradients in (False, True):
        with pytest.raises(KeyError):
            observe_experts(engine, EXAMPLES, fail, gradients=gradients)
        assert state_of(engine.model) == before


def test_a_forward_that_somebody_else_put_there_comes_back():
    engine = tiny_engine("softmax")
    module = engine.routers[0].experts_module
    calls, own = [], module.forward

    def theirs(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    module.forward = theirs
    passes_of(engine)
    assert calls
    assert module.__dict__["forward"] is theirs


def test_experts_by_another_rule_are_refused():
    engine = tiny_engine("softmax")
    module, kind = engine.routers[1].experts_module, type(engine.routers[1].experts_module)
    module.forward = lambda x, ids, weights: 1.01 * kind.forward(module, x, ids, weights)
    with pytest.raises(Unsupported, match="another rule"):
        passes_of(engine)
    assert "forward" not in engine.routers[0].experts_module.__dict__


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("kind", ["softmax", "top_k_first"])
def test_gradients_are_those_of_small_changes(kind):
    engine = tiny_engine(kind, dtype=torch.float64)
    engine.model.set_experts_implementation("eager")  # the default kernel has no float64
    last = engine.routers[-1]
    kept, found = [], []

    def observer(p, rows, requests):
        if p.layer == last.layer:
            kept.append(p)

    def after(logits, batch):
        target = logits[0, -1].log_softmax(-1)[11]
        grads = torch.autograd.grad(target, [p.key for p in kept] + [p.up for p in kept])
        found.extend(zip(kept, grads[: len(kept)], grads[len(kept) :], strict=True))

    observe_experts(engine, EXAMPLES[:1], observer, gradients=True, after=after)
    assert all(p.grad is None for p in engine.model.parameters())
    assert all(p.requires_grad for p in engine.model.parameters())
    tokens = torch.tensor([engine.tokenizer(TEXTS[0])["input_ids"]])
    p, of_key, _ = next(item for item in found if int(item[0].rows[-1]) == tokens.shape[1] - 1)
    neuron = int(of_key[-1].abs().argmax())

    def target(step):
        """The same with one key of the last token moved by hand: its column of the down projection is added."""

        def add(module, args, output):
            w = open_experts(last).weights
            output = output.clone()
            output[-1] += step * p.weights[-1].detach() * w.down[p.expert][:, neuron]
            return output

        handle = last.experts_module.register_forward_hook(add)
        with torch.no_grad():
            value = engine.model(tokens).logits[0, -1].log_softmax(-1)[11]
        handle.remove()
        return float(value)

    slope = (target(1e-2) - target(-1e-2)) / 2e-2
    assert abs(slope) > 1e-6
    assert float(of_key[-1, neuron]) == pytest.approx(slope, rel=2e-3)  # norms are float32


def test_a_backward_pass_of_the_observers_own_leaves_no_gradient_on_parameters():
    engine = tiny_engine("softmax")
    found = []

    def observe(p, rows, requests):
        p.key.retain_grad()
        found.append(p.key)

    observe_experts(engine, EXAMPLES, observe, gradients=True, after=lambda logits, batch: logits.sum().backward())
    assert all(key.grad is not None and key.grad.abs().sum() > 0 for key in found)
    assert all(p.grad is None and p.requires_grad for p in engine.model.parameters())


def test_bare_decoders_have_no_logits():
    engine = TransformersEngine(tiny_family("qwen3_vl_moe"), _tokenizer(), name="tiny")
    observe_experts(engine, _examples(), lambda p, r, q: None)
    with pytest.raises(Unsupported, match="no logits"):
        observe_experts(engine, _examples(), lambda p, r, q: None, after=lambda logits, batch: None)
