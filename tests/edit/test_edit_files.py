"""Edit plans on disk: round trip, layout, hash, and every problem of a file at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from helpers.cuts import layer_of, model_of, shape_of
from helpers.plans import places
from moeworks.edit.files import edit_plan_hash, load_edit_plan, save_edit_plan
from moeworks.edit.plan import EditPlan
from moeworks.edit.planning import plan_edit
from moeworks.edit.replan import recut
from moeworks.errors import BadPlan, MoeworksError
from moeworks.plan import empty_plan, save_plan

MODEL = model_of(*(shape_of(layer, experts=8, top_k=2, renormalise=True) for layer in (1, 2)))


def planned(method: str = "reap", **asked: Any) -> EditPlan:
    arrays = {
        "gated_norm": np.arange(8.0),
        "logit_gram": np.eye(8),
        "neuron_projection": np.arange(32.0).reshape(8, 4),
    }
    layers = [layer_of(layer, count=np.ones(8), **arrays) for layer in (1, 2)]
    return plan_edit(layers, identity=MODEL, **{"keep": 0.5, "protect": "L1.E0", "method": method, **asked})


@pytest.mark.parametrize("method", ["reap", "m_smoe", "enp"])
def test_round_trip(method: str, tmp_path) -> None:
    plan = planned(method)
    save_edit_plan(plan, tmp_path / "cut.json")
    assert load_edit_plan(tmp_path / "cut.json") == plan


def test_the_file_is_good_to_review(tmp_path) -> None:
    save_edit_plan(planned(), tmp_path / "cut.json")
    text = (tmp_path / "cut.json").read_text()
    document = json.loads(text)
    assert list(document)[-1] == "header"
    assert document["protected"] == ["L1.E0"]
    assert any('"keep": [0, 5, 6, 7]' in line for line in text.splitlines())  # a list is a line
    assert all("groups" not in layer and "neurons" not in layer for layer in document["layers"])


def test_a_plan_is_printed(capsys) -> None:
    save_edit_plan(planned(), "-")
    assert json.loads(capsys.readouterr().out)["method"] == "reap"


def test_the_hash_is_of_what_is_done() -> None:
    plan = planned()
    same = plan.model_copy(update={"description": "words", "statistics": "x", "evidence": {"dose": 1}})
    assert edit_plan_hash(same) == edit_plan_hash(plan)
    reordered = tuple(cut.model_copy(update={"order": cut.order[::-1]}) for cut in plan.layers)
    assert edit_plan_hash(plan.model_copy(update={"layers": reordered})) == edit_plan_hash(plan)
    for other in (
        recut(plan, keep=0.75),
        plan.model_copy(update={"transform": "cut_rescaled"}),
        plan.model_copy(update={"extra_layers": "drop"}),
    ):
        assert edit_plan_hash(other) != edit_plan_hash(plan)


def written(tmp_path, change: Any) -> str:
    save_edit_plan(planned(), tmp_path / "cut.json")
    document = json.loads((tmp_path / "cut.json").read_text())
    change(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(BadPlan) as caught:
        load_edit_plan(tmp_path / "bad.json")
    return str(caught.value)


def test_all_problems_are_named_at_once(tmp_path) -> None:
    def change(document: Any) -> None:
        document["layers"][0]["keep"] = [5, 0]
        document["layers"][1]["order"] = [0, 1]
        document["keep"] = 2
        document["colour"] = "red"

    message = written(tmp_path, change)
    for part in ("keep lists experts from 0 to 7", "order lists each of the 8", "less than or equal to 1", "colour"):
        assert part in message


def test_protected_experts_cannot_be_edited_away(tmp_path) -> None:
    message = written(tmp_path, lambda document: document["layers"][0].update(keep=[4, 5, 6, 7]))
    assert "protected experts are not kept: L1.E0" in message


def test_other_files_are_told_apart(tmp_path) -> None:
    assert "version 9" in written(tmp_path, lambda document: document["header"].update(version=9))
    assert "format 'x'" in written(tmp_path, lambda document: document["header"].update(format="x"))
    assert "with a header" in written(tmp_path, lambda document: document.pop("header"))
    save_plan(empty_plan(MODEL), tmp_path / "steer.json")
    with pytest.raises(BadPlan, match="steers a model"):
        load_edit_plan(tmp_path / "steer.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(BadPlan, match="line 1, column 2"):
        load_edit_plan(tmp_path / "text.json")
    with pytest.raises(MoeworksError, match="cannot read"):
        load_edit_plan(tmp_path / "nothing.json")


@pytest.mark.parametrize("wrong", [None, True, 0, -1, 10**30, 1e308, "", "x", [], [1], [[]], {}, {"a": 1}], ids=repr)
def test_anything_anywhere_is_a_plan_or_is_refused_in_words(wrong: Any, tmp_path) -> None:
    """Each value of a real plan in turn is replaced; nothing but a refusal of ours may come out."""
    save_edit_plan(planned(), tmp_path / "cut.json")
    text, refused = (tmp_path / "cut.json").read_text(), 0
    for path in places(json.loads(text)):
        document = inner = json.loads(text)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        (tmp_path / "wrong.json").write_text(json.dumps(document))
        try:
            edit_plan_hash(load_edit_plan(tmp_path / "wrong.json"))
        except BadPlan:
            refused += 1
    assert refused


def test_what_does_not_survive_is_refused_before_anything_is_written(tmp_path) -> None:
    plan = planned().model_copy(update={"options": {"pair": (1, 2)}})
    with pytest.raises(BadPlan, match="do not survive"):
        save_edit_plan(plan, tmp_path / "cut.json")
    assert not list(tmp_path.iterdir())


def test_the_schema_is_registered() -> None:
    from moeworks.schemas import json_schema_of

    assert "transform" in json_schema_of("edit_plan")["properties"]
