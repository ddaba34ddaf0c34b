"""The expert map and the card: against counts made here, against what `inspect` gives, and on planted experts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.traces import make_identity, make_trace
from moeworks.errors import BadData
from moeworks.find import find
from moeworks.stats.balance import load
from moeworks.stats.coactivation import coactivation
from moeworks.stats.specialisation import specialisation
from moeworks.view.cards import expert_card
from moeworks.view.contexts import _apart as apart
from moeworks.view.expert_map import MAP_COLUMNS, expert_map
from moeworks.view.refusals import NotThere
from moeworks.where import Where

PLANT = {(2, 5): ("lang", "ru", 2.5)}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return make_trace(
        tmp_path_factory.mktemp("view") / "t", requests=40, rows_per_request=[30, 50], layers=(0, 2), experts=(8, 6),
        top_k=(2, 2), labels={"lang": ["fr", "ru"], "domain": ["a", "a", "b"], "name": [str(i) for i in range(99)]},
        planted=PLANT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores(trace):
    return find(trace, contrast="lang=ru", against="lang=fr", permutations=200, bootstrap=50)


def test_load_is_the_share_of_tokens_with_even_use_beside_it(trace) -> None:
    table = expert_map(trace)
    assert table.schema == MAP_COLUMNS
    assert table["value"].to_pylist() == load(trace)["rate"].to_pylist()
    assert table["chance"].to_pylist() == [2 / 8] * 8 + [2 / 6] * 6
    assert table["expert"].to_pylist() == [*range(8), *range(6)]
    assert set(table["passes"].to_pylist()) == {None}
    for row in table.to_pylist():
        assert row["low"] < row["value"] < row["high"]


def test_weight_is_the_mean_share_of_a_tokens_weight(trace) -> None:
    table = expert_map(trace, by="weight", where=Where(layer=(2,)))
    ids, weights = trace.ids(2), trace.weights(2).astype(float)
    share = [(weights / weights.sum(1, keepdims=True))[ids == e].sum() / len(trace) for e in range(6)]
    assert table["value"].to_pylist() == pytest.approx(share)
    assert table["chance"].to_pylist() == [1 / 6] * 6
    assert sum(table["value"].to_pylist()) == pytest.approx(1)


def test_a_map_of_one_value_counts_its_tokens_alone(trace) -> None:
    table = expert_map(trace, label="lang", value="ru")
    assert table["value"].to_pylist() == load(trace, where=Where.parse("lang=ru"))["rate"].to_pylist()
    assert table["value"].to_pylist() != expert_map(trace)["value"].to_pylist()


def test_specialisation_finds_the_plant_and_nothing_else(trace) -> None:
    table = expert_map(trace, by="specialisation", label="lang", value="ru")
    rows = {(row["layer"], row["expert"]): row for row in table.to_pylist()}
    assert [at for at, row in rows.items() if row["passes"]] == [(2, 5)]
    known = specialisation(trace, label="lang").to_pylist()
    best = next(row for row in known if (row["layer"], row["value"]) == (2, "ru"))
    assert best["expert"] == 5
    for name, column in (("log_ratio", "value"), ("chance", "chance"), ("low", "low"), ("high", "high")):
        assert rows[2, 5][column] == best[name]


def test_scores_are_shown_as_they_are(trace, scores) -> None:
    table = expert_map(trace, by="score", scores=scores)
    assert table["value"].to_pylist() == scores.column("score").tolist()
    assert table["passes"].to_pylist() == scores.column("passes").tolist()
    assert set(table["chance"].to_pylist()) == {0.0}
    assert (2, 5) in [(row["layer"], row["expert"]) for row in table.to_pylist() if row["passes"]]


def test_super_experts_are_marked_as_protected(trace, monkeypatch, tmp_path) -> None:
    from moeworks.plan.protected import SuperExpertRecord, remember

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not any(expert_map(trace)["protected"].to_pylist())
    remember(SuperExpertRecord(model="synthetic", weight_hash="w0", experts=("L2.E1",), settings={}))
    marked = expert_map(trace)
    assert [i for i, one in enumerate(marked["protected"].to_pylist()) if one] == [8 + 1]
    assert expert_card(trace, "L2.E1")["protected"]
    assert not expert_card(trace, "L2.E2")["protected"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "lode"}, "did you mean 'load'"),
        ({"by": "specialisation"}, "name both, as in lang and ru; labels here: domain, lang, name"),
        ({"label": "lang"}, "needs both"),
        ({"label": "lnag", "value": "ru"}, "did you mean 'lang'"),
        ({"label": "lang", "value": "xx"}, "no request has lang=xx"),
        ({"by": "score"}, "moeworks find"),
    ],
)
def test_what_a_map_cannot_be_of(trace, options, message) -> None:
    with pytest.raises(BadData, match=message):
        expert_map(trace, **options)


def test_scores_of_another_model_are_refused(trace, scores) -> None:
    other = scores.header.model_copy(update={"model": make_identity((0, 2), 8, 2)})
    with pytest.raises(BadData, match="not those of synthetic"):
        expert_map(trace, by="score", scores=type(scores)(scores.table, other))


def test_a_map_without_enough_documents_has_no_interval(tmp_path) -> None:
    few = make_trace(tmp_path / "t", requests=4)
    assert set(expert_map(few)["low"].to_pylist()) == {None}
    card = expert_card(few, "L0.E1")
    assert card["low"] is None
    json.dumps(card, allow_nan=False)


def test_a_card_says_when_its_expert_runs(trace) -> None:
    card = expert_card(trace, "L2.E5")
    row = expert_map(trace).slice(8 + 5, 1).to_pylist()[0]
    assert (card["load"], card["low"], card["high"], card["chance"]) == (row["value"], row["low"], row["high"], 2 / 6)
    assert card["command"].endswith("--expert L2.E5")
    json.dumps(card, allow_nan=False)


def test_contexts_have_the_largest_weights_of_their_requests(trace) -> None:
    found = expert_card(trace, "L2.E5", contexts=6)["contexts"]
    ids, weights, request = trace.ids(2), trace.weights(2), trace.rows().request
    mine = np.where(ids == 5, weights, 0).max(1)
    mine = mine / weights.sum(1)
    best = {int(r): float(mine[request == r].max()) for r in np.unique(request)}
    assert [one["weight"] for one in found] == pytest.approx(sorted(best.values(), reverse=True)[:6], rel=1e-6)
    assert len({one["request"] for one in found}) == 6
    for one in found:
        assert (request[one["row"]], trace.rows().token[one["row"]]) == (one["request"], one["id"])


def test_one_frequent_token_does_not_fill_the_contexts() -> None:
    request, token = np.array([0, 0, 1, 2, 3, 4, 5]), np.array([7, 8, 7, 7, 7, 9, 7])
    assert apart(request, token, 3).tolist() == [0, 2, 5]  # two of token 7, then another token
    assert apart(request, token, 5).tolist() == [0, 1, 2, 3, 5]  # then the best of what is left
    assert apart(request, token, 20).tolist() == list(range(7))


def test_rates_of_a_label_beside_the_rate_of_all(trace) -> None:
    card = expert_card(trace, "L2.E5")
    assert set(card["labels"]) == {"lang", "domain"}
    assert card["labels_left_out"] == ["name"]
    ran = (trace.ids(2) == 5).any(1)
    lang = trace.request_table().labels["lang"][trace.rows().request]
    for row in card["labels"]["lang"]:
        assert row["rate"] == pytest.approx(ran[lang == row["value"]].mean())
        assert row["chance"] == pytest.approx(ran.mean())
        assert row["tokens"] == (lang == row["value"]).sum()
        assert row["low"] <= row["rate"] <= row["high"]
    first, second = card["labels"]["lang"]
    assert (first["value"], second["value"]) == ("ru", "fr")
    assert first["low"] > first["chance"] > second["high"]  # the plant


def test_partners_are_those_of_the_coactivation_diagnostic(trace) -> None:
    known = coactivation(trace, where=Where(layer=(2,)), top=0).to_pylist()
    mine = [row for row in known if 5 in (row["first"], row["second"])]
    found = expert_card(trace, "L2.E5")["partners"]
    assert [one["address"] for one in found] == [
        f"L2.E{row['second'] if row['first'] == 5 else row['first']}" for row in mine
    ]
    assert [one["lift"] for one in found] == [row["lift"] for row in mine]
    assert [one["chance"] for one in found] == [row["chance"] for row in mine]


def test_one_expert_a_token_has_no_partners(tmp_path) -> None:
    assert expert_card(make_trace(tmp_path / "t", top_k=1), "L0.E1")["partners"] == []


def test_scores_on_a_card_and_whether_their_claim_replicates(trace, scores) -> None:
    card = expert_card(trace, "L2.E5", scores={"first": scores, "again": scores})
    assert set(card["scores"]) == {"first", "again"}
    assert card["scores"]["first"]["passes"]
    assert card["replicated"]["passing"] == ["first", "again"]
    assert card["replicated"]["direction"] == "more"
    assert card["replicated"]["survives"]
    assert expert_card(trace, "L0.E0", scores={"first": scores})["replicated"] is None

    column = scores.table.column_names.index("score")
    other = scores.table.set_column(column, "score", [[-one for one in scores.column("score")]])
    card = expert_card(trace, "L2.E5", scores={"first": scores, "against it": type(scores)(other, scores.header)})
    assert card["replicated"]["passing"] == ["first"]

    weak = scores.table.set_column(
        scores.table.column_names.index("passes"), "passes", [[False] * scores.table.num_rows]
    )
    card = expert_card(trace, "L2.E5", scores={"first": scores, "held out": type(scores)(weak, scores.header)})
    assert card["replicated"]["passing"] == ["first"]
    assert card["replicated"]["of"] == 2
    assert not card["replicated"]["survives"]


def test_the_claim_on_a_card_is_the_most_stable_one(trace, scores) -> None:
    """A claim about another label with a smaller q and a larger score, but steady in no resampling, does not win."""
    rare = scores.table
    for name, value in (("stability", 0.0), ("q", 1e-9), ("score", 9.0)):
        rare = rare.set_column(rare.column_names.index(name), name, [[value] * rare.num_rows])
    header = scores.header.model_copy(update={"contrast": {"lang": ["zh"]}})
    card = expert_card(trace, "L2.E5", scores={"rare": type(scores)(rare, header), "first": scores})
    assert card["scores"]["rare"]["passes"]
    assert card["replicated"]["passing"] == ["first"]
    assert card["replicated"]["survives"]


def test_a_model_that_is_at_hand_decodes_what_its_expert_points_to() -> None:
    pytest.importorskip("torch")
    from moeworks.address import Address
    from moeworks.engines.fake import FakeEngine, planted_model
    from moeworks.engines.transformers import TransformersEngine
    from moeworks.find.inside.decode import decode
    from moeworks.view.cards import _decoded

    plant = planted_model("single")
    engine, at = TransformersEngine(plant.model, plant.tokenizer), Address(*plant.planted[0])
    found, _ = _decoded(engine, at)
    router = next(row for row in found if row["vector"] == "router")
    assert router["tokens"] == decode(engine, [at], vectors=["router"], top=8)["text"].to_pylist()
    neurons = {row["vector"]: row for row in found if row["vector"] != "router"}
    assert len(neurons) == 8
    best = decode(engine, [at], vectors=["down"], top=1).sort_by([("score", "descending")]).slice(0, 8)
    assert set(neurons) == {f"N{n} down" for n in best["neuron"].to_pylist()}
    assert _decoded(FakeEngine(), at)[0] is None
    assert _decoded(None, at) == (None, "the model is not loaded")


def test_an_expert_that_is_not_there(trace) -> None:
    with pytest.raises(NotThere, match="layer 2 has experts 0 to 5"):
        expert_card(trace, "L2.E6")
    with pytest.raises(NotThere, match="no layer 1; layers recorded: 0, 2"):
        expert_card(trace, "L1.E0")
    with pytest.raises(BadData, match="not an expert address"):
        expert_card(trace, "E5")
