"""The meter counts what routers decide, padding apart; the callback, the metrics page and the set-up check."""

import json
import math
import urllib.request

import pytest
import torch
from datasets import Dataset
from prometheus_client.parser import text_string_to_metric_families
from transformers import Trainer, TrainingArguments

from moeworks.cli.main import main
from moeworks.families.discover import discover
from moeworks.families.tiny import tiny_model
from moeworks.watch import READINGS, RoutingCallback, metered, serve_metrics, training_setup

TOKENS = torch.tensor([[5, 9, 17, 33, 60, 7], [11, 12, 13, 90, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def by_hand(counts):
    """Readings of the loads, {layer: list of counts}, in plain Python."""
    found, dead = [], 0
    for layer, row in counts.items():
        total, experts = sum(row), len(row)
        share = [c / total for c in row]
        found.append((max(share) * experts - 1, layer, -sum(p * math.log(p) for p in share if p) / math.log(experts)))
        dead += sum(p * experts < 0.01 for p in share)
    worst = max(found)
    return {
        "max_violation_mean": sum(v for v, _, _ in found) / len(found),
        "max_violation_worst": worst[0],
        "load_entropy_mean": sum(e for _, _, e in found) / len(found),
        "dead_experts": dead,
    }


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe", "gpt_oss", "llama4"])
def test_readings_are_those_of_the_routers_decisions(family):
    """Counted again by hooks of the test's own, with the padding taken out there."""
    model = tiny_model(family)
    keep = MASK.reshape(-1).bool()
    counts = {}
    with metered(model) as meter:
        for router in discover(model):
            counts[router.layer] = [0] * router.experts

            def add(logits, weights, ids, layer=router.layer):
                for row, weight in zip(ids[keep].tolist(), weights[keep].tolist(), strict=True):
                    for expert, w in zip(row, weight, strict=True):
                        counts[layer][expert] += w != 0

            router.attach(add)
        with torch.no_grad():
            model(input_ids=TOKENS, attention_mask=MASK, use_cache=False)
        found = meter.readings()
        assert {layer: load.tolist() for layer, load in meter.loads().items()} == counts
    assert found["tokens"] == 10
    assert found.keys() == READINGS.keys()
    for name, value in by_hand(counts).items():
        assert found[name] == pytest.approx(value), name


def test_decode_steps_and_a_second_forward_pass_add_up():
    model = tiny_model("qwen3_moe")
    with metered(model) as meter:
        with torch.no_grad():
            model.generate(TOKENS[:1], attention_mask=MASK[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert meter.readings()["tokens"] == 6 + 2  # the last token is not run
        meter.reset()
        assert math.isnan(meter.readings()["max_violation_mean"])


def test_activation_checkpointing_does_not_count_twice():
    model = tiny_model("qwen3_moe").train()
    model.gradient_checkpointing_enable()
    with metered(model) as meter:
        model(input_ids=TOKENS, attention_mask=MASK, labels=TOKENS, use_cache=False).loss.backward()
        assert meter.readings()["tokens"] == 10


def test_the_callback_logs_a_fixed_set_of_readings(tmp_path):
    rows = Dataset.from_list(
        [{"input_ids": r.tolist(), "attention_mask": [1] * 6, "labels": r.tolist()} for r in TOKENS]
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, per_device_train_batch_size=2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_model("qwen3_moe")
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[RoutingCallback()])
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 2
    for row in steps:
        assert {name.removeprefix("routing/") for name in row if name.startswith("routing/")} == set(READINGS)
        assert row["routing/tokens"] == 12
    assert not any(router.module._forward_hooks for router in discover(model))


def test_prometheus_text_over_http():
    model = tiny_model("glm4_moe")
    with metered(model) as meter:
        with torch.no_grad():
            model(input_ids=TOKENS, attention_mask=MASK, use_cache=False)
        server, thread = serve_metrics(meter, port=0)
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics").read().decode()
        finally:
            server.shutdown()
            thread.join()
        samples = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
        assert {name.removeprefix("moeworks_routing_") for name in samples} == set(READINGS)
        assert all(not sample.labels for sample in samples.values())
        assert samples["moeworks_routing_tokens"].value == 10
        bias = max(float(r.arrays.bias.max() - r.arrays.bias.min()) for r in discover(model))
        assert samples["moeworks_routing_bias_spread_worst"].value == pytest.approx(bias)


def test_the_set_up_of_a_softmax_model_with_a_switch():
    model = tiny_model("qwen3_moe")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    off = training_setup(model)
    assert (off.applied, off.balanced, off.output_router_logits) == (0.0, False, False)
    assert off.with_switch == pytest.approx(model.config.router_aux_loss_coef * 2, rel=0.5)  # k at perfect balance
    assert "output_router_logits is off" in str(off)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    model.config.output_router_logits = True
    on = training_setup(model)
    assert on.applied == pytest.approx(off.with_switch, rel=1e-3)
    assert (on.reaches_routers, on.sees_padding, on.balanced) == (True, False, True)
    model.router_aux_loss_coef = 0.0
    model.config.router_aux_loss_coef = 0.0
    zero = training_setup(model)
    assert (zero.applied, zero.balanced) == (0.0, False)
    assert "router_aux_loss_coef is 0" in str(zero)


def test_a_loss_that_counts_padding_is_told(monkeypatch):
    """The family's own function without the mask that it is given."""
    import transformers.models.qwen3_moe.modeling_qwen3_moe as module

    plain = module.load_balancing_loss_func
    monkeypatch.setattr(module, "load_balancing_loss_func", lambda logits, e, k, mask: plain(logits, e, k, None))
    model = tiny_model("qwen3_moe")
    model.router_aux_loss_coef = 0.5
    found = training_setup(model)
    assert found.sees_padding is True
    assert "counts padding" in str(found)


def test_a_model_with_biases_that_nothing_moves():
    found = training_setup(tiny_model("glm4_moe"))
    assert (found.applied, found.with_switch, found.bias_moves, found.balanced) == (0.0, 0.0, False, False)
    assert found.biases == 3
    assert "nothing moves it" in str(found)


def test_doctor_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "lab", "--trainer", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["balanced"] is False
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "lab"])
    assert ended.value.code == 2


def test_the_check_leaves_gradients_and_the_random_state_and_is_no_prey_to_dropout():
    model = tiny_model("qwen3_moe")
    model.config.attention_dropout = model.model.layers[0].self_attn.attention_dropout = 0.5
    weight = discover(model)[0].module.weight
    weight.grad = torch.ones_like(weight)
    state = torch.get_rng_state()
    assert training_setup(model).sees_padding is False
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_broken_off_training_does_not_count_twice():
    """`on_train_begin` again without an end before it, as after an exception in a step."""
    model, callback = tiny_model("qwen3_moe"), RoutingCallback()
    for _ in range(2):
        callback.on_train_begin(None, None, None, model=model)
    with torch.no_grad():
        model(input_ids=TOKENS, attention_mask=MASK, use_cache=False)
    assert callback.meter.readings()["tokens"] == 10
    callback.on_train_end(None, None, None)
    assert not any(router.module._forward_hooks for router in discover(model))
