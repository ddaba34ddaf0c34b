"""Plans survive the disk, are refused with all problems at once, and are hashed by what they do."""

from __future__ import annotations

import io
import json

import jsonschema
import pytest

from helpers.plans import at, places, plan, small
from moeworks.artefact import json_schema
from moeworks.errors import BadPlan, MoeworksError
from moeworks.plan import (
    Add,
    Demote,
    Mask,
    Plan,
    Promote,
    Provenance,
    Replay,
    Scale,
    TopK,
    load_plan,
    plan_hash,
    save_plan,
)
from moeworks.plan.evidence import Control, Damage, Evidence, Interval
from moeworks.plan.files import parse_plan
from moeworks.where import Where

MODEL = small(layers=2, groups=2, score="sigmoid", bias=True)
EVIDENCE = Evidence(
    probe="p", metric="m", items=3, documents=3, before=0.5, after=0.1, expected="down", verdict="works",
    effect=Interval(value=-0.4, low=-0.5, high=-0.3), controls=(Control(name="random", seed=1, effect=0.0),),
    excess=Interval(value=-0.4, low=-0.5, high=-0.3),
    damage=Damage(divergence=0.01, perplexity_before={"fr": 3.0}, perplexity_after={"fr": 3.1}),
)  # fmt: skip
FULL = plan(
    MODEL,
    Promote(experts=at("L0.E1")),
    Demote(experts=at("L0.E2,L1.E3"), margin=0.5),
    Add(experts=at("L0.E4"), strength=-0.5, unit="spread"),
    Mask(experts=at("L1.E1"), refill=False, renormalise=True, where=Where.parse("lang=fr !token=3")),
    Scale(experts=at("L1.E2"), factor=64.0),
    TopK(k=1, where=Where(layer=(0,))),
    Replay(trace="some/folder", where=Where(position=(-4, None))),
    description='a "plan" in ünïcode',
    where=Where(phase=("prompt",)),
    protected=at("L1.E7"),
    weakens_safety=True,
    provenance=Provenance(method="risk_difference", options={"alpha": 0.05, "layers": [0, 1], "none": None}),
    evidence=EVIDENCE,
)


def test_round_trip(tmp_path, monkeypatch, capsys):
    save_plan(FULL, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    save_plan(FULL, "-")
    text = capsys.readouterr().out
    assert text == (tmp_path / "plan.json").read_text("utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert load_plan("-") == FULL


def test_files_are_good_to_review(tmp_path):
    """Operations before the header, short values on one line, one line for each of many experts."""
    many = plan(MODEL, Demote(experts=at("L0.E0-5,L1.E0-5")))
    save_plan(many, tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert max(map(len, lines)) < 900
    assert lines[2] == '  "operations": ['
    assert lines[-2] == "  }"
    assert '  "header": {' in lines
    assert sum('"contract"' in line for line in lines) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["header"].update(format="moeworks.scores"), "format 'moeworks.scores', not 'moeworks.plan'"),
        (lambda d: d["header"].update(version=7), "a plan of version 7; moeworks .* reads version 1"),
        (lambda d: d.pop("header"), "an object with a header"),
        (lambda d: d["operations"][0].update(op="explode"), "explode"),
        (lambda d: d["operations"][0].update(experts=["layer3"]), r"operations\.0.*'layer3' is not an expert"),
        (lambda d: d["operations"][0].update(experts=[]), "at least 1"),
        (lambda d: d["operations"][2].update(strength=float("nan")), "finite"),
        (lambda d: d["where"].update(phase=[]), "selects nothing"),
        (lambda d: d.update(surprise=1), "surprise"),
    ],
)
def test_malformed_plans_are_refused(tmp_path, change, message):
    document = json.loads(FULL.model_dump_json())
    change(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(BadPlan, match=message) as caught:
        load_plan(tmp_path / "plan.json")
    assert "plan.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_at_once(tmp_path):
    document = json.loads(FULL.model_dump_json())
    document["operations"][1]["margin"] = -1
    document["operations"][3]["experts"] = ["L1.E1", "E1"]
    document["operations"][4]["factor"] = "much"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(BadPlan, match=r"operations\.1.*operations\.3.*operations\.4"):
        load_plan(tmp_path / "plan.json")


def test_what_is_no_plan_at_all(tmp_path):
    with pytest.raises(MoeworksError, match=r"cannot read .*No such file"):
        load_plan(tmp_path / "none.json")
    for text, message in (("{", "not JSON: .* line 1, column 2"), ("[]", "an object with a header")):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(BadPlan, match=message):
            load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadPlan, match="not UTF-8"):
        load_plan(tmp_path / "plan.json")


def test_nothing_is_written_that_could_not_be_read_back(tmp_path):
    save_plan(FULL, tmp_path / "plan.json")
    broken = FULL.model_copy(update={"provenance": Provenance(options={"limit": float("nan")})})
    with pytest.raises(BadPlan):
        save_plan(broken, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == FULL


def test_the_hash_is_of_what_a_plan_does():
    same = FULL.model_copy(update={"evidence": None, "description": "", "provenance": Provenance()})
    assert plan_hash(same) == plan_hash(FULL)
    changes = [
        {"operations": FULL.operations[1:]},
        {"where": Where()},
        {"protected": ()},
        {"operations": (FULL.operations[0].model_copy(update={"margin": 0.02}), *FULL.operations[1:])},
    ]
    assert len({plan_hash(FULL.model_copy(update=change)) for change in changes} | {plan_hash(FULL)}) == 5


def test_saved_plans_fit_the_json_schema(tmp_path):
    """Against the `jsonschema` package, an outside implementation of the standard."""
    schema = json_schema(Plan)
    jsonschema.Draft202012Validator.check_schema(schema)
    save_plan(FULL, tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    jsonschema.validate(document, schema)
    document["operations"][0]["op"] = "explode"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("wrong", [None, True, 0, -1, 10**30, 1e308, "", "x", [], [1], [[]], {}, {"a": 1}], ids=repr)
def test_anything_anywhere_is_a_plan_or_is_refused_in_words(wrong):
    """Each value of a full plan in turn is replaced; nothing but a refusal of ours may come out."""
    text, refused = FULL.model_dump_json(), 0
    for path in places(json.loads(text)):
        document = inner = json.loads(text)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        try:
            plan_hash(parse_plan(json.dumps(document), "it"))
        except BadPlan:
            refused += 1
    assert refused
