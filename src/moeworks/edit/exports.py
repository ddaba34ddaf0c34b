"""An edit plan in the files that other tools read: kept ids, pruned ids, ranked experts, settings for LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from moeworks.artefact import replace_file
from moeworks.edit.plan import EditPlan
from moeworks.errors import BadData, BadPlan, did_you_mean

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["ExportTo", "as_jsonl", "as_peft", "as_pruned_experts", "as_reap_json", "export_edit_plan"]

ExportTo = Literal["reap-json", "pruned-experts", "jsonl", "peft"]


def as_reap_json(plan: EditPlan) -> dict[str, Any]:
    """Return the ids that each layer keeps, with the counts that a config has to say.

    The keys are those of reports that community REAP scripts write beside a checkpoint (`retained_experts` by layer).
    llm-compressor's own report also lists retained ids; its layout could not be read and is not copied.

    Raises:
        BadPlan: the plan does more than drop experts.
    """
    _only_drops(plan)
    before, after = {cut.experts for cut in plan.layers}, set(plan.counts)
    return {
        "method": plan.method,
        "sparsity": round(1 - sum(plan.counts) / sum(cut.experts for cut in plan.layers), 6),
        "num_experts_original": before.pop() if len(before) == 1 else [cut.experts for cut in plan.layers],
        "num_experts_retained": after.pop() if len(after) == 1 else list(plan.counts),
        "retained_experts": {str(cut.layer): list(cut.keep) for cut in plan.layers},
    }


def as_pruned_experts(plan: EditPlan) -> dict[str, list[int]]:
    """Return the ids that each layer loses, by layer number: `pruned_experts.json` of REAP's merging and of AIMER.

    Layers that lose none are left out, as there.

    Raises:
        BadPlan: the plan does more than drop experts.
    """
    _only_drops(plan)
    return {str(cut.layer): list(cut.dropped) for cut in plan.layers if cut.dropped}


def as_jsonl(plan: EditPlan) -> str:
    """Return all experts of each layer, best first, one line a layer: `{"0": [106, 65, …]}`.

    The format of vllm-ascend's `expert_list_file` (pull request 12525), which keeps the first part of each line by its
    own ratio at load time.

    Raises:
        BadPlan: a layer has no order of all its experts.
    """
    unordered = [str(cut.layer) for cut in plan.layers if not cut.order]
    if unordered:
        raise BadPlan(f"the plan ranks no experts in layers {', '.join(unordered)}; plan by a score instead.")
    return "".join(json.dumps({str(cut.layer): list(cut.order)}) + "\n" for cut in plan.layers)


def as_peft(plan: EditPlan, engine: TransformersEngine, *, rank: int = 8, alpha: float = 32.0) -> dict[str, Any]:
    """Return settings in the manner of PEFT for low-rank adapters on the experts that the plan keeps.

    As `train.ceft_settings`: stacked experts are one parameter, which PEFT adapts as a whole; `experts` says which
    slices of `target_parameters` to train. Names and numbers are those of the model before the cut.

    Raises:
        BadPlan: the plan is for another model.
    """
    from moeworks.train.slices import expert_parts

    if plan.model is None or plan.model.shape != engine.identity.shape:
        raise BadPlan(f"the plan was not made for {engine.identity.name}; make it from statistics of this model.")
    names = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    routers = {router.layer: router for router in engine.routers}
    targets = [names[id(part.parameter)] for cut in plan.layers for part in expert_parts(routers[cut.layer], 0)]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_parameters": targets,
        "experts": {str(cut.layer): list(cut.keep) for cut in plan.layers},
    }


def export_edit_plan(plan: EditPlan, path: str | Path, *, to: str, engine: TransformersEngine | None = None) -> None:
    """Write the plan in another tool's format; `-` prints it.

    Args:
        plan: the plan.
        path: the file.
        to: `reap-json`, `pruned-experts`, `jsonl` or `peft`.
        engine: the model, for `peft`.

    Raises:
        BadPlan: the format cannot say what the plan does.
    """
    if to not in get_args(ExportTo):
        raise BadData(f"there is no export to '{to}'; {did_you_mean(to, get_args(ExportTo))}")
    if to == "peft":
        if engine is None:
            raise BadData("settings for PEFT name the model's parameters; give the model too (--model).")
        text = _json(as_peft(plan, engine))
    elif to == "jsonl":
        text = as_jsonl(plan)
    else:
        makers: dict[str, Callable[[EditPlan], Any]] = {"reap-json": as_reap_json, "pruned-experts": as_pruned_experts}
        text = _json(makers[to](plan))
    if str(path) == "-":
        print(text, end="")
        return
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _only_drops(plan: EditPlan) -> None:
    if not plan.pure_cut:
        raise BadPlan(
            f"this plan ({plan.method}, transform '{plan.transform}') does more than drop experts, which a list of ids "
            "cannot say; apply it with `moeworks edit apply`."
        )
