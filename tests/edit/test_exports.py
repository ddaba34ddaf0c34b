"""Exports of an edit plan against documents written by hand, and the commands that plan and export."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from helpers.cuts import layer_of, model_of, shape_of
from moeworks.cli import main
from moeworks.edit.exports import export_edit_plan
from moeworks.edit.files import load_edit_plan, save_edit_plan
from moeworks.edit.plan import EditPlan
from moeworks.edit.planning import plan_edit
from moeworks.edit.replan import random_plans, recut
from moeworks.edit.statistics_file import save_statistics
from moeworks.errors import BadData, BadPlan

MODEL = model_of(*(shape_of(layer, experts=4, top_k=1, renormalise=True) for layer in (1, 3)))
LAYERS = [
    layer_of(layer, count=np.ones(4), gated_norm=row, gate=[1, 2, 3, 4], peak=[1, 1, 1, 1], logit_gram=np.eye(4))
    for layer, row in ((1, [4, 1, 3, 2]), (3, [1, 2, 3, 4]))
]


def planned(**asked: Any) -> EditPlan:
    return plan_edit(LAYERS, identity=MODEL, **{"keep": 0.5, "protect": "none", **asked})


def exported(plan: EditPlan, tmp_path, to: str) -> str:
    export_edit_plan(plan, tmp_path / "out", to=to)
    return (tmp_path / "out").read_text()


def test_kept_and_pruned_ids(tmp_path) -> None:
    assert json.loads(exported(planned(), tmp_path, "reap-json")) == {
        "method": "reap",
        "sparsity": 0.5,
        "num_experts_original": 4,
        "num_experts_retained": 2,
        "retained_experts": {"1": [0, 2], "3": [2, 3]},
    }
    assert json.loads(exported(planned(), tmp_path, "pruned-experts")) == {"1": [1, 3], "3": [0, 1]}
    uneven = planned(budget="trapezoid", uneven=True, budget_options={"slope": 0.5})
    assert json.loads(exported(uneven, tmp_path, "reap-json"))["num_experts_retained"] == [1, 3]


def test_ranked_experts_one_line_a_layer(tmp_path) -> None:
    assert exported(planned(), tmp_path, "jsonl") == '{"1": [0, 2, 3, 1]}\n{"3": [3, 2, 1, 0]}\n'


def test_what_a_list_of_ids_cannot_say_is_refused(tmp_path) -> None:
    merged = planned(method="m_smoe")
    for to in ("reap-json", "pruned-experts"):
        with pytest.raises(BadPlan, match="more than drop"):
            export_edit_plan(merged, tmp_path / "out", to=to)
    unordered = planned().model_copy(
        update={"layers": tuple(cut.model_copy(update={"order": ()}) for cut in planned().layers)}
    )
    with pytest.raises(BadPlan, match="ranks no experts in layers 1, 3"):
        export_edit_plan(unordered, tmp_path / "out", to="jsonl")
    with pytest.raises(BadData, match="--model"):
        export_edit_plan(planned(), tmp_path / "out", to="peft")
    with pytest.raises(BadData, match="did you mean 'jsonl'"):
        export_edit_plan(planned(), tmp_path / "out", to="json")
    assert not list(tmp_path.iterdir())


def test_peft_settings_name_real_parameters() -> None:
    from helpers.models import tiny_engine
    from moeworks.edit.exports import as_peft

    engine = tiny_engine("softmax")
    layers = [
        layer_of(shape.layer, count=np.ones(shape.experts), gated_norm=np.arange(float(shape.experts)))
        for shape in engine.identity.layers
    ]
    plan = plan_edit(layers, identity=engine.identity, keep=0.5, protect="none")
    settings = as_peft(plan, engine, rank=4)
    parameters = dict(engine.model.named_parameters())
    assert settings["target_parameters"]
    assert all(parameters[name].shape[0] == plan.layers[0].experts for name in settings["target_parameters"])
    assert settings["experts"] == {str(cut.layer): list(cut.keep) for cut in plan.layers}
    assert settings["r"] == 4
    with pytest.raises(BadPlan, match="was not made for"):
        as_peft(planned(), engine)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_statistics(
        tmp_path / "stats", LAYERS, model=MODEL, groups=("cheap", "router"), texts=3, text_hash="hash-of-texts"
    )
    return tmp_path


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["edit", *map(str, words)])
    return int(left.value.code or 0)


def test_plan_writes_what_the_function_makes(folder, capsys) -> None:
    cut = folder / "cut.json"
    assert run("plan", folder / "stats", "--keep", 0.75, "--protect", "none", "-o", cut) == 0
    said = capsys.readouterr().out
    plan = load_edit_plan(cut)
    assert plan.layers == planned(keep=0.75).layers
    assert plan.header.text_hash == "hash-of-texts"
    assert plan.statistics
    lines = [line.split() for line in said.splitlines()]
    assert ["1", "4", "3", "1", "20.0%"] in lines  # expert 1 had 2 of 10
    assert ["3", "4", "3", "1", "10.0%"] in lines


def test_a_small_share_asks_for_the_dose_curve(folder, capsys) -> None:
    cut = folder / "cut.json"
    quarter = ("plan", folder / "stats", "--keep", 0.25, "--protect", "none", "-o", cut)
    assert run(*quarter) == 2
    assert "moeworks edit dose" in capsys.readouterr().err
    assert not cut.exists()
    assert run(*quarter, "--yes-i-measured") == 0
    assert run("plan", folder / "stats", "--keep", 0.5, "--protect", "none", "-o", cut) == 0
    measured = load_edit_plan(cut).model_copy(update={"evidence": {"dose": {"chosen": 0.5}}})
    save_edit_plan(measured, folder / "measured.json")
    assert run("plan", "--recut", folder / "measured.json", "--keep", 0.25, "-o", folder / "quarter.json") == 0
    assert load_edit_plan(folder / "quarter.json").layers == recut(measured, keep=0.25).layers


def test_options_reach_method_and_budget(folder, capsys) -> None:
    cut = folder / "cut.json"
    words = ("--option", "aggregate=mean", "--budget", "trapezoid", "--budget-option", "slope=-0.5", "--uneven")
    assert run("plan", folder / "stats", "--method", "ean", "-o", cut) == 2  # norm was not collected
    assert "norm" in capsys.readouterr().err
    assert run("plan", folder / "stats", "--method", "random", "--seed", 3, *words[2:], "-o", cut) == 0
    plan = load_edit_plan(cut)
    assert plan.options == {"seed": 3}
    assert plan.budget_options == {"slope": -0.5, "uneven": True}
    assert plan.counts == (4, 2)
    assert run("plan", folder / "stats", *words[:2], "-o", cut) == 2
    assert "'reap' has no option 'aggregate'" in capsys.readouterr().err
    assert run("plan", folder / "stats", "--layers", "1-x", "-o", cut) == 2
    assert run("plan", folder / "stats") == 2
    assert "-o FILE" in capsys.readouterr().err


def test_random_controls_from_the_command(folder) -> None:
    cut = folder / "random.json"
    assert run("plan", folder / "stats", "--protect", "none", "--random", 1, "-o", cut) == 0
    made = load_edit_plan(cut)
    assert made.method == "random"
    assert made.layers == random_plans(planned(keep=0.75), seeds=(1,))[0].layers


def test_json_and_list(folder, capsys) -> None:
    assert run("plan", folder / "stats", "--protect", "none", "--json", "-o", folder / "cut.json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"][0] == {"layer": 1, "experts": 4, "kept": 3, "dropped": 1, "mass": pytest.approx(0.2)}
    assert run("plan", "--list", "--json") == 0
    names = {entry["name"] for entry in json.loads(capsys.readouterr().out)["methods"]}
    assert {"reap", "naee", "m_smoe", "camera"} <= names


def test_export_command(folder, capsys) -> None:
    save_edit_plan(planned(), folder / "cut.json")
    assert run("export", folder / "cut.json", "--to", "jsonl", "-o", "-") == 0
    assert capsys.readouterr().out == '{"1": [0, 2, 3, 1]}\n{"3": [3, 2, 1, 0]}\n'
    assert run("export", folder / "cut.json", "--to", "reap-json", "-o", folder / "kept.json") == 0
    assert json.loads((folder / "kept.json").read_text())["retained_experts"]["3"] == [2, 3]


def test_methods_that_read_weights_say_so(folder, capsys) -> None:
    assert run("plan", folder / "stats", "--method", "aimer", "-o", folder / "cut.json") == 2
    assert "--model" in capsys.readouterr().err
    assert run("plan", "--method", "reap", "-o", folder / "cut.json") == 2
    assert "moeworks edit score" in capsys.readouterr().err


def test_aimer_on_the_lab_model_without_text(folder) -> None:
    cut = folder / "cut.json"
    assert run("plan", "--method", "aimer", "--model", "lab", "-o", cut) == 0
    plan = load_edit_plan(cut)
    assert all(len(cut.keep) * 4 == cut.experts * 3 for cut in plan.layers)
    assert plan.model is not None
    assert plan.model.layers[0].contract is not None


def test_the_cure_that_is_named_works(tmp_path, capsys) -> None:
    """A plan, its dose curve written into it, and then the same ranking at a share that needs one."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"The tower {n} stands on a hill.", "document": str(n)}) + "\n" for n in range(12))
    )
    stats, plan, small = tmp_path / "stats", tmp_path / "cut.json", tmp_path / "small.json"
    assert run("score", "lab", texts, "-o", stats, "--no-check") == 0
    assert run("plan", stats, "-o", plan) == 0
    assert run("plan", "--recut", plan, "--keep", 0.25, "-o", small) == 2
    assert "--write-evidence" in capsys.readouterr().err
    assert run("dose", "lab", "--write-evidence") == 2
    assert (
        run("dose", "lab", "--plan", plan, "--data", texts, "--keep", "1,0.25", "--controls", 0, "--write-evidence")
        == 0
    )
    assert load_edit_plan(plan).evidence["dose"]["doses"]
    assert run("plan", "--recut", plan, "--keep", 0.25, "-o", small) == 0
    assert load_edit_plan(small).counts == (8,) * 6


def test_options_of_a_transform_reach_the_plan(folder) -> None:
    cut = folder / "cut.json"
    asked = ("plan", folder / "stats", "--protect", "none", "-o", cut, "--transform-option")
    assert run(*asked, "nothing=1") == 2
    merging = ("--method", "m_smoe", "--keep", 0.5)
    assert run(*asked, "router=fitted", *merging) == 0
    assert load_edit_plan(cut).transform_options == {"router": "fitted"}
