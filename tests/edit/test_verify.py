"""Verification: a right checkpoint passes, and each planted mistake is found by the check that is there for it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edit.test_preview import TEXTS, plan_for
from helpers.models import tiny_engine
from moeworks.edit.apply import apply
from moeworks.edit.plan import EditPlan
from moeworks.edit.verify import check_logits, verify

QUICK = {"texts": TEXTS, "prompts": 2, "new_tokens": 8, "speed": False, "bootstrap": 20}
KEPT = {0: (0, 2, 3, 6), 2: (1, 2, 4, 7)}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, EditPlan, str]:
    folder = tmp_path_factory.mktemp("verify")
    engine = tiny_engine("softmax")
    engine.model.save_pretrained(folder / "original")
    engine.tokenizer.save_pretrained(folder / "original")
    plan = plan_for(engine, KEPT)
    apply(folder / "original", plan, folder / "smaller")
    return str(folder / "original"), plan, str(folder / "smaller")


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made[2], tmp_path / "copy")
    return tmp_path / "copy"


def states(found):
    return {check.name: check.state for check in found.checks}


def failed(found):
    return {check.name: check.detail for check in found.checks if check.state == "failed"}


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def change_json(folder, name, **fields):
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({k: v for k, v in (document | fields).items() if v is not None}))


def test_what_apply_writes_is_what_the_plan_says(made):
    original, plan, smaller = made
    found = verify(smaller, original, plan, **QUICK)
    assert found.passed, found.words()
    assert set(states(found).values()) == {"passed"}
    assert found.difference < 1e-4
    assert found.bytes_after < found.bytes_before
    assert found.comparison.divergence.value > 0
    assert found.comparison.size.parameters_after < found.comparison.size.parameters_before
    assert "is what the plan makes of" in found.words()


def test_difference_is_that_of_the_logits(made):
    """Against the two models run by hand on one text."""
    original, plan, smaller = made
    from moeworks.edit.replan import as_mask
    from moeworks.engines import load

    whole, cut = load(original), load(smaller)
    tokens = torch.tensor([whole.tokens(TEXTS[0].text)])
    with torch.inference_mode():
        found = cut.model(tokens).logits
        with whole.steered(as_mask(plan)):
            wanted = whole.model(tokens).logits
    check, difference = check_logits(whole, cut, plan, TEXTS[:1])
    assert difference == pytest.approx(float((found - wanted).abs().max()), abs=1e-7)
    assert check.state == "passed"
    other = plan_for(whole, {0: (0, 2, 3, 5), 2: (1, 2, 4, 7)})
    assert check_logits(whole, cut, other, TEXTS)[0].state == "failed"


def test_two_swapped_experts(made, copy):
    original, plan, _ = made

    def swap(tensors):
        one, other = (f"model.layers.2.mlp.experts.{e}.down_proj.weight" for e in (1, 3))
        tensors[one], tensors[other] = tensors[other], tensors[one]

    change_weights(copy, swap)
    found = verify(copy, original, plan, **QUICK)
    assert set(failed(found)) == {"tensors", "logits"}
    assert failed(found)["tensors"] == "layer 2: down of expert 1, 3 is not the planned one"
    assert "NOT what the plan says" in found.words()


def test_one_changed_number_outside_the_experts(made, copy):
    original, plan, _ = made
    change_weights(copy, lambda tensors: tensors["model.norm.weight"].__setitem__(3, 1.0625))
    found = verify(copy, original, plan, **QUICK)
    assert failed(found)["tensors"] == "model.norm.weight is not the original's"


def test_one_changed_bit_of_a_cut_expert(made, copy):
    original, plan, _ = made

    def nudge(tensors):
        row = tensors["model.layers.0.mlp.experts.2.up_proj.weight"][3]
        row.copy_(torch.nextafter(row, row + 1))

    change_weights(copy, nudge)
    found = verify(copy, original, plan, **QUICK)
    assert failed(found) == {"tensors": "layer 0: up of expert 2 is not the planned one"}


def test_a_stale_count_key(made, copy):
    original, plan, _ = made
    change_json(copy, "config.json", num_local_experts=8, num_experts=8)
    found = verify(copy, original, plan, **QUICK)
    assert not found.passed
    assert {"files", "loads"} <= set(failed(found))
    assert states(found)["logits"] == "not checked"


def test_count_keys_that_contradict_each_other(made, copy):
    original, plan, _ = made
    change_json(copy, "config.json", num_local_experts=4, num_experts=8)
    assert "contradicts itself" in failed(verify(copy, original, plan, **QUICK))["files"]


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_a_count_key_that_another_version_reads_is_missing(made, copy, key):
    original, plan, _ = made
    change_json(copy, "config.json", **{key: None})
    assert f"{key} is missing" in failed(verify(copy, original, plan, **QUICK))["config"]


def test_another_top_k(made, copy):
    original, plan, _ = made
    change_json(copy, "config.json", num_experts_per_tok=1)
    assert set(failed(verify(copy, original, plan, **QUICK))) == {"config", "logits"}


def test_a_missing_and_another_tokenizer(made, copy):
    original, plan, _ = made
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    assert "tokenizer.json is another one" in failed(verify(copy, original, plan, **QUICK))["tokenizer and settings"]
    (copy / "tokenizer.json").unlink()
    found = verify(copy, original, plan, **QUICK)
    assert "tokenizer.json is missing" in failed(found)["tokenizer and settings"]


def test_a_missing_and_an_unexpected_key(made, copy):
    original, plan, _ = made

    def rename(tensors):
        tensors["model.layers.1.mlp.gate_proj.wrong"] = tensors.pop("model.layers.1.mlp.gate_proj.weight")

    change_weights(copy, rename)
    problems = failed(verify(copy, original, plan, **QUICK))
    assert "missing_keys: model.layers.1.mlp.gate_proj.weight" in problems["loads"]
    assert "unexpected_keys: model.layers.1.mlp.gate_proj.wrong" in problems["loads"]
    assert "gate_proj.weight is missing; model.layers.1.mlp.gate_proj.wrong is new" in problems["tensors"]


def test_a_wrong_total_size(made, tmp_path):
    original, plan, _ = made
    apply(original, plan, tmp_path / "sharded", max_shard_bytes=400_000)
    assert verify(tmp_path / "sharded", original, plan, **QUICK).passed
    change_json(tmp_path / "sharded", "model.safetensors.index.json", metadata={"total_size": 17})
    assert "total_size is 17" in failed(verify(tmp_path / "sharded", original, plan, **QUICK))["index"]


def test_another_plan_and_another_model(made, tmp_path):
    original, _, smaller = made
    engine = tiny_engine("softmax")
    found = verify(smaller, original, plan_for(engine, KEPT | {0: (0, 1, 3, 6)}), **QUICK)
    assert set(failed(found)) == {"tensors", "logits"}
    found = verify(smaller, original, plan_for(tiny_engine("softmax", seed=1), KEPT), **QUICK)
    assert "made for weights" in failed(found)["logits"]
    fewer = plan_for(engine, {0: (0, 2, 3), 2: (1, 2, 4)})
    assert {"layers", "config"} <= set(failed(verify(smaller, original, fewer, **QUICK)))


def test_half_precision_is_judged_by_the_median_token(made):
    original, plan, smaller = made
    found = verify(smaller, original, plan, dtype="bfloat16", **QUICK)
    assert found.passed, found.words()
    (logits,) = (check for check in found.checks if check.name == "logits")
    assert "in the median token" in logits.detail
    assert not np.isnan(found.difference)


def test_a_merge_equals_the_edit_in_memory(made, tmp_path):
    original, plan, _ = made
    groups = {0: ((0, 1), (2,), (3, 4, 5), (6, 7)), 2: ((1, 0), (2, 3), (4, 5, 6), (7,))}
    cuts = tuple(
        cut.model_copy(update={"groups": tuple(tuple((e, 1 / len(g)) for e in g) for g in groups[cut.layer])})
        for cut in plan.layers
    )
    merge = plan.model_copy(update={"layers": cuts, "transform": "mean"})
    apply(original, merge, tmp_path / "merged")
    found = verify(tmp_path / "merged", original, merge, **QUICK)
    assert found.passed, found.words()
    swapped = merge.model_copy(update={"layers": (cuts[0], plan.layers[1])})
    assert "tensors" in failed(verify(tmp_path / "merged", original, swapped, **QUICK))
