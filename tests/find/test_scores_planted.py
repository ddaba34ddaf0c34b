"""Every method that reads a trace, on the planted model and on one where nothing is planted."""

import pytest

from moeworks.address import Address
from moeworks.engines.fake import FakeEngine, null_examples, planted_examples
from moeworks.errors import BadData, MoeworksError
from moeworks.find import Scores, find_method
from moeworks.plan import steer

SIDES = {"contrast": "side=contrast", "against": "side=against"}
LABEL = {"label": "side", "target": "contrast"}
SHOUT = ",".join(map(str, range(65, 91)))  # bytes of capitals
ASKED = {
    "affinity": SIDES,
    "dominance": LABEL,
    "functional_map": SIDES,
    "gate_profile": SIDES,
    "multilingual": LABEL | {"base": "against", "tau": 0.5},
    "npmi": SIDES,
    "pearson": {"label": "loud"},
    "risk_difference": SIDES,
    "stability_selection": SIDES,
}


def record(engine, examples, path):
    loud = {"contrast": "1", "against": "0"}
    marked = [e.model_copy(update={"labels": e.labels | {"loud": loud[e.labels["side"]]}}) for e in examples]
    return engine.record(marked, path, logits=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    engine = FakeEngine("single")
    return engine, record(engine, planted_examples(80), tmp_path_factory.mktemp("planted") / "t")


@pytest.fixture(scope="module")
def null(tmp_path_factory):
    return record(FakeEngine("none"), null_examples(80), tmp_path_factory.mktemp("null") / "t")


@pytest.mark.parametrize("method", ASKED)
def test_the_plant_is_the_strongest_and_passes(planted, method, tmp_path):
    engine, trace = planted
    scores = find_method(trace, method=method, permutations=200, seed=1, **ASKED[method])
    (best,) = scores.top(1, sign=+1, passing=True).to_pylist()
    assert Address(best["layer"], best["expert"]) == engine.planted[0]
    assert Scores.load(scores.save(tmp_path / "s.arrow")).header == scores.header
    plan = steer(scores, demote=1)
    assert plan.operations[0].experts == engine.planted


@pytest.mark.parametrize("method", ASKED)
def test_nothing_is_claimed_where_nothing_is_planted(null, method):
    scores = find_method(null, method=method, permutations=200, seed=1, **ASKED[method])
    assert not scores.column("passes").any()
    assert "No expert passes." in scores.summary()


def test_other_ways_to_ask(planted):
    """The functional map by label, the profile and the affinity of one side alone: the plant leads there too."""
    engine, trace = planted
    for method, asked in (
        ("functional_map", LABEL),
        ("gate_profile", {"contrast": "side=contrast"}),
        ("affinity", {"contrast": "side=contrast"}),
    ):
        (best,) = find_method(trace, method=method, permutations=50, **asked).top(1).to_pylist()
        assert Address(best["layer"], best["expert"]) == engine.planted[0]


def test_markers_move_within_documents(planted):
    """All letters of a shouted text are capitals, so that the plant, which runs throughout, is no marker's expert."""
    engine, trace = planted
    scores = find_method(trace, method="npmi", markers={f"token={SHOUT}": 1}, permutations=100)
    (plant,) = [r for r in scores.table.to_pylist() if Address(r["layer"], r["expert"]) == engine.planted[0]]
    assert not plant["passes"]
    assert plant["score"] > 0.5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "dominanse", **SIDES}, "did you mean 'dominance'"),
        ({"method": "dominance", **SIDES}, "'dominance' needs a label"),
        ({"method": "risk_difference"}, r"needs two sides \(contrast and against\)"),
        ({"method": "risk_difference", "contrast": "side=contrast"}, r"what to compare with \(against\)"),
        ({"method": "stability_selection", "contrast": "side=contrast"}, r"what to compare with \(against\)"),
        ({"method": "risk_difference", "label": "side"}, "compares sides, no label"),
        ({"method": "npmi", "label": "side"}, "compares sides, no label"),
        ({"method": "pearson"}, "a label whose values are numbers"),
        ({"method": "npmi", "markers": {"token=65": 1}, **SIDES}, "needs markers or two sides"),
        ({"method": "risk_difference", "target": "contrast", **SIDES}, "target is a value of a label"),
        ({"method": "npmi", "markers": {"token=65": 1}, "match": "token"}, "'npmi' does not take 'match'"),
        ({"method": "dominance", "label": "side", "tau": 1}, "'dominance' does not take 'tau'"),
        ({"method": "pearson", "label": "loud", "ratio": 1}, "'pearson' does not take 'ratio'"),
    ],
)
def test_one_clear_sentence(planted, asked, message):
    with pytest.raises(MoeworksError, match=message) as raised:
        find_method(planted[1], **asked)
    assert isinstance(raised.value, BadData)
