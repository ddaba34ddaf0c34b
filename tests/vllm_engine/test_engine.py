"""The offline engine on real vLLM: the same routing as transformers, mixed batches, refusals, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeworks.address import Address
from moeworks.compare import compare
from moeworks.errors import Unsupported
from moeworks.examples import Example
from moeworks.plan import Plan, empty_plan
from moeworks.plan.schema import Add, Demote, Mask, Neurons, Promote, Replay, Scale, TopK
from moeworks.where import Where

NEEDS_VLLM = True
KINDS = ["lab", "qwen3_moe", "olmoe", "glm4_moe"]
TEXTS = [
    "The river runs through the old town and under three bridges before it reaches the sea.",
    "def area(width, height):\n    return width * height\n",
    "Il fait beau aujourd'hui et nous allons marcher dans la forêt.",
    "Twelve plus thirty is forty two.",
]


def plan(engine: Any, *operations: Any, **fields: Any) -> Plan:
    return empty_plan(engine.identity, protect="none").model_copy(update={"operations": operations, **fields})


def every(engine: Any, *experts: int) -> tuple[Address, ...]:
    return tuple(Address(shape.layer, expert) for shape in engine.identity.layers for expert in experts)


def plans(engine: Any) -> dict[str, Plan]:
    """A plan of every kind; experts are chosen so that each fits routers of 8, 16 and 32 experts, groups too."""
    after = Where(phase=("generated",))
    return {
        "promote": plan(engine, Promote(experts=every(engine, 5))),
        "demote": plan(engine, Demote(experts=every(engine, 0, 3))),
        "add": plan(engine, Add(experts=every(engine, 2), strength=2.0), Add(experts=every(engine, 6), strength=-0.3)),
        "mask": plan(engine, Mask(experts=every(engine, 1, 4))),
        "no refill": plan(engine, Mask(experts=every(engine, 1, 4), refill=False, renormalise=True)),
        "scale": plan(engine, Scale(experts=every(engine, *range(4)), factor=0.5)),
        "fewer": plan(engine, TopK(k=1)),
        "late": plan(engine, Promote(experts=every(engine, 5), where=after), TopK(k=1, where=Where(position=(2, 5)))),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_plans_route_as_in_transformers(kind: str, engine_of: Any, reference_of: Any, tmp_path: Path) -> None:
    engine, reference = engine_of(kind), reference_of(kind)
    examples = [Example(text=text) for text in TEXTS[:2]]
    for name, one in {"none": None, **plans(engine)}.items():
        ours = engine.record(examples, tmp_path / f"{name}-v", plan=one, logits=True, generate=6)
        theirs = reference.record(examples, tmp_path / f"{name}-t", plan=one, logits=True, generate=6)
        result = compare(theirs, ours)
        assert result.only_first == result.only_second == result.after_divergence == 0, name
        layers = result.layers.to_pydict()
        assert (
            max(layers["flips"]) == 0
            or min(n for n, f in zip(layers["near_ties"], layers["flips"], strict=True) if f) == 1
        ), (name, layers)
        assert max(layers["largest_weight_error"]) < 1e-4, (name, layers)


@pytest.mark.parametrize("kind", KINDS)
def test_four_plans_in_one_batch(kind: str, engine_of: Any) -> None:
    """Each request of a mixed batch gives what it gives alone, and what it gives is its own plan's."""
    engine = engine_of(kind)
    chosen = [None, *(plans(engine)[name] for name in ("promote", "mask", "late"))]
    prompt = engine.tokens(TEXTS[0])
    alone = [_routes(engine, [prompt], [one])[0] for one in chosen]
    together = _routes(engine, [prompt] * 4, chosen)
    for one, other in zip(alone, together, strict=True):
        assert one[0] == other[0]
        for name, values in one[1].items():
            if name.endswith("ids"):
                assert (np.sort(values) == np.sort(other[1][name])).all(), name
            else:
                assert np.abs(values.sum(-1) - other[1][name].sum(-1)).max() < 1e-5
    for shape in engine.identity.layers:
        ids = [routes[1][f"L{shape.layer}.ids"] for routes in together]
        assert (ids[1] == 5).any(-1).all()
        assert not np.isin(ids[2], [1, 4]).any()
        assert np.isin(ids[0], [1, 4]).any()
        weights = together[3][1][f"L{shape.layer}.weights"]
        assert ((weights > 0).sum(-1)[2:5] == 1).all()
        assert ((weights > 0).sum(-1)[5 : len(prompt)] == shape.top_k).all()
        assert (ids[3][len(prompt) :] == 5).any(-1).all()


def test_a_request_without_a_plan_is_untouched(engine_of: Any) -> None:
    """Alone and beside steered requests, tokens and log-probabilities are those of the engine with nothing hooked."""
    engine = engine_of("qwen3_moe")
    prompt = engine.tokens(TEXTS[0])
    batch = [prompt, prompt]
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "logprobs": 5, "detokenize": False}
    hooked = engine.run(batch, None, **options)
    mixed = _mixed(engine, batch, [None, plans(engine)["mask"]], **options)
    routers = [
        module.router
        for module in engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model.modules()
        if hasattr(module, "router")
    ]
    assert len(routers) == len(engine.identity.layers)
    kept = [router.__dict__.pop("_compute_routing") for router in routers]
    try:
        bare = engine.run(batch, None, **options)
    finally:
        for router, own in zip(routers, kept, strict=True):
            router._compute_routing = own
    assert _numbers(bare[0]) == _numbers(hooked[0]) == _numbers(mixed[0])
    assert _numbers(bare[1]) != _numbers(mixed[1])


def test_prefix_caches_are_kept_apart_by_plan(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the salt a cached prefix of another plan is never used; without it the answer comes out wrong."""
    import moeworks.engines.vllm.admission as admission

    engine = engine_of("qwen3_moe")
    one = plans(engine)["mask"]
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0, "logprobs": 5, "detokenize": False}

    def after_each_other(salted: bool) -> tuple[Any, Any, Any]:
        monkeypatch.setattr(admission, "SALT", salted)
        engine.llm.reset_prefix_cache()
        prompt = engine.tokens(" ".join(TEXTS))[:90]
        alone = _mixed(engine, [prompt], [one], **options)[0]
        engine.llm.reset_prefix_cache()
        engine.run([prompt], None, **options)
        second = _mixed(engine, [prompt], [one], **options)[0]
        again = _mixed(engine, [prompt], [one], **options)[0]
        assert bool(second.num_cached_tokens) != salted
        assert again.num_cached_tokens
        return _numbers(alone), _numbers(second), _numbers(again)

    alone, second, again = after_each_other(salted=True)
    assert _near(alone, second)
    assert _near(alone, again)
    alone, second, _ = after_each_other(salted=False)
    assert not _near(alone, second)


def test_prompts_in_chunks_and_preemption_give_the_same_routes(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than a step takes, more requests than the cache holds: rows are whole and those of a run alone."""
    engine = engine_of("qwen3_moe")
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    preempted, preempt = [], scheduler._preempt_request
    monkeypatch.setattr(scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1])
    prompts = [engine.tokens(" ".join(TEXTS[i % 4 :] + TEXTS))[: 52 + i] for i in range(12)]
    kinds = [None, *plans(engine).values()]
    chosen = [kinds[i % len(kinds)] for i in range(12)]
    together = _routes(engine, prompts, chosen, new=24)
    assert preempted
    for prompt, one, found in zip(prompts, chosen, together, strict=True):
        tokens, columns = _routes(engine, [prompt], [one], new=24)[0]
        assert tokens == found[0]
        assert all(len(values) == len(prompt) + 23 for values in found[1].values())
        for name, values in columns.items():
            if name.endswith("ids"):
                assert (np.sort(values) == np.sort(found[1][name])).mean() > 0.999


def test_slots_are_given_back(engine_of: Any) -> None:
    engine = engine_of("qwen3_moe")
    engine.generate(TEXTS, plan=plans(engine)["late"], max_new_tokens=3)
    engine.generate(["End."], max_new_tokens=2)  # the next step tells the workers who has left
    (state,) = engine.state()
    assert (state["requests"], state["slots_used"], state["waiting"], state["bytes"]) == (0, 0, 0, 0)


def test_sums_of_all_requests_are_those_of_their_routes(engine_of: Any) -> None:
    """Steered, plain and unrecorded requests, prompts and steps: what the meter counted is what traces say."""
    from moeworks.engines.vllm.meter import FetchedMeter

    engine = engine_of("glm4_moe")
    attached = engine.llm.llm_engine.model_executor.driver_worker.moeworks
    attached.watch()
    try:
        prompts = [engine.tokens(text) for text in TEXTS]
        chosen = [None, *(plans(engine)[name] for name in ("mask", "no refill", "fewer"))]
        routes = _routes(engine, prompts, chosen)
        engine.run([prompts[0]], None, max_tokens=4, temperature=0.0, ignore_eos=True)  # nobody records this one
        (sums,) = engine.llm.collective_rpc("moeworks_meter")
        readings = FetchedMeter(lambda: [sums, None]).readings()
    finally:
        attached.meter = None
    routes += [
        (tokens, {name: values[: len(prompts[0]) + 3] for name, values in columns.items()})
        for tokens, columns in routes[:1]
    ]
    violations = {}
    for shape in engine.identity.layers:
        ids, weights = (
            np.concatenate([columns[f"L{shape.layer}.{kind}"] for _, columns in routes]) for kind in ("ids", "weights")
        )
        counts, (tokens, tops, _), _ = sums[shape.layer]
        expected = np.bincount(ids[weights != 0], minlength=shape.experts)
        np.testing.assert_array_equal(counts, expected)
        assert tokens == len(ids)
        assert tops == pytest.approx((weights.max(1) / np.maximum(weights.sum(1), 1e-30)).sum(), rel=1e-5)
        violations[shape.layer] = expected.max() * shape.experts / expected.sum() - 1
    assert readings["tokens"] == tokens
    assert readings["worst_layer"] == max(violations, key=lambda layer: violations[layer])
    assert readings["max_violation_mean"] == pytest.approx(np.mean(list(violations.values())))
    assert readings["bias_spread_worst"] > 0


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda e: TopK(k=3), "top_k 3"),
        (lambda e: Replay(trace="somewhere"), "replay"),
        (lambda e: Mask(experts=every(e, 1), where=Where(token=(5,))), "token"),
        (lambda e: Mask(experts=every(e, 1), where=Where(labels={"lang": ("fr",)})), "lang"),
        (lambda e: Neurons(neurons=((0, 1, 2),), action="zero"), "neurons"),
    ],
)
def test_what_vllm_cannot_do_is_refused(operation: Any, words: str, engine_of: Any) -> None:
    engine = engine_of("qwen3_moe")
    with pytest.raises(Unsupported, match=words):
        engine.generate(["Hello"], plan=plan(engine, operation(engine)))


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "no object"),
        ('{"plan": "nobody"}', "no plan is called 'nobody'"),
        ('{"plan": {"operations": []}}', "header"),
        ('{"strength": 3}', "strength"),
        ('{"record": {"layers": [1]}}', "no router"),
        ('{"record": {"from": -1}}', "from"),
        ('{"unknown": 1}', "unknown"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_field_is_refused_at_the_door(field: str, words: str, engine_of: Any) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    engine = engine_of("qwen3_moe")
    params = SamplingParams(max_tokens=2, extra_args={"moeworks": field})
    with pytest.raises(VLLMValidationError, match=words):
        engine.llm.generate(["Hello"], params, use_tqdm=False)
    assert engine.generate(["Hello"], max_new_tokens=1)  # the engine goes on


def test_a_plan_of_another_model_is_refused(engine_of: Any) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    engine = engine_of("qwen3_moe")
    other = engine.identity.model_copy(update={"weight_hash": "of something else"})
    foreign = empty_plan(other).model_copy(update={"operations": (TopK(k=1),)})
    field = json.dumps({"plan": json.loads(foreign.model_dump_json())})
    with pytest.raises(VLLMValidationError, match="made for weights of something else"):
        engine.llm.generate(["Hello"], SamplingParams(extra_args={"moeworks": field}), use_tqdm=False)


def test_rows_without_room_are_counted_and_not_passed_over(
    engine_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from moeworks.errors import RunFailed

    engine = engine_of("qwen3_moe")
    worker = engine.llm.llm_engine.model_executor.driver_worker
    monkeypatch.setattr(worker.moeworks.recorder, "_budget", 100)
    with pytest.raises(RunFailed, match="found no room"):
        engine.record([Example(text=TEXTS[0])], tmp_path / "trace")
    assert engine.state()[0]["dropped_rows"] > 0
    assert engine.state()[0]["bytes"] == 0


def test_scores_and_answers_equal_transformers(engine_of: Any, reference_of: Any) -> None:
    engine, reference = engine_of("qwen3_moe"), reference_of("qwen3_moe")
    one = plans(engine)["mask"]
    ours = list(engine.token_scores(TEXTS[:2], plan=one, divergence=True))
    theirs = list(reference.token_scores(TEXTS[:2], plan=one, divergence=True))
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(mine.log_probabilities - other.log_probabilities).max() < 1e-3
        assert mine.divergence is not None
        assert np.abs(mine.divergence - other.divergence).max() < 1e-3
    pairs = [("The sky is", " blue"), ("Two and two are", " four")]
    for mine, other in zip(engine.answers(pairs, plan=one), reference.answers(pairs, plan=one), strict=True):
        assert abs(mine.log_probability - other.log_probability) < 1e-3
        assert mine[1:] == other[1:]


def _mixed(engine: Any, prompts: Any, chosen: Any, **options: Any) -> list[Any]:
    """Run prompts in one batch, each under its own plan, through the field that HTTP requests use too."""
    from vllm import SamplingParams

    fields = [None if one is None else {"moeworks": json.dumps({"plan": _document(one)})} for one in chosen]
    params = [SamplingParams(extra_args=field, **options) for field in fields]
    return engine.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)


def _routes(engine: Any, prompts: Any, chosen: Any, new: int = 6) -> list[tuple[Any, dict[str, Any]]]:
    """Return generated tokens and recorded columns of a mixed batch."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            extra_args={
                "moeworks": json.dumps(
                    {"key": f"k{i}", "record": {"weights": True}} | ({} if one is None else {"plan": _document(one)})
                )
            },
            max_tokens=new,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
        )
        for i, one in enumerate(chosen)
    ]
    outputs = engine.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    results = []
    for prompt, output, kept in zip(prompts, outputs, engine.take([f"k{i}" for i in range(len(chosen))]), strict=True):
        assert kept["missing"] == kept["dropped"] == kept["first"] == 0
        columns = {
            n: np.frombuffer(d, t).reshape(s)[: len(prompt) + new - 1] for n, (t, s, d) in kept["columns"].items()
        }
        results.append((list(output.outputs[0].token_ids), columns))
    return results


def _document(one: Plan) -> Any:
    return json.loads(one.model_dump_json())


def _numbers(output: Any) -> list[tuple[int, list[tuple[int, float]]]]:
    found = output.outputs[0]
    return [
        (token, [(other, entry.logprob) for other, entry in entries.items()])
        for token, entries in zip(found.token_ids, found.logprobs, strict=True)
    ]


def _near(one: Any, other: Any) -> bool:
    """Whether two runs chose the same tokens with nearly the same log-probabilities; batches differ in last bits."""
    if [token for token, _ in one] != [token for token, _ in other]:
        return False
    return all(abs(dict(a)[token] - dict(b)[token]) < 1e-4 for (token, a), (_, b) in zip(one, other, strict=True))
