"""Divergence of a trace: against loops in plain Python with scipy, and worked numbers put into logits."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.engines.fake import FakeEngine, null_examples, planted_examples
from moeworks.errors import MoeworksError
from moeworks.stats import divergence
from moeworks.stats.divergence import _false_discovery
from moeworks.where import Where


def text(lang, document, *distributions):
    """A text whose tokens have these routing distributions over four experts."""
    logits = np.log(np.array(distributions))
    return Text({"lang": lang}, {0: np.argsort(-logits)[:, :1]}, logits={0: logits}, document=document)


def test_worked_numbers_come_out_of_a_trace(tmp_path):
    """By hand: D is .568 for [.7 .1 .1 .1] against [.1 .7 .1 .1]; the mean over tokens is taken before it."""
    texts = [
        text("en", "x", [0.7, 0.1, 0.1, 0.1]),
        text("fr", "x", [0.1, 0.6, 0.1, 0.2], [0.1, 0.8, 0.1, 1e-9]),  # mean [.1 .7 .1 .1]
    ]
    (line,) = divergence(write_texts(tmp_path / "t", texts)).to_pylist()
    assert (line["layer"], line["value"], line["documents"]) == (0, "fr", 1)
    assert (line["grouping"], line["source"]) == ("documents", "logits")
    assert line["divergence"] == pytest.approx(0.2531 / math.log(2), abs=1e-4)
    assert line["normalised"] == pytest.approx(0.568, abs=1e-3)
    assert line["entropy"] == pytest.approx(line["base_entropy"], abs=1e-6)


@pytest.mark.parametrize("source", ["logits", "weights"])
@pytest.mark.parametrize("parallel", [True, False])
def test_divergence_equals_a_loop(tmp_path, source, parallel):
    """Loops over texts and tokens; scipy's softmax, entropy and jensenshannon. Two parallel groups lack French."""
    languages = ["en", "fr", "de"]
    trace = make_trace(
        tmp_path / "t",
        requests=21,
        rows_per_request=[4, 9, 6, 7],
        experts=(8, 6),
        top_k=(2, 3),
        labels={"lang": [*languages * 5, "en", "de", "de", "en", "de", "de"]},
        requests_per_document=3 if parallel else 1,
        planted={(1, 2): ("lang", "fr", 2.0)},
        generated=2,
        logits=True,
        topic=0.5,
        part_bytes=3000,
    )
    assert len(trace.parts) > 1
    rows, documents, lang = trace.rows(), trace.documents(), trace.request_table().labels["lang"]
    table = divergence(trace, where=Where.parse("phase=prompt"), source=source)
    assert table.num_rows == 4
    for line in table.to_pylist():
        layer, experts = line["layer"], {0: 8, 1: 6}[line["layer"]]
        texts, logits = {}, trace.logits(layer).astype(float)
        ids, weights = trace.ids(layer), trace.weights(layer).astype(float)
        for i in range(len(rows)):
            if rows.phase[i] != 0:
                continue
            if source == "logits":
                p = softmax(logits[i])
            else:
                p = np.zeros(experts)
                for expert, weight in zip(ids[i], weights[i], strict=True):
                    p[expert] = weight
                p /= p.sum()
            document = int(documents[rows.request[i]]) if parallel else 0
            texts.setdefault((lang[rows.request[i]], document), []).append(p)
        means = {key: np.mean(ps, axis=0) for key, ps in texts.items()}
        shared = [d for (value, d) in means if value == line["value"] and ("en", d) in means]
        pairs = [(means[line["value"], d], means["en", d]) for d in shared]
        js = [jensenshannon(p, q) ** 2 for p, q in pairs]
        norm = [math.log(experts) - (entropy(p) + entropy(q)) / 2 for p, q in pairs]
        assert line["divergence"] == pytest.approx(np.mean(js) / math.log(2), abs=1e-7)
        assert line["normalised"] == pytest.approx(np.mean(np.array(js) / norm), abs=1e-6)
        assert line["entropy"] == pytest.approx(np.mean([entropy(p) for p, _ in pairs]), abs=1e-7)
        assert line["base_entropy"] == pytest.approx(np.mean([entropy(q) for _, q in pairs]), abs=1e-7)
        assert line["documents"] == (len(shared) if parallel else 0)
        assert line["grouping"] == ("documents" if parallel else "pooled")
        assert line["source"] == source
    if parallel:
        assert sorted(set(zip(table["value"].to_pylist(), table["documents"].to_pylist(), strict=True))) == [
            ("de", 7),
            ("fr", 5),
        ]


def test_the_planted_language_diverges_where_it_is_planted(tmp_path):
    """Planted: French has an expert in layer 1; German differs by chance only."""
    trace = make_trace(
        tmp_path / "t", requests=90, rows_per_request=30, requests_per_document=3, labels={"lang": ["en", "fr", "de"]},
        planted={(1, 2): ("lang", "fr", 3.0)},
    )  # fmt: skip
    found = {(r["layer"], r["value"]): r["divergence"] for r in divergence(trace).to_pylist()}
    assert found[1, "fr"] > 3 * max(found[0, "fr"], found[0, "de"], found[1, "de"])


def test_a_small_memory_budget_gives_the_same_numbers(tmp_path):
    trace = make_trace(tmp_path / "t", requests=12, layers=(0, 1, 2), labels={"lang": ["en", "fr"]})
    assert divergence(trace).equals(divergence(trace, budget_bytes=1))


def test_uniform_routing_is_nan_not_a_number(tmp_path):
    """By the definition the norm is 0 where both are uniform."""
    uniform = [0.25] * 4
    texts = [text("en", "x", uniform), text("fr", "x", uniform)]
    (line,) = divergence(write_texts(tmp_path / "t", texts)).to_pylist()
    assert math.isnan(line["normalised"])
    assert line["divergence"] == 0


def test_texts_without_the_label_are_left_out(tmp_path):
    texts = [text("en", "x", [0.7, 0.1, 0.1, 0.1]), text("fr", "x", [0.1, 0.7, 0.1, 0.1]), text("", "x", [0.25] * 4)]
    assert divergence(write_texts(tmp_path / "t", texts))["value"].to_pylist() == ["fr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "language"}, "no request has a label 'language'"),
        ({"base": "eng"}, "no token with lang=eng is selected; did you mean 'en'"),
        ({"where": Where.parse("lang=fr")}, "no token with lang=en is selected"),
        ({"where": Where.parse("lang=en")}, "all selected tokens have lang=en"),
        ({"source": "logits"}, "record it with logits"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, options, message):
    trace = make_trace(tmp_path / "t", labels={"lang": ["en", "fr"]})
    with pytest.raises(MoeworksError, match=message):
        divergence(trace, **options)


@pytest.mark.parametrize("pairs", [False, True])
def test_p_is_calibrated_where_labels_mean_nothing(tmp_path, pairs):
    """Documents have topics of their own, labels are of no matter: p is uniform by its definition.

    40 nulls: the share of p ≤ .2 is .2 with a standard error of .063; 3 of them are allowed.
    """
    p = []
    for seed in range(10):
        trace = make_trace(
            tmp_path / str(seed), requests=24, rows_per_request=[5, 30], layers=(0, 1, 2, 3), topic=1.0, seed=seed,
            labels={"lang": ["en", "fr"] if pairs else ["en", "en", "fr", "fr"]},
            requests_per_document=2 if pairs else 1,
        )  # fmt: skip
        rows = divergence(trace, permutations=199, bootstrap=10, seed=seed).to_pylist()
        assert {row["grouping"] for row in rows} == {"documents" if pairs else "pooled"}
        p += [row["p"] for row in rows]
    assert np.mean(np.array(p) <= 0.2) == pytest.approx(0.2, abs=0.19)
    assert np.mean(np.array(p) <= 0.8) == pytest.approx(0.8, abs=0.19)


def test_few_documents_go_through_all_arrangements(tmp_path):
    """By hand: 2 + 2 one-hot documents, en on expert 0, fr on 1. Of 6 arrangements 2 give ln 2 (1), 4 give 0.

    Chance is 1/3, and so is p but for the draws; with fewer than 5 documents there is no interval.
    """
    texts = [
        Text({"lang": lang}, {0: [[expert]] * 3}, document=f"{lang}{i}")
        for lang, expert in (("en", 0), ("fr", 1))
        for i in (0, 1)
    ]
    (line,) = divergence(write_texts(tmp_path / "t", texts), permutations=3000).to_pylist()
    assert line["divergence"] == line["pooled"] == pytest.approx(1)
    assert line["chance"] == pytest.approx(1 / 3, abs=0.04)
    assert line["p"] == line["q"] == pytest.approx(1 / 3, abs=0.04)
    assert math.isnan(line["low"])
    assert math.isnan(line["high"])


def test_interval_of_paired_documents_is_that_of_their_mean(tmp_path):
    """Outside truth: half of 40 documents diverge fully, half not at all; the mean's standard error is .5 / √40."""
    texts = [
        Text({"lang": lang}, {0: [[i % 2 if lang == "fr" else 0]] * 2}, document=f"d{i}")
        for i in range(40)
        for lang in ("en", "fr")
    ]
    (line,) = divergence(write_texts(tmp_path / "t", texts), bootstrap=2000).to_pylist()
    assert line["divergence"] == pytest.approx(0.5)
    assert line["high"] - line["low"] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(40), rel=0.08)
    assert line["normalised_high"] - line["normalised_low"] == pytest.approx(
        0.5 * (line["high"] - line["low"]), rel=0.01
    )  # ln 2 / ln 4 for disjoint one-hot distributions


def test_interval_of_pooled_tokens_is_around_the_number(tmp_path):
    """Resampling adds noise, which raises a divergence that is all noise well above the one seen."""
    trace = make_trace(tmp_path / "t", requests=40, layers=(0, 1, 2, 3), topic=0.5, labels={"lang": ["en", "fr"]})
    for line in divergence(trace).to_pylist():
        assert line["grouping"] == "pooled"
        assert line["low"] < line["divergence"] < line["high"]
        assert line["normalised_low"] < line["normalised"] < line["normalised_high"]


def test_fake_engine_plant_passes_and_nothing_else_does(tmp_path):
    """Planted: one expert of one layer hears shouting; plain texts with the same labels differ by chance only."""
    options = {"label": "side", "base": "against", "permutations": 999}
    engine = FakeEngine("single")
    rows = divergence(engine.record(planted_examples(24), tmp_path / "planted"), **options).to_pylist()
    planted = engine.planted[0].layer
    best = max(rows, key=lambda row: row["pooled"] - row["chance"])
    assert best["layer"] == planted
    assert best["q"] <= 0.01
    null = divergence(engine.record(null_examples(24), tmp_path / "null"), **options).to_pylist()
    assert min(row["q"] for row in null) > 0.05


def test_q_values_by_hand():
    """Benjamini and Hochberg: p .01, .04, .03 of 3 → .03, .04, .04 (.045 for the second smallest is cut to .04)."""
    assert _false_discovery(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.04, 0.04])
