"""What collecting has to find, by a plain loop: every text alone, every expert of every token anew, in float64."""

from __future__ import annotations

import numpy as np
import torch

from moeworks.edit.collect import COLLECTABLE, columns_of

ALL = [group for group in COLLECTABLE if group != "gradients"]


def silu(x):
    return x / (1 + torch.exp(-x))


def expert(kind, weights, e, x):
    """Return (act(gate), key, output, down) of one expert on one token, in float64."""
    if kind == "gpt_oss":
        both = x @ weights["gate_up_proj"][e] + weights["gate_up_proj_bias"][e]
        gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        response = gate * torch.sigmoid(1.702 * gate)
        key, down = response * (up + 1), weights["down_proj"][e].T
        return response, key, down @ key + weights["down_proj_bias"][e], down
    if kind == "ungated":
        key, down = torch.relu(weights["up_proj"][e] @ x) ** 2, weights["down_proj"][e]
        return key, key, down @ key, down
    both, down = weights["gate_up_proj"][e] @ x, weights["down_proj"][e]
    response, up = silu(both[: len(both) // 2]), both[len(both) // 2 :]
    return response, response * up, down @ (response * up), down


def brute_force(engine, kind, examples, labels, *, residual="post_attention_layernorm", logits=True):
    """Return {layer: {name: (D, E, …)}} by loops; also the sets, as {layer: {set: count}}."""
    values = sorted(set(labels))
    result, sets = {}, {}
    seen = {}
    handles = []
    for router in engine.routers:
        before, _, _ = router.name.partition(f".{router.layer}.")
        block = engine.model.get_submodule(f"{before}.{router.layer}")

        def given(module, args, output, n=router.layer):
            seen[n, "given"] = [a.double() if a.is_floating_point() else a for a in args]
            seen[n, "routed"] = output.double()

        handles.append(router.experts_module.register_forward_hook(given))
        if residual is not None:

            def before_norm(module, args, n=router.layer):
                seen[n, "h"] = args[0].double().flatten(0, 1)

            handles.append(block.get_submodule(residual).register_forward_pre_hook(before_norm))

        def raw(z, w, i, n=router.layer):
            seen[n, "logits"] = None if z is None else z.double()

        handles += router.attach(raw)
    weights = {
        r.layer: {name: p.detach().double() for name, p in r.experts_module.named_parameters()} for r in engine.routers
    }
    for prepared, label in zip(engine.reader.read(iter(examples)), labels, strict=True):
        with torch.inference_mode():
            engine.model(input_ids=torch.tensor([prepared.tokens]), use_cache=False)
        d = values.index(label)
        for router in engine.routers:
            n, E = router.layer, router.experts
            x, ids, gates = seen[n, "given"]
            z, w = seen[n, "logits"], weights[n]
            store = result.setdefault(n, {})
            for t in range(len(x)):
                chosen = sorted(int(e) for e, g in zip(ids[t], gates[t], strict=True) if g != 0)
                sets.setdefault(n, {}).setdefault(tuple(chosen), 0)
                sets[n][tuple(chosen)] += 1
                top = int(gates[t].argmax())
                add(store, "first", (len(values), E), (d, int(ids[t, top])), 1)
                add(store, "first_gate", (len(values), E), (d, int(ids[t, top])), float(gates[t, top]))
                if logits:
                    best = int(z[t].argmax())
                    add(store, "top_logit", (len(values), E), (d, best), float(z[t, best]))
                    add(store, "logit_gram", (len(values), E, E), d, torch.outer(z[t], z[t]).numpy())
                for a in chosen:
                    for b in chosen:
                        add(store, "pairs", (len(values), E, E), (d, a, b), 1)
                turned = 0.0
                if residual is not None:
                    h, r = seen[n, "h"][t], seen[n, "routed"][t]
                    turned = max(1 - float(h @ (h + r) / (h.norm() * (h + r).norm())), 0.0)
                for e in range(len(w["down_proj"])):
                    response, key, y, down = expert(kind, w, e, x[t])
                    add(store, "all_output_sum", (len(values), E, len(y)), (d, e), y.numpy())
                    if e not in chosen:
                        continue
                    g = float(gates[t][ids[t] == e][0])
                    norm = float(y.norm())
                    cosine = float(x[t] @ y) / (float(x[t].norm()) * norm) if len(y) == len(x[t]) else 0.0
                    for name, value in {
                        "count": 1,
                        "gate": g,
                        "gate_square": g * g,
                        "norm": norm,
                        "norm_square": norm * norm,
                        "gated_norm": g * norm,
                        "turn": turned * g * norm,
                        "own_turn": g * norm * (1 - cosine),
                    }.items():
                        add(store, name, (len(values), E), (d, e), value)
                    most(store, "peak", (len(values), E), (d, e), float(y.abs().max()))
                    add(store, "output_sum", (len(values), E, len(y)), (d, e), y.numpy())
                    add(store, "gated_output_sum", (len(values), E, len(y)), (d, e), (g * y).numpy())
                    shape = (len(values), E, len(key))
                    add(store, "neuron_square", shape, (d, e), ((g * key) ** 2).numpy())
                    most(store, "neuron_peak", shape, (d, e), (g * key).abs().numpy())
                    most(store, "neuron_gate_peak", shape, (d, e), response.abs().numpy())
                    add(store, "neuron_projection", shape, (d, e), (((down * key).T @ y) / norm).numpy())
    for handle in handles:
        handle.remove()
    return result, sets


def add(store, name, shape, place, value):
    store.setdefault(name, np.zeros(shape))[place] += value


def most(store, name, shape, place, value):
    array = store.setdefault(name, np.zeros(shape))
    array[place] = np.maximum(array[place], value)


def compare(statistics, wanted, sets, *, without=(), rtol=2e-4):
    for layer in statistics:
        names = set(layer.arrays)
        assert names == set(columns_of(ALL)) - set(without)
        for name in names:
            got, right = layer.arrays[name], wanted[layer.layer].get(name, 0)
            if name in ("count", "first", "pairs"):
                assert got.dtype == np.int64
                assert np.array_equal(got, right + np.zeros(got.shape)), name
            else:
                scale = np.abs(right).max() if np.size(right) else 1.0
                assert np.allclose(got, right, rtol=rtol, atol=rtol * scale), (layer.layer, name)
        found = {tuple(int(e) for e in row): int(n) for row, n in zip(*layer.sets, strict=True)}
        assert found == sets[layer.layer]
