"""The league: cells against known truth, nothing skipped silently, nothing done twice, losers shown losing."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from moeworks.address import Address
from moeworks.bench import bench_detect, bench_steer, cases, load_league, methods, run, table
from moeworks.bench.cases import SIDE, SIZES, Truth, cases_of
from moeworks.bench.detection import judged
from moeworks.bench.page import page, save_page
from moeworks.bench.reading import _more_than_nominal, read_detection, read_steering
from moeworks.bench.schema import DetectCell, SteerCell
from moeworks.cli import main
from moeworks.engines.fake import FakeEngine
from moeworks.errors import BadData
from moeworks.find import SCORES, Scores, ScoresHeader
from moeworks.find.artefact import COLUMNS
from moeworks.find.inside import MODEL_SCORES
from moeworks.plan.evidence import Interval

SMALL = replace(
    SIZES["quick"], seeds=1, null_seeds=2, documents=60, planted_items=8, planted_neutral=2, permutations=200,
    bootstrap=20, controls=3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "quick", SMALL)


def cell(cells, method, probe, seed=0):
    (found,) = [c for c in cells if (c.method, c.probe, c.seed) == (method, probe, seed)]
    return found


def scores_of(rows, null="labels"):
    """Scores of (layer, expert, score, passes)."""
    layer, expert, score, passes = zip(*rows, strict=True)
    none = np.full(len(rows), np.nan)
    given = {"layer": layer, "expert": expert, "score": score, "passes": passes}
    columns = [pa.array(given.get(name, none), COLUMNS.field(name).type) for name in COLUMNS.names]
    header = ScoresHeader(
        moeworks="0", contrast="a", against="b", method="m", aggregate="micro", documents=(9, 9), pairs=0,
        tokens=(9, 9), null=null, permutations=1, drawn=1, exhaustive=False, smallest_p=0.1, alpha=0.05, bootstrap=0,
        top=2,
    )  # fmt: skip
    return Scores(pa.table(columns, schema=COLUMNS), header)


def test_claims_are_held_against_the_truth():
    """By hand: three experts pass upwards, one of them is sought; one passes downwards; the strongest does not pass."""
    (case, *_) = cases_of("fake", SMALL, probes=["pair"])
    truth = Truth(acting=(Address(0, 1), Address(2, 3)), neurons=(), confounded=(Address(1, 1),))
    rows = [(0, 0, 0.9, False), (0, 1, 0.5, True), (1, 1, 0.4, True), (1, 2, 0.2, True), (2, 3, -0.1, True)]
    blank = DetectCell(method="m", model="fake", probe="pair", kind="planted", seed=0, budget=2)
    found = judged(blank, scores_of(rows), replace(case, truth=truth, budget=2))
    assert found.claims == ("L0.E1", "L1.E1", "L1.E2")
    assert (found.hits, found.other_claims) == (1, 1)
    assert found.top == ("L0.E0", "L0.E1")
    assert found.hits_in_top == 1
    assert table.precision(found) == pytest.approx(1 / 3)
    assert table.recall(found) == pytest.approx(1 / 2)
    assert set(found.claims) & set(found.confounded) == {"L1.E1"}


def test_detection_on_planted_models(tmp_path):
    """Expected: the plant, nothing on nulls, and a reason for what an engine without insides cannot serve."""
    asked = ["risk_difference", "dominance", "pearson", "activity"]
    league = bench_detect(tmp_path, models=["fake"], methods=asked, probes=["single", "tok", "null"])
    for method in ("risk_difference", "dominance", "pearson", "risk_difference, macro"):
        found = cell(league.detect, method, "single")
        assert found.claims == found.sought == found.top
        nulls = [bool(c.claims) for c in league.detect if c.method == method and c.kind == "null"]
        assert len(nulls) == 4
        assert not _more_than_nominal(sum(nulls), len(nulls))
    refused = cell(league.detect, "activity", "single")
    assert "fake" in refused.refused
    assert not refused.claims
    token = cell(league.detect, "risk_difference", "token")
    assert set(token.claims) == set(token.confounded)
    assert not cell(league.detect, "risk_difference, tokens matched", "token").claims
    assert league == load_league(tmp_path / "league.json")
    text = page(league)
    assert "`activity`, all probes:" in text
    assert refused.refused in text


def test_what_is_done_is_read_and_an_interruption_loses_nothing(tmp_path, monkeypatch):
    arguments = {"models": ["fake"], "methods": ["risk_difference"], "probes": ["single", "pair"]}

    def interrupt(what, done, total):
        assert total == 10
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_detect(tmp_path / "one", progress=interrupt, **arguments)
    assert not (tmp_path / "one" / "league.json").exists()
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"scores"}
    kept = set((tmp_path / "one" / "scores").glob("*.arrow"))
    assert len(kept) == 7
    scored = []
    whole = methods.score
    monkeypatch.setattr("moeworks.bench.detection.score", lambda d, *a: scored.append(d.name) or whole(d, *a))
    league = bench_detect(tmp_path / "one", **arguments)
    assert len(scored) == 3
    bench_detect(tmp_path / "one", **arguments)
    assert len(scored) == 3
    fresh = bench_detect(tmp_path / "two", **arguments)
    plain = [[c.model_copy(update={"seconds": 0}) for c in found.detect] for found in (league, fresh)]
    assert plain[0] == plain[1]
    bench_detect(tmp_path / "one", resume=False, **arguments)
    assert len(scored) == 3 + 10 + 10
    monkeypatch.setitem(SIZES, "quick", replace(SMALL, permutations=100))
    bench_detect(tmp_path / "one", **arguments)
    assert len(scored) == 3 + 10 + 10 + 10


def test_new_methods_appear_and_none_is_skipped(monkeypatch):
    """A score without options is called as it is; one that needs more than a probe has says so."""
    monkeypatch.setitem(SCORES._functions, "mine", lambda contrast, against: contrast.rates - against.rates)
    monkeypatch.setitem(MODEL_SCORES._functions, "theirs", lambda engine, probe, *, split, seed, judge: None)
    known = {detector.name: detector for detector in methods.detectors()}
    assert known["mine"].way == "sides"
    assert not known["mine"].refused
    assert "judge" in known["theirs"].refused
    names = [steerer.name for steerer in methods.steerers()]
    assert {"mine", "theirs", "mote_off", "rice", "multilingual_soft, up", "multilingual_soft, down"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("model", "probe", "label"), [("fake", "topic", "topic"), ("lab", "language/fr", "domain")])
def test_the_label_of_topics_is_the_one_that_there_is(model, probe, label, monkeypatch):
    asked = []
    monkeypatch.setattr(methods, "find_method", lambda trace, **options: asked.append(options["within"]))
    within = next(d for d in methods.detectors() if d.name.endswith("within topics"))
    methods.score(within, next(cases_of(model, SMALL, probes=[probe])), None, object(), SMALL)
    assert asked == [label]


def upside_down(contrast, against):
    return against.rates - contrast.rates


def test_steering_shows_what_works_and_what_loses(tmp_path, monkeypatch):
    """Expected by construction: turning the plant down works, the experts of the other side lose to random ones, and
    nothing works where no expert carries the behaviour."""
    monkeypatch.setitem(SCORES._functions, "upside_down", upside_down)
    league = bench_steer(
        tmp_path, models=["fake"], methods=["risk_difference", "upside", "mote_off", "affinity", "activity"],
        probes=["single", "residual"],
    )  # fmt: skip
    good = cell(league.steer, "risk_difference", "single")
    assert good.verdict == "works"
    assert good.turned == tuple(map(str, FakeEngine("single").planted))
    assert good.effect.value < -10
    assert len(good.random) == 3
    assert table.times_random(good) > 10
    assert good.active == good.active_before == 8
    assert cell(league.steer, "mote_off", "single").active < 8
    bad = cell(league.steer, "upside_down", "single")
    assert bad.verdict != "works"
    assert (table.times_random(bad) or 0) < 1
    assert "fake" in cell(league.steer, "activity", "single").refused
    assert not any(c.verdict == "works" for c in league.steer if c.probe == "residual")
    told = read_steering(league.steer, model="`fake`")
    working = next(line for line in told.splitlines() if line.endswith("work on `single`."))
    assert "`risk_difference`" in working
    assert "`upside_down`" not in working
    assert "`upside_down`" in next(line for line in told.splitlines() if "Lose to random" in line)
    again = []
    monkeypatch.setattr(run, "steered", lambda *a: again.append(a))
    assert (
        bench_steer(
            tmp_path, models=["fake"], methods=["risk_difference", "upside", "mote_off", "affinity", "activity"],
            probes=["single", "residual"],
        ).steer
        == league.steer
    )  # fmt: skip
    assert not again


def test_both_parts_stand_in_one_league_and_on_one_page(tmp_path, capsys):
    for part in ("detect", "steer"):
        with pytest.raises(SystemExit) as left:
            main(
                f"bench {part} --model fake --methods risk_difference --probes single,residual -o {tmp_path}/out "
                f"--page {tmp_path}/docs/league.md".split()
            )
        assert left.value.code == 0
    league = load_league(tmp_path / "out" / "league.json")
    assert league.detect
    assert league.steer
    text = (tmp_path / "docs" / "league.md").read_text()
    assert "## Detection" in text
    assert "## Steering" in text
    assert "`residual`, where no expert carries it: " in text
    assert "`single`: all 5 count-based scores claim all of the truth and nothing else in every seed." in text
    for name in ("detect", "steer"):
        assert (tmp_path / "docs" / "images" / f"league-{name}.png").read_bytes()[:4] == b"\x89PNG"
    save_page(league, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == text


def detect_cell(method, probe, kind, claims=(), sought=(), seed=0, null="labels", reads="runs"):
    return DetectCell(
        method=method,
        model="m",
        probe=probe,
        kind=kind,
        seed=seed,
        null=null,
        claims=claims,
        sought=sought,
        reads=reads,
    )


def test_the_reading_says_what_the_numbers_say():
    """Cells by hand: one method is right, one claims too much, one has no test."""
    cells = [
        *(detect_cell("right", "single", "planted", ("L0.E1",), ("L0.E1",), s) for s in (0, 1)),
        *(detect_cell("loose", "single", "planted", ("L0.E1", "L0.E2"), ("L0.E1",), s) for s in (0, 1)),
        detect_cell("bare", "single", "planted", (), ("L0.E1",), null="none"),
        *(detect_cell("right", "null", "null", (), (), s) for s in range(4)),
        *(detect_cell("loose", "null", "null", ("L0.E1",), (), s) for s in range(4)),
        detect_cell("right", "residual", "uncarried"),
        detect_cell("loose", "residual", "uncarried", ("L0.E1",)),
    ]
    told = read_detection(cells, model="`m`")
    assert "`single`: `right` claims all of the truth and nothing else in every seed; `loose` finds some of it" in told
    assert "in every seed: 1 of 2." in told
    assert "`bare` ranks without a test of its own" in told
    assert "claimed in 4 of 8 cells of all methods (50.0%; nominal 5%), in 4 of the 4 nulls" in told
    assert "beyond chance: `loose`" in told
    assert "`residual`, where no expert carries it: `loose` claims experts all the same; `right` does not." in told


def test_the_nominal_rate_by_hand():
    """P(at least 1 of 6) = 1 - 0.95^6 = 0.265; P(at least 3 of 20) = 0.0755; P(at least 4 of 20) = 0.0159."""
    assert not _more_than_nominal(1, 6)
    assert not _more_than_nominal(3, 20)
    assert _more_than_nominal(4, 20)


def test_ratio_to_random_by_hand():
    """Effect -6 where down was expected, random plans +1 and -3, 2 on average in size: 3 times."""
    interval = Interval(value=-6.0, low=-7.0, high=-5.0)
    made = SteerCell(method="m", model="m", probe="p", kind="planted", seed=0, effect=interval, random=(1.0, -3.0))
    assert table.times_random(made) == pytest.approx(3.0)
    assert table.times_random(made.model_copy(update={"expected": "up"})) == pytest.approx(-3.0)
    assert table.times_random(made.model_copy(update={"random": (0.0, 0.0)})) == float("inf")
    assert table.times_random(made.model_copy(update={"random": ()})) is None


def test_cases_are_sound():
    """Sides as labels, documents of pairs taken apart, sides of the null drawn anew for each seed."""
    found = {(c.name, c.seed): c for c in cases_of("fake", SMALL)}
    assert {c.kind for c in found.values()} == {"planted", "uncarried", "null"}
    for case in found.values():
        case.probe.validate()
        assert {text.labels[SIDE] for text in case.texts()} == {"contrast", "against"}
    single = found["single", 0]
    assert single.paired
    assert len({t.document for t in single.texts(apart=True)}) == 2 * len({t.document for t in single.texts()})
    assert not found[cases.NULL_TEXTS, 0].paired
    one, two = (
        {t.document: t.labels["side"] for t in case.texts()}
        for case in cases_of("lab", replace(SMALL, texts=None, null_seeds=1), probes=["null"])
    )
    assert one != two
    assert abs(sum(side == "contrast" for side in one.values()) - len(one) / 2) < 1


def test_bad_input_is_named(tmp_path):
    with pytest.raises(BadData, match="there are: single"):
        bench_detect(tmp_path, models=["fake"], probes=["sinlge"])
    with pytest.raises(BadData, match="did you mean 'risk_difference'"):
        bench_detect(tmp_path, models=["fake"], methods=["risk_diference"])
    with pytest.raises(BadData, match="moeworks bench detect"):
        load_league(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"format": "moeworks.league", "version": 2}')
    with pytest.raises(BadData, match="version"):
        load_league(tmp_path / "bad.json")
