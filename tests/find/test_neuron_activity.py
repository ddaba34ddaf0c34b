"""Activity and direct attribution of experts: against the model's own modules, and on plants."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.twins import no_plant, plant, twin
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.find.in_model import MODEL_SCORES, find_in_model, options_of
from moeworks.find.inside.contexts import contexts
from moeworks.probes import Metric, Probe, ProbeHeader

TEXTS = {"contrast": ("QUICK FOX", "A DOG"), "against": ("lazy cow", "the end of it")}


def tiny_probe(texts: dict[str, tuple[str, ...]] = TEXTS) -> Probe:
    examples = tuple(
        Example(text=text, labels={"side": side, "split": "find"})
        for side, several in texts.items()
        for text in several
    )
    header = ProbeHeader(name="tiny", behaviour="capitals", metric=Metric(name="log_probability"))
    return Probe(header, examples, ())


@torch.no_grad()
def outputs_of(engine, text: str):
    """Return, layer by layer, ids, weights and what the experts add, (tokens, E, H), from the weights alone."""
    seen: list[tuple] = []
    blocks = [layer.mlp for layer in engine.model.model.layers]
    handles = [
        block.experts.register_forward_pre_hook(lambda module, args: seen.append((module, *args))) for block in blocks
    ]
    with torch.no_grad():
        output = engine.model(torch.tensor([list(text.encode())]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    found = []
    for module, hidden, ids, weights in seen:
        gate, up = (hidden @ module.gate_up_proj.transpose(1, 2)).chunk(2, -1)  # (E, tokens, I)
        y = (torch.nn.functional.silu(gate) * up) @ module.down_proj.transpose(1, 2)  # (E, tokens, H)
        dense = torch.zeros(len(hidden), len(y)).scatter(1, ids, weights)  # (tokens, E)
        found.append((dense, y.transpose(0, 1)))
    return found, output


def test_activity_is_weight_times_length() -> None:
    engine, _, _ = twin("single")
    scores = find_in_model(engine, tiny_probe(), method="activity", unit="length", permutations=2)
    means = {}
    for side, texts in TEXTS.items():
        total, tokens = np.zeros((4, 16)), 0
        for text in texts:
            for layer, (weights, y) in enumerate(outputs_of(engine, text)[0]):
                total[layer] += (weights * y.norm(dim=-1)).sum(0).double().numpy()
            tokens += len(text)
        means[side] = total / tokens
    np.testing.assert_allclose(scores.column("contrast_rate"), means["contrast"].reshape(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.column("against_rate"), means["against"].reshape(-1), rtol=1e-4, atol=1e-6)
    assert scores.header.tokens == (14, 21)
    macro = find_in_model(engine, tiny_probe(), method="activity", unit="length", aggregate="macro", permutations=2)
    one, two = (outputs_of(engine, text)[0][3] for text in TEXTS["contrast"])
    expected = np.mean([(w * y.norm(dim=-1)).mean(0).numpy() for w, y in (one, two)], axis=0)
    np.testing.assert_allclose(macro.column("contrast_rate")[48:], expected, rtol=1e-4, atol=1e-6)


def test_shares_of_a_layer_add_up() -> None:
    engine, _, _ = twin("single")
    scores = find_in_model(engine, tiny_probe(), method="activity", permutations=2)
    whole = scores.column("contrast_rate") * 14 + scores.column("against_rate") * 21
    np.testing.assert_allclose(whole.reshape(4, 16).sum(1) / 35, 1)


@pytest.mark.parametrize("norm", ["layer", "final"])
def test_attribution_by_hand(norm: str) -> None:
    engine, _, _ = twin("single")
    model = engine.model
    gain = model.model.norm.weight.detach().clone()
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.5, 1.5, len(gain)))
    try:
        scores = find_in_model(engine, tiny_probe(), method="attribution", norm=norm, centred=False, permutations=2)
        total, targets = np.zeros((4, 16)), 0
        for text in TEXTS["contrast"]:
            found, output = outputs_of(engine, text)
            after = [*output.hidden_states[1:-1], None]  # transformers gives the last one after its norm
            rows = model.lm_head.weight.detach()[list(text.encode())[1:]]  # (targets, H)
            for layer, (weights, y) in enumerate(found):
                if norm == "final" or after[layer] is None:
                    kept: list[torch.Tensor] = []
                    handle = model.model.norm.register_forward_pre_hook(lambda module, args, k=kept: k.append(args[0]))
                    outputs_of(engine, text)
                    handle.remove()
                    residual = kept[0][0]
                else:
                    residual = after[layer][0]
                scale = torch.rsqrt(residual.pow(2).mean(-1) + model.config.rms_norm_eps)  # (tokens,)
                written = weights[..., None] * y * model.model.norm.weight.detach() * scale[:, None, None]
                total[layer] += torch.einsum("teh,th->e", written[:-1], rows).double().numpy()
            targets += len(text) - 1
    finally:
        with torch.no_grad():
            model.model.norm.weight.copy_(gain)
    np.testing.assert_allclose(scores.column("contrast_rate"), (total / targets).reshape(-1), rtol=1e-3, atol=1e-5)
    assert scores.header.tokens[0] == targets


@pytest.mark.parametrize("method", ["activity", "attribution"])
def test_the_planted_expert_is_first(method: str) -> None:
    engine, expert, _ = twin("single")
    scores = find_in_model(engine, plant(), method=method)
    best = scores.top(1, passing=True).to_pylist()[0]
    assert (best["layer"], best["expert"]) == expert
    assert best["stability"] == 1.0


@pytest.mark.parametrize("method", ["activity", "attribution"])
def test_without_a_plant_nothing_passes(method: str) -> None:
    engine, _, _ = twin("single")
    assert not find_in_model(engine, no_plant(), method=method).column("passes").any()


def test_attribution_sees_a_neuron_that_routing_does_not_show() -> None:
    """In the plant `neurons` the expert runs on both sides alike: only what it writes differs."""
    engine, expert, _ = twin("neurons")
    best = find_in_model(engine, plant(), method="attribution").top(1).to_pylist()[0]
    assert (best["layer"], best["expert"]) == expert


def test_contexts_are_the_most_active_texts() -> None:
    engine, expert, _ = twin("single")
    examples = list(tiny_probe().all_texts)
    table = contexts(engine, examples, n=2, batch_size=3)
    layer, number = 1, 5
    activity = []
    for index, example in enumerate(examples):
        weights, y = outputs_of(engine, example.text)[0][layer]
        values = (weights * y.norm(dim=-1))[:, number].numpy()
        if values.max() > 0:
            activity.append((-values.max(), index, int(values.argmax())))
    best = sorted(activity)[:2]
    rows = [row for row in table.to_pylist() if (row["layer"], row["expert"]) == (layer, number)]
    assert [(row["example"], row["position"]) for row in rows] == [(index, place) for _, index, place in best]
    np.testing.assert_allclose([row["activity"] for row in rows], [-value for value, _, _ in best], rtol=1e-4)
    shouts = [row for row in table.to_pylist() if (row["layer"], row["expert"]) == expert]
    assert shouts
    assert all(name.isupper() for row in shouts for name in row["points_to"])


def test_texts_that_do_not_fit() -> None:
    engine, _, _ = twin("single")
    with pytest.raises(BadData, match="no text in its split 'dev'"):
        find_in_model(engine, tiny_probe(), split="dev")
    with pytest.raises(BadData, match="matches the clause 'side=against'"):
        find_in_model(engine, tiny_probe({"contrast": TEXTS["contrast"], "other": ("b c",)}))
    with pytest.raises(BadData, match="no unit 'lenght'; did you mean 'length'"):
        find_in_model(engine, tiny_probe(), unit="lenght")


def test_names_and_options_without_torch() -> None:
    assert {"activity", "attribution", "culnig", "neuron_adjust", "neuron_gap"} <= set(MODEL_SCORES.names())
    assert "seed" not in options_of("activity")
    code = (
        "import sys; from moeworks.find.in_model import options_of; options_of('culnig'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
