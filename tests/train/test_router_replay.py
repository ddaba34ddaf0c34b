"""Replay in training: gradients against plain autograd and finite differences, and every known fault is found."""

import copy

import numpy as np
import pytest
import torch

from helpers.traces import make_trace
from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.errors import BadData, RunFailed
from moeworks.families.discover import discover
from moeworks.families.tiny import tiny_model
from moeworks.train import FAULTS, check_routes, lay_out, replay, route_problems, routes_of

TOKENS = torch.tensor([[5, 9, 17, 33, 60, 7], [11, 12, 13, 90, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def model_of(family):
    torch.manual_seed(0)
    return tiny_model(family)


def run(model):
    return model(input_ids=TOKENS, attention_mask=torch.from_numpy(MASK), use_cache=False).logits


def loss_of(logits):
    """A fixed function of the logits of real tokens."""
    keep = torch.from_numpy(MASK).bool()
    return (logits[keep].log_softmax(-1)[:, 3]).sum()


def own_routes(model):
    """(B, W, L, k): what the model decides, padding at -1."""
    found = []
    handles = [h for r in discover(model) for h in r.attach(lambda logits, weights, ids: found.append(ids.clone()))]
    with torch.no_grad():
        run(model)
    for handle in handles:
        handle.remove()
    routes = np.stack([ids.numpy().reshape(*MASK.shape, -1) for ids in found], 2)
    return np.where(MASK[:, :, None, None] == 1, routes, -1)


def identity(model):
    layers = tuple(
        LayerShape(layer=r.layer, experts=r.experts, top_k=r.top_k, contract=r.contract) for r in discover(model)
    )
    return ModelIdentity(name="tiny", family="tiny", weight_hash="w", tokenizer_hash="t", layers=layers)


@pytest.fixture(scope="module", params=["qwen3_moe", "glm4_moe"])
def model(request):
    """Softmax; sigmoid with bias and groups behind a dense layer."""
    return model_of(request.param)


def gradients(model, routes=None):
    model.zero_grad()
    if routes is None:
        loss_of(run(model)).backward()
    else:
        with replay(model, routes):
            loss_of(run(model)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_replaying_the_models_own_routes_changes_nothing(model):
    """The plain model is the outside truth: the same logits, and the same gradient in every parameter."""
    routes = own_routes(model)
    plain, with_replay = gradients(model), gradients(model, routes)
    assert plain.keys() == with_replay.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, with_replay[name], atol=1e-5, rtol=1e-4), name
    with replay(model, routes) as state, torch.no_grad():
        run(model)
    assert (state.changed, state.tokens) == (0, 10 * routes.shape[2])
    assert set(state.passes.values()) == {1}


def other_routes(model):
    """Routes that the model would not choose: every id moved on by one expert."""
    routes, experts = own_routes(model), discover(model)[0].experts
    return np.where(routes < 0, -1, (routes + 1) % experts)


def test_the_gradient_of_forced_routes_is_that_of_finite_differences(model):
    """In the router's own weight, whose choice is held fixed: the loss is smooth in it."""
    routes = other_routes(model)
    found = gradients(model, routes)
    router = discover(model)[0]
    name = next(n for n, p in model.named_parameters() if p is router.module.weight)
    gradient, weight = found[name], dict(model.named_parameters())[name]
    step = 1e-2  # float32: rounding of the loss costs 1e-4 of these gradients, curvature about 1e-3
    for place in gradient.abs().flatten().topk(3).indices.tolist():
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[place] += sign * step
                with replay(model, routes):
                    values.append(float(loss_of(run(model))))
                weight.view(-1)[place] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient.view(-1)[place]), rel=2e-2)


def test_forced_experts_run_and_padding_decides_as_ever(model):
    routes, seen, routers = other_routes(model), [], discover(model)
    with replay(model, routes, routers=routers) as state:
        handles = [r.experts_module.register_forward_pre_hook(lambda m, args: seen.append(args[1])) for r in routers]
        with torch.no_grad():
            run(model)
        for handle in handles:
            handle.remove()
    for place, ids in enumerate(seen):
        ids = ids.reshape(*MASK.shape, -1).numpy()
        assert np.array_equal(ids[MASK == 1], routes[:, :, place][MASK == 1])
    assert state.changed > 0
    assert torch.equal(run(model), run(model))  # and the hooks are gone
    assert np.array_equal(own_routes(model), np.where(routes < 0, -1, (routes - 1) % routers[0].experts))


def test_a_replay_on_modules_that_do_not_run_is_an_error(model):
    """Bound to a copy, as when a wrapper or a reload puts other modules in place."""
    orphan, routes = copy.deepcopy(model), own_routes(model)
    with pytest.raises(RunFailed, match="never decided while routes were replayed"), replay(orphan, routes):
        run(model)


def test_routes_of_another_batch_are_refused(model):
    routes = own_routes(model)
    with pytest.raises(BadData, match="decides for 12 tokens, the routes are for 6"), replay(model, routes[:1]):
        run(model)
    with pytest.raises(BadData, match="routers are"), replay(model, routes[:, :, 1:]):
        pass


MESSAGES = {
    "moved_by_dense_layers": "moved by 1 layer",
    "all_hidden_layers": "leave out dense layers",
    "padding_filled": "tokens of padding have routes",
    "prediction_layers_take_the_first": "one is a copy of the other",
    "nothing_captured": "all zeros: nothing was captured",
    "dropped_on_merge": "dropped on the way",
    "overflowed": "names expert -",
}


def test_every_known_fault_is_found(model):
    """And the same routes without a fault pass."""
    routes, known = own_routes(model), identity(model)
    check_routes(routes, MASK, known, own=routes)
    assert MESSAGES.keys() == FAULTS.keys()
    for name, fault in FAULTS.items():
        found = "; ".join(route_problems(fault(routes, MASK), MASK, known, own=routes))
        assert MESSAGES[name] in found, name
        with pytest.raises(BadData):
            check_routes(fault(routes, MASK), MASK, known, own=routes)


def test_routes_of_other_weights_show_against_the_models_own(model):
    found = route_problems(other_routes(model), MASK, identity(model), own=own_routes(model))
    assert any("other weights or other text" in problem for problem in found)


def test_traces_become_batches_on_either_side_of_padding(tmp_path):
    """Text 1 has two tokens fewer; engines know nothing of the last token, which then has no route."""
    trace = make_trace(tmp_path / "t", rows_per_request=[6, 4], requests=2, layers=(1, 2))
    routes = [routes_of(trace, 0), routes_of(trace, 1)]
    right = lay_out(routes, MASK)
    assert np.array_equal(right[1, :4], routes[1])
    assert (right[1, 4:] == -1).all()
    left = lay_out([routes[0], routes[1][:-1]], MASK[:, ::-1])
    assert np.array_equal(left[1, 2:5], routes[1][:-1])
    assert (left[1, [0, 1, 5]] == -1).all()
    with pytest.raises(BadData, match="text 1 has 2 routes for 4 tokens"):
        lay_out([routes[0], routes[1][:2]], MASK)
    assert np.array_equal(routes[0][:, 1], trace.ids(2)[:6])
