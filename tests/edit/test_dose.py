"""Dose curves: the points are comparisons of masks, dev chooses, held-out judges, and the words say what was found."""

from __future__ import annotations

import pytest

from edit.test_preview import plan_for
from helpers.models import tiny_engine
from moeworks.edit.compare import compare
from moeworks.edit.dose import Confirmed, Dose, DoseCurve, dose
from moeworks.edit.dose_picture import save_dose_picture
from moeworks.edit.replan import recut
from moeworks.edit.sides import under
from moeworks.errors import BadData, BadPlan
from moeworks.examples import Example
from moeworks.plan.evidence import Interval


def texts(kind):
    return [
        Example(
            text=f"{kind} {n}: {n * 3} and {n * n}, more.",
            labels={"lang": "en" if n % 2 else "de"},
            document=f"{kind}{n}",
        )
        for n in range(6)
    ]


DEV, HELD_OUT = texts("dev"), texts("held out")


def ranked(engine, order=(7, 6, 5, 4, 3, 2, 1, 0)):
    plan = plan_for(engine, {0: range(8), 2: range(8)})
    cuts = tuple(cut.model_copy(update={"order": order}) for cut in plan.layers)
    return plan.model_copy(update={"layers": cuts})


def test_points_are_cuts_by_the_ranking_and_at_random():
    engine = tiny_engine("softmax")
    plan = ranked(engine)
    curve = dose(engine, plan, dev=DEV, held_out=HELD_OUT, limit=0.5)
    assert [point.cut for point in curve.doses] == [0, 0.125, 0.25, 0.375, 0.5]
    assert [point.counts for point in curve.doses] == [(8, 8), (7, 7), (6, 6), (5, 5), (4, 4)]
    for point in curve.doses[1:]:
        made = recut(plan, keep=point.keep)
        assert made.layers[0].keep == tuple(range(8 - point.counts[0], 8))  # the first of the ranking
        found = compare(engine, under(engine, made), DEV)
        assert point.perplexity.value == pytest.approx(found.perplexity["all"].ratio.value, rel=1e-5)
        assert point.divergence == pytest.approx(found.divergence.value, rel=1e-5)
        assert len(set(point.random)) == 3


def test_dev_chooses_and_held_out_judges():
    engine = tiny_engine("softmax")
    plan = ranked(engine)
    rises = [point.perplexity.value - 1 for point in dose(engine, plan, dev=DEV, held_out=HELD_OUT).doses]
    limit = (max(rises[1], 0) + max(rises[1:])) / 2  # between the first cut's rise and the largest one
    curve = dose(engine, plan, dev=DEV, held_out=HELD_OUT, limit=limit, controls=1)
    within = [rise <= limit for rise in rises[1:]]
    place = within.index(False)  # 0: the first cut is beyond already
    assert place > 0
    assert curve.chosen.cut == curve.doses[place].cut
    assert curve.beyond.cut == curve.doses[place + 1].cut
    found = compare(engine, under(engine, recut(plan, keep=curve.doses[place].keep)), HELD_OUT)
    assert curve.chosen.perplexity.value == pytest.approx(found.perplexity["all"].ratio.value, rel=1e-5)
    assert curve.confirmed == (curve.chosen.perplexity.value <= 1 + limit)
    none = dose(engine, plan, dev=DEV, held_out=HELD_OUT, limit=-0.9, controls=0)
    assert none.chosen is None
    assert none.beyond.cut == 0.125
    assert not none.confirmed
    every = dose(engine, plan, dev=DEV, held_out=HELD_OUT, limit=1e9, controls=0)
    assert (every.chosen.cut, every.beyond) == (0.5, None)


def test_never_fewer_than_the_router_chooses():
    engine = tiny_engine("softmax")
    curve = dose(engine, ranked(engine), keeps=(0.5, 0.25, 0.1, 0.01), dev=DEV, held_out=HELD_OUT, controls=1)
    assert [point.counts for point in curve.doses] == [(4, 4), (2, 2)]


def test_refusals():
    engine = tiny_engine("softmax")
    with pytest.raises(BadPlan, match="ranks no experts"):
        dose(engine, plan_for(engine, {0: range(8)}), dev=DEV, held_out=HELD_OUT)
    with pytest.raises(BadData, match="takes an expert away"):
        dose(engine, ranked(engine), keeps=(1.0, 0.95), dev=DEV, held_out=HELD_OUT)


def curve_of(chosen, beyond, *, limit=0.05):
    def comparison(ratio):
        engine = tiny_engine("softmax")
        found = compare(engine, engine, DEV)
        interval = Interval(value=ratio, low=ratio - 0.01, high=ratio + 0.01)
        groups = {name: group.model_copy(update={"ratio": interval}) for name, group in found.perplexity.items()}
        return found.model_copy(update={"perplexity": groups})

    doses = tuple(
        Dose(
            keep=1 - cut,
            cut=cut,
            counts=(8,),
            divergence=cut,
            perplexity=Interval(value=1 + cut / 4, low=1 + cut / 5, high=1 + cut / 3),
            random=(1 + cut, 1 + 2 * cut, 1 + 1.5 * cut) if cut else (),
        )
        for cut in (0.0, 0.125, 0.25, 0.375, 0.5)
    )
    one, other = (
        None if pair is None else Confirmed(cut=pair[0], comparison=comparison(pair[1])) for pair in (chosen, beyond)
    )
    return DoseCurve(model="m", method="reap", limit=limit, doses=doses, chosen=one, beyond=other)


@pytest.mark.parametrize(
    ("chosen", "beyond", "words"),
    [
        (
            (0.25, 1.03),
            (0.375, 1.09),
            "m can take 25 % (times 1.03 [1.02, 1.04] on held-out texts, limit 5 %), not 37.5 % (",
        ),
        ((0.25, 1.08), (0.375, 1.09), "held-out texts do not confirm it (times 1.08"),
        ((0.5, 1.02), None, "the largest cut that was tried"),
        (
            None,
            (0.125, 1.2),
            "none of these cuts within the limit 5 %: not even 12.5 % (times 1.031 on dev texts, 1.2 on held-out ones)",
        ),
    ],
)
def test_words(chosen, beyond, words):
    assert words in curve_of(chosen, beyond).words()


def test_picture_is_written_and_the_same_again(tmp_path):
    curve = curve_of((0.25, 1.03), (0.375, 1.09))
    one = save_dose_picture(curve, tmp_path / "one.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert save_dose_picture(curve, tmp_path / "two.png").read_bytes() == one
    other = curve.model_copy(update={"chosen": None})
    assert save_dose_picture(other, tmp_path / "three.png").read_bytes() != one
    assert len(list(tmp_path.iterdir())) == 3
