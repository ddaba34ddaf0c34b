"""What cannot be written is refused before anything is, with the reason and a cure; nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from helpers.checkpoints import by_hand, plan_of, proved, saved, tensors_of
from moeworks.edit.apply import apply, check_apply, draft_plan
from moeworks.edit.checkpoint import open_checkpoint
from moeworks.errors import BadData, BadPlan


@pytest.fixture(scope="module")
def softmax(tmp_path_factory):
    return saved("qwen3_moe", tmp_path_factory.mktemp("softmax") / "m")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    return saved("deepseek_v3", tmp_path_factory.mktemp("grouped") / "m")


def refused(source, plan, words, tmp_path, **options) -> None:
    with pytest.raises(BadPlan, match=words):
        check_apply(source, plan, **options)
    with pytest.raises(BadPlan, match=words):
        apply(source, plan, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


ALL = range(4)


def test_unequal_counts(softmax, tmp_path) -> None:
    plan = plan_of(softmax, {0: range(8), 1: range(8), 2: range(4), 3: range(8)})
    words = r"4 in layers 2; 8 in layers 0, 1, 3.*budget 'uniform'.*--pad.*--format uneven"
    refused(softmax, plan, words, tmp_path)


def test_layers_that_are_not_listed_stay_whole(softmax, tmp_path) -> None:
    refused(softmax, plan_of(softmax, {0: range(8)}), "Layers 1, 2, 3 are not in the plan and stay whole", tmp_path)


def test_fewer_than_a_token_gets(softmax, tmp_path) -> None:
    plan = plan_of(softmax, dict.fromkeys(ALL, (7,)))
    refused(softmax, plan, "keeps 1 experts, and the router chooses 2", tmp_path)


def test_no_multiple_of_the_expert_parallel_size(softmax, tmp_path) -> None:
    plan = plan_of(softmax, {layer: range(6) for layer in ALL})
    refused(softmax, plan, "no multiple of 4 .expert-parallel size", tmp_path, expert_parallel=4)
    check_apply(softmax, plan, expert_parallel=3)


def test_another_shape_and_other_weights(softmax, grouped, tmp_path) -> None:
    refused(grouped, plan_of(softmax, {layer: range(8) for layer in ALL}), "It was made for top 2 of 16", tmp_path)
    plan = plan_of(softmax, {layer: range(8) for layer in ALL})
    refused(softmax, plan, "not for those that hash_override names", tmp_path, hash_override="0" * 32)
    nobody = plan.model_copy(update={"header": plan.header.model_copy(update={"model": None})})
    refused(softmax, nobody, "does not say which model", tmp_path)


def test_transforms(softmax, tmp_path) -> None:
    groups = {layer: tuple(((e, 1.0), (e + 8, 1.0)) for e in range(8)) for layer in ALL}
    plan = plan_of(softmax, {layer: range(8) for layer in ALL}, groups=groups)
    refused(softmax, plan, "'cut' merges nothing", tmp_path)
    refused(softmax, plan.model_copy(update={"transform": "gold"}), "No transform is called 'gold'", tmp_path)
    rescaled = plan_of(softmax, {layer: range(8) for layer in ALL}, transform="cut_rescaled")
    refused(softmax, rescaled, "needs the statistics", tmp_path)
    renormalising = proved("mixtral", softmax)
    options = plan_of(softmax, {layer: range(8) for layer in ALL}, identity=renormalising, transform="cut_rescaled")
    refused(softmax, options, "divide by the sum of the chosen weights", tmp_path)
    strange = plan_of(softmax, {layer: range(8) for layer in ALL}, transform="mean", transform_options={"gold": 1})
    refused(softmax, strange, "'mean' has no option 'gold'", tmp_path)


def test_unequal_groups(grouped, tmp_path) -> None:
    kept = (0, 1, 4, 5, 8, 9, 12, 13)
    check_apply(grouped, plan_of(grouped, dict.fromkeys((1, 2, 3), kept)))
    unequal = plan_of(grouped, dict.fromkeys((1, 2, 3), (0, 1, 2, 5, 8, 9, 12, 13)))
    refused(grouped, unequal, "keeps 3, 1, 2, 2 experts of its 4 groups", tmp_path)
    seven = plan_of(grouped, dict.fromkeys((1, 2, 3), kept[:7]))
    refused(grouped, seven, "4 groups of equal size; keep a multiple", tmp_path)
    one = plan_of(grouped, dict.fromkeys((1, 2, 3), (0, 4, 8, 12)))
    refused(grouped, one, "ranks groups by their best two; keep two of each", tmp_path)


def test_fewer_in_the_groups_that_a_token_chooses_from(tmp_path) -> None:
    tensors = {
        "model.layers.0.mlp.gate.weight": torch.zeros(16, 4),
        "model.layers.0.mlp.gate.e_score_correction_bias": torch.zeros(16),
    }
    for e in range(16):
        for part in ("gate_proj", "up_proj", "down_proj"):
            tensors[f"model.layers.0.mlp.experts.{e}.{part}.weight"] = torch.zeros(4, 4)
    folder = by_hand(
        tmp_path / "source",
        tensors,
        model_type="unheard_of",
        n_routed_experts=16,
        num_experts_per_tok=6,
        n_group=4,
        topk_group=2,
    )
    two = plan_of(folder, {0: (0, 1, 4, 5, 8, 9, 12, 13)})
    with pytest.raises(BadPlan, match=r"a token chooses 6 from 2 groups; keep at least 3 of each"):
        check_apply(folder, two)
    forecast = check_apply(folder, plan_of(folder, {0: (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14)}))
    assert "not checked with transformers" in forecast.notes[0]


def test_all_problems_at_once(grouped) -> None:
    plan = plan_of(grouped, {1: (0,), 2: range(16), 3: range(7)})
    with pytest.raises(BadPlan) as caught:
        check_apply(grouped, plan)
    text = str(caught.value)
    assert "problems" in text
    assert "Stock checkpoints have one number" in text
    assert "keeps 1 experts" in text
    assert "multiple" in text


def test_experts_without_weights_stay(tmp_path) -> None:
    source = saved("longcat_flash", tmp_path / "m")
    checkpoint = open_checkpoint(source)
    assert checkpoint.identity().layers[0].experts == 18
    with pytest.raises(BadPlan, match=r"L0.E16, L0.E17 have no weights and stay"):
        check_apply(source, plan_of(source, {layer: range(8) for layer in checkpoint.layers}))
    apply(source, plan_of(source, {layer: (*range(8), 16, 17) for layer in checkpoint.layers}), tmp_path / "out")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    name = "model.layers.0.mlp.router.classifier.weight"
    assert torch.equal(after[name], before[name][[*range(8), 16, 17]])


def test_widths(softmax, tmp_path) -> None:
    keep = {layer: range(2) for layer in ALL}
    unequal = plan_of(softmax, keep, neurons=dict.fromkeys(ALL, ((0, 1), (0, 1, 2))))
    refused(softmax, unequal, "keeps 2 to 3 neurons in its experts", tmp_path)
    by_layer = plan_of(softmax, keep, neurons={layer: (tuple(range(2 + layer)),) * 2 for layer in ALL})
    refused(softmax, by_layer, "one width for the experts of all layers", tmp_path)


def test_a_width_that_other_parts_share(tmp_path) -> None:
    source = saved("jamba", tmp_path / "m")  # intermediate_size is that of its dense layers too
    layers = open_checkpoint(source).layers
    plan = plan_of(source, {e: range(4) for e in layers}, neurons={e: (tuple(range(16)),) * 4 for e in layers})
    with pytest.raises(BadPlan, match=r"also change .*feed_forward"):
        check_apply(source, plan)


def test_tables_of_token_ids(tmp_path) -> None:
    source = saved("deepseek_v4", tmp_path / "m")
    plan = draft_plan(source, 0.25)  # tables name experts 0 to 7, and 0 to 3 stay
    with pytest.raises(BadPlan, match=r"table of token ids, which names 4 experts that go.*--tables replace"):
        check_apply(source, plan)
    check_apply(source, plan, tables="replace")


def test_a_share_that_is_none() -> None:
    with pytest.raises(BadData, match="above 0 and at most 1"):
        draft_plan("lab", 0)


def test_other_weights_of_the_same_shape(softmax, tmp_path, monkeypatch) -> None:
    from moeworks.edit import same_weights

    keep = {layer: range(8) for layer in ALL}
    plan = plan_of(softmax, keep, identity=proved("qwen3_moe", softmax))
    assert check_apply(softmax, plan).notes == ()
    other = saved("qwen3_moe", tmp_path / "other")
    tensors = tensors_of(other)
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadPlan, match=r"It was made for weights .*hash_override"):
        check_apply(other, plan)
    assert plan.model is not None
    check_apply(other, plan, hash_override=plan.model.weight_hash)
    check_apply(other, plan, compare=False)
    monkeypatch.setattr(same_weights, "_free_memory", lambda: 10)
    assert "do not fit into half" in check_apply(other, plan).notes[0]


@pytest.mark.slow
def test_large_models_are_hashed_in_a_process_of_their_own(softmax, monkeypatch) -> None:
    from moeworks.edit import same_weights

    monkeypatch.setattr(same_weights, "_HERE", 0)
    plan = plan_of(softmax, {layer: range(8) for layer in ALL}, identity=proved("qwen3_moe", softmax))
    assert check_apply(softmax, plan).notes == ()
    assert plan.model is not None
    other = plan.model.model_copy(update={"weight_hash": "0" * 32})
    with pytest.raises(BadPlan, match=plan.model.weight_hash):
        check_apply(softmax, plan.model_copy(update={"header": plan.header.model_copy(update={"model": other})}))
