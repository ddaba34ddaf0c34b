"""Unlearning as a whole, on a planted model: what is forgotten, what stays, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeworks
from moeworks.address import Address
from moeworks.engines.fake import FakeEngine, neutral_examples, null_examples, planted_examples, planted_model
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import BadData, BadPlan, RunFailed, Unsupported
from moeworks.examples import Example
from moeworks.plan import Demote, empty_plan
from moeworks.train import UnlearnReport, affinity_of_trace, unlearn
from moeworks.train.objective import Objective
from moeworks.train.state import state_path

QUICK = {"steps": 6, "learning_rate": 1e-2, "max_tokens": 48, "batch_size": 4, "control": False}


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    torch.set_num_threads(1)
    planted = planted_model("single", layers=2)
    return TransformersEngine(planted.model, planted.tokenizer, name="planted")


def sides(count: int = 24, seed: int = 0) -> dict[str, list[Example]]:
    examples = planted_examples(count, seed=seed)
    return {
        name: [example for example in examples if example.labels["side"] == side]
        for name, side in (("forget", "contrast"), ("retain", "against"))
    }


def quiet(sentence: str) -> None:
    assert "of memory" in sentence


def run(engine: Any, **options: Any) -> UnlearnReport:
    return unlearn(engine, **{**sides(), **QUICK, "announce": quiet} | options)


def state(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


def loss_of(engine: TransformersEngine, examples: list[Example]) -> float:
    scores = [score.log_probabilities for score in engine.token_scores([e.text[:100] for e in examples])]
    return -float(sum(s.sum() for s in scores) / sum(len(s) for s in scores))


def test_the_planted_behaviour_goes_and_the_rest_stays(engine: TransformersEngine, tmp_path: Path) -> None:
    """NPO finds the planted expert by itself, forgets held-out shouting, and keeps plain text nobody trained on."""
    before = state(engine)
    report = run(engine, output=tmp_path / "out", steps=20, learning_rate=5e-3, control=True)
    assert report.result.target.expert == str(planted_model("single", layers=2).planted[0])
    assert report.result.target.chosen == "affinity"
    assert not report.result.target.near_tie
    assert report.result.target.rank_after == 1  # the anchor holds it
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())

    unlearned = moeworks.load(str(tmp_path / "out"))
    assert isinstance(unlearned, TransformersEngine)
    fresh = sides(16, seed=9)
    assert loss_of(unlearned, fresh["forget"]) > loss_of(engine, fresh["forget"]) + 1.0
    neutral = neutral_examples(8, seed=5)
    assert loss_of(unlearned, neutral) < loss_of(engine, neutral) + 0.1
    (first, last), (kept, kept_last) = report.result.forget_held_out, report.result.retain_held_out
    assert last.loss > first.loss + 1.0
    assert kept_last.loss - kept.loss < 0.1 * (last.loss - first.loss)
    assert report.control is not None
    assert report.control.target.chosen == "random"
    assert report.control.target.expert != report.result.target.expert
    assert report.result.forget_held_out[1].loss > report.control.forget_held_out[1].loss
    words = report.words()
    assert report.result.target.expert in words
    assert "random expert" in words


@pytest.mark.parametrize(("loss", "weight"), [("ga", 0.0), ("gdiff", 1.0), ("npo", 1.0)])
def test_every_loss_raises_the_loss_of_forgotten_texts(engine: TransformersEngine, loss: str, weight: float) -> None:
    report = run(engine, loss=loss)
    assert report.settings["retain"] == weight
    assert report.result.forget[1].loss > report.result.forget[0].loss + 0.2
    assert report.result.history[-1]["forget"] < report.result.history[0]["forget"]
    assert ("retain" in report.result.history[0]) == (weight > 0)


def test_rmu_moves_hidden_states_of_forgotten_texts_only(engine: TransformersEngine) -> None:
    report = run(engine, loss="rmu", steps=12, steering=20.0, retain_weight=10.0)
    history = report.result.history
    assert history[0]["retain"] == 0.0
    assert history[-1]["retain"] > 0.0  # against the model before training, not against itself
    moved = history[0]["forget"] - history[-1]["forget"]
    assert moved > 5 * history[-1]["retain"]  # squared distances


def test_layers_before_the_target_select_as_before(engine: TransformersEngine) -> None:
    last = run(engine, expert="L1.E3")
    assert last.result.overlap_forget[0] == last.result.overlap_retain[0] == 1.0
    assert last.result.overlap_retain[1] < 1.0
    assert last.result.target.chosen == "given"


def test_the_anchor_keeps_the_router_on_the_target(engine: TransformersEngine) -> None:
    options = {"expert": "L1.E3", "loss": "gdiff", "steps": 12, "anchor_tokens": "forget"}
    held, free = (run(engine, alpha=alpha, **options).result for alpha in (10.0, 0.0))
    assert held.target.affinity_before == free.target.affinity_before
    assert held.target.affinity_after > free.target.affinity_after + 0.1
    assert held.history[-1]["anchor"] < 0.5 * held.history[0]["anchor"]


def test_the_same_seed_gives_the_same_model(engine: TransformersEngine) -> None:
    one, again, other = (run(engine, seed=seed, expert="L0.E9", steps=3, measured=4) for seed in (1, 1, 2))
    assert one == again
    assert one.weight_hash != other.weight_hash
    assert one.weight_hash != engine.identity.weight_hash


@pytest.mark.parametrize(("optimiser", "stage"), [("adamw", "target"), ("sgd", "control")])
def test_interrupted_and_resumed_is_as_never_interrupted(
    engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str, stage: str
) -> None:
    options = {"optimiser": optimiser, "control": True, "expert": "L0.E9", "measured": 4, "steps": 4}
    whole = run(engine, **options)
    before = state(engine)
    step, calls = Objective.step, []

    def pressed(self: Objective, number: int) -> dict[str, float]:
        calls.append(number)
        if len(calls) == (2 if stage == "control" else 6):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "step", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(engine, output=output, **options)
    assert not output.exists()
    assert state_path(output).is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())
    with pytest.raises(BadData, match="unfinished run"):
        run(engine, output=output, **options)
    with pytest.raises(BadData, match="other options"):
        run(engine, output=output, resume=True, **options | {"learning_rate": 1e-4})

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "step", pressed)
        done = len(calls)
        resumed = run(engine, output=output, resume=True, **options)
    assert len(calls) - done == 8 - done  # only what was left
    assert resumed == whole
    assert not state_path(output).exists()


def test_what_is_written_is_a_whole_stock_model(engine: TransformersEngine, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = run(engine, output=output, expert="L1.E3")
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "unlearn.json", "model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing temporary is left
    stored = UnlearnReport.model_validate(json.loads((output / "unlearn.json").read_text()))
    assert stored == report

    stock = AutoModelForCausalLM.from_pretrained(output).state_dict()
    before = engine.model.state_dict()
    changed = {name for name in before if not torch.equal(stock[name], before[name])}
    assert changed == {
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    }
    assert AutoTokenizer.from_pretrained(output).eos_token == "<|end|>"
    assert moeworks.load(str(output)).identity.weight_hash == report.weight_hash

    with pytest.raises(BadData, match="is there already"):
        run(engine, output=output)
    again = run(engine, output=output, expert="L1.E4", overwrite=True)
    assert moeworks.load(str(output)).identity.weight_hash == again.weight_hash
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadData, match="was not written by this command"):
        run(engine, output=tmp_path / "mine", overwrite=True)


def test_affinity_of_a_trace_is_that_of_the_model(engine: TransformersEngine, tmp_path: Path) -> None:
    forget = sides()["forget"]
    trace = engine.record(forget, tmp_path / "trace", logits=True)
    of_trace = affinity_of_trace(trace)
    report = run(engine, forget=forget, trace=trace, steps=1)
    target = of_trace.target()
    assert report.result.target.expert == str(target.address)
    assert report.result.target.affinity == pytest.approx(target.affinity)
    assert report.result.target.tokens == len(trace)
    # another way: softmax per token, mean per text, mean over texts
    router = engine.routers[0]
    logits, texts = trace.logits(router.layer).astype(float), trace.rows().request
    weights = torch.from_numpy(logits).softmax(-1).numpy()
    by_hand = sum(weights[texts == text].mean(0) for text in set(texts.tolist())) / len(forget)
    assert of_trace.mean[0].tolist() == pytest.approx(by_hand.tolist(), rel=1e-5)


def test_no_plant_no_clear_target() -> None:
    """On a model without a plant and texts without a difference, the top expert is told to be a near-tie, or is one
    that the retain texts turn to just as much."""
    planted = planted_model("none", layers=2)
    engine = TransformersEngine(planted.model, planted.tokenizer, name="none")
    examples = null_examples(24)
    report = run(engine, forget=examples[::2], retain=examples[1::2], steps=1)
    target = report.result.target
    assert target.affinity is not None
    assert target.affinity < 0.25  # the plant's is 0.97


def test_answers_alone_are_forgotten(engine: TransformersEngine) -> None:
    forget = [Example(text=f"Question {n}: ", answer=f"ANSWER {n * 37}", document=str(n)) for n in range(6)]
    report = run(engine, forget=forget, steps=1)
    counts = report.result.forget[0].tokens + report.result.forget_held_out[0].tokens
    assert counts == sum(len(example.answer) for example in forget)  # a token is a byte


def test_memory_is_announced_before_training(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Objective, "step", lambda self, number: pytest.fail("trained") if not said else {"forget": 0.0})
    report = run(engine, announce=said.append, steps=1)
    assert said
    assert said[0].startswith("Unlearning in L")
    assert report.memory["model"] == sum(parameter.nbytes for parameter in engine.model.parameters())


def test_bad_input_is_one_sentence(engine: TransformersEngine, tmp_path: Path) -> None:
    texts = sides()
    with pytest.raises(BadData, match="one document"):
        run(engine, forget=texts["forget"][:1])
    with pytest.raises(BadData, match="no forget loss is called 'npu'"):
        run(engine, loss="npu")
    with pytest.raises(BadData, match="layer 7 has no router"):
        run(engine, expert="L7.E0")
    with pytest.raises(BadData, match="there is no expert 99"):
        run(engine, expert="L0.E99")
    with pytest.raises(BadData, match="held-out"):
        run(engine, held_out=1.0)
    with pytest.raises(BadData, match="must not be cut off"):
        run(engine, forget=[Example(text="x" * 60, answer="y", document=str(n)) for n in range(3)])
    with pytest.raises(BadData, match="of a safety behaviour"):
        run(engine, forget="probe:requests")
    with pytest.raises(Unsupported, match="only the transformers engine"):
        run(FakeEngine())
    plan = empty_plan(engine.identity).model_copy(update={"operations": (Demote(experts=(Address(0, 1),)),)})
    with engine.steered(plan), pytest.raises(BadPlan, match="leave the"):
        run(engine)
    before = state(engine)
    with pytest.raises(RunFailed, match="not finite"):
        run(engine, loss="ga", learning_rate=1e30, output=tmp_path / "out")
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())
    assert not (tmp_path / "out").exists()
