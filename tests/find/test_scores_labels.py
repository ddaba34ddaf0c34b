"""Scores of a label's values (dominance, language experts) and of its numbers (Pearson), worked by hand and planted."""

import numpy as np
import pytest
from scipy import stats

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData, MoeworksError
from moeworks.find import find_by_label, find_correlated, find_languages

LANGUAGES = ["en", "fr", "de"]


def text(labels, *counts, weight=1.0, document=""):
    """Top-1 tokens: counts[e] of them go to expert e, all with one combine weight."""
    ids = [[e] for e, count in enumerate(counts) for _ in range(count)]
    return Text(labels, {0: ids}, {0: [[weight]] * len(ids)}, document=document)


@pytest.fixture(scope="module")
def masses(tmp_path_factory):
    """Mean weights by hand. en: 10 tokens of weight .5; fr: 5 tokens of weight 1 in two texts; de: 4 of weight 1.

    expert 0: en .25, fr .4, de 0; expert 1: en .2, fr .4, de 1; expert 2: en .05, fr .2, de 0; expert 3: none.
    """
    texts = [text({"lang": "en"}, 5, 4, 1, weight=0.5), text({"lang": "fr"}, 2, 0, 0), text({"lang": "fr"}, 0, 2, 1)]
    texts.append(text({"lang": "de"}, 0, 4, 0))
    texts.append(text({"other": "x"}, 0, 0, 0, 7))  # not labelled: left out
    return write_texts(tmp_path_factory.mktemp("masses") / "t", texts)


def test_dominance_by_hand(masses):
    """(m1 - m2) / (m1 + m2): (.4 - .25) / .65, (1 - .4) / 1.4, (.2 - .05) / .25, none."""
    scores = find_by_label(masses, label="lang", method="dominance", permutations=20)
    assert scores.column("score") == pytest.approx([0.15 / 0.65, 0.6 / 1.4, 0.15 / 0.25, 0])
    assert scores.column("contrast_rate") == pytest.approx([0.4, 1, 0.2, 0])
    assert scores.column("against_rate") == pytest.approx([0.25, 0.4, 0.05, 0])
    assert scores.header.facts["by_ratio"] == {"de": ["L0.E1"], "en": [], "fr": ["L0.E2"]}
    assert scores.header.facts["experts"] == {"de": [], "en": [], "fr": []}
    assert "No expert passes." in scores.summary()
    assert "de 1 (0), en 0 (0), fr 1 (0)" in scores.summary()


def test_dominance_of_one_value(masses):
    """By hand for fr against the largest of the others: expert 1 has .4 against 1."""
    scores = find_by_label(masses, label="lang", method="dominance", target="fr", permutations=20)
    assert scores.column("score") == pytest.approx([0.15 / 0.65, -0.6 / 1.4, 0.15 / 0.25, 0])
    assert scores.column("contrast_rate") == pytest.approx([0.4, 0.4, 0.2, 0])
    assert scores.column("against_rate") == pytest.approx([0.125, 0.6, 0.025, 0])
    assert (scores.header.contrast, scores.header.against) == ("lang=fr", "lang=de,en")
    assert (scores.header.documents, scores.header.tokens) == ((2, 2), (5, 14))


def test_twice_the_second_is_a_score_of_a_third_inclusive(tmp_path):
    """2 of 4 tokens against 1 of 4 is exactly twice, whatever the rounding; 3 of 7 against 1 of 4 is less."""
    for own, second, belongs in (((2, 2), (1, 3), True), ((3, 4), (1, 3), False), ((6, 1), (3, 4), True)):
        texts = [text({"lang": lang}, *counts) for lang, counts in (("a", own), ("b", second)) for _ in range(12)]
        trace = write_texts(tmp_path / f"{own}", texts)
        scores = find_by_label(trace, label="lang", target="a", permutations=400)
        assert scores.column("q")[0] <= 0.05
        assert bool(scores.column("passes")[0]) is belongs
        assert ("L0.E0" in scores.header.facts["by_ratio"]["a"]) is belongs
    loose = find_by_label(trace, label="lang", target="a", permutations=400, ratio=1.2)
    assert loose.header.options == {"ratio": 1.2}
    with pytest.raises(BadData, match=r"ratio of 0\.5"):
        find_by_label(trace, label="lang", ratio=0.5)


def test_p_equals_an_enumeration_of_all_labellings(tmp_path):
    """A loop over the 6! / (2!)^3 = 90 labellings of six documents with three values, dominance from pooled sums."""
    import itertools

    rng = np.random.default_rng(2)
    counts = rng.integers(0, 6, (6, 2)) + 1
    labels = ["x", "x", "y", "y", "z", "z"]
    trace = write_texts(tmp_path / "t", [text({"v": v}, *c) for v, c in zip(labels, counts.tolist(), strict=True)])

    def score(labelling):
        members = [[i for i in range(6) if labelling[i] == v] for v in "xyz"]
        masses = sorted(counts[who, 0].sum() / counts[who].sum() for who in members)
        return (masses[-1] - masses[-2]) / (masses[-1] + masses[-2])

    every = set(itertools.permutations(labels))
    assert len(every) == 90
    observed = score(labels)
    exact = np.mean([score(p) >= observed - 1e-12 for p in every])
    found = find_by_label(trace, label="v", permutations=8000, refine=False)
    assert found.column("score")[0] == pytest.approx(observed)
    assert found.column("p")[0] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 8000))
    assert found.header.smallest_p == pytest.approx(1 / 90)


def test_language_experts_by_hand(tmp_path):
    """Means over texts: expert 0 on fr (1/2 + 3/4) / 2 = 5/8, de 1/4, en (1/4 + 0) / 2 = 1/8."""
    texts = [text({"lang": "fr"}, 1, 1), text({"lang": "fr"}, 3, 1), text({"lang": "de"}, 1, 3)]
    texts += [text({"lang": "en"}, 1, 3), text({"lang": "en"}, 0, 6)]
    trace = write_texts(tmp_path / "t", texts)
    largest = find_by_label(trace, label="lang", method="multilingual", tau=0.5, permutations=10)
    assert largest.column("score")[:2] == pytest.approx([1 / 2, 3 / 4 - 7 / 8])
    german = find_by_label(trace, label="lang", method="multilingual", target="de", tau=0.1, permutations=10)
    assert german.column("score")[:2] == pytest.approx([1 / 8, 3 / 4 - 7 / 8])
    facts = largest.header.facts
    assert facts["counts"] == {"0.05": 1, "0.1": 1, "0.2": 1, "0.3": 1, "0.4": 1, "0.5": 0, "0.6": 0}  # more than tau
    assert german.header.facts["by_value"] == {"de": ["L0.E0"], "fr": ["L0.E0"]}
    with pytest.raises(BadData, match="no text has the base value 'it'"):
        find_by_label(trace, label="lang", method="multilingual", base="it")
    with pytest.raises(BadData, match="'en' is the base"):
        find_by_label(trace, label="lang", method="multilingual", target="en")


def languages(path, *, planted=None, together=1, **options):
    return make_trace(
        path, requests=90, rows_per_request=[20, 31, 25], experts=16, top_k=2, layers=(0, 1), topic=0.6,
        labels={"lang": LANGUAGES, **options.pop("labels", {})}, planted=planted, requests_per_document=together,
        **options,
    )  # fmt: skip


PLANTS = {(0, 4): ("lang", "fr", 4.0), (1, 9): ("lang", "de", 4.0), (1, 2): ("domain", "maths", 4.0)}


@pytest.mark.parametrize("together", [1, 3])  # three texts a document: translations of each other
def test_planted_languages_are_found(tmp_path, together):
    trace = languages(tmp_path / "t", planted=PLANTS, together=together)
    experts = [(0, 4), (1, 9)]
    for method, options in (("multilingual", {"tau": 0.3}), ("dominance", {})):
        scores = find_by_label(trace, label="lang", method=method, permutations=300, **options)
        found = [(r["layer"], r["expert"]) for r in scores.table.to_pylist() if r["passes"]]
        assert found == experts
        assert scores.header.pairs == (30 if together == 3 else 0)
        french = find_by_label(trace, label="lang", method=method, permutations=300, target="fr", **options)
        assert [(r["layer"], r["expert"]) for r in french.table.to_pylist() if r["passes"]] == [(0, 4)]
        assert french.column("stability")[4] == 1
    far = find_by_label(trace, label="lang", method="multilingual", permutations=300, tau=0.95)
    assert far.column("q")[4] <= 0.05  # French experts run more on French for sure, but not by so much
    assert not far.column("passes").any()
    assert scores.header.facts["experts"] == {"de": ["L1.E9"], "en": [], "fr": ["L0.E4"]}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("method", ["multilingual", "dominance"])
def test_where_nothing_is_planted_p_is_calibrated(tmp_path, together, method):
    """8 traces of 32 experts whose documents differ and whose languages do not; 4 standard errors allowed."""
    p, found = [], 0
    for seed in range(8):
        trace = languages(tmp_path / f"t{seed}", together=together, seed=seed)
        scores = find_by_label(trace, label="lang", method=method, permutations=199, refine=False, bootstrap=1)
        p += scores.column("p").tolist()
        found += int(scores.column("passes").any())
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 256))
    assert found <= 2


def test_task_and_language_experts_and_their_overlap(tmp_path):
    """Planted: L0.E4 for French, L1.E9 for German, L1.E2 for maths; none is both."""
    domain = (["maths"] + [""] * 2) * 2 + [""] * 3  # texts 0, 3 of 9: English, as every third is
    trace = languages(tmp_path / "t", planted=PLANTS, labels={"domain": domain})
    found = find_languages(trace, task="domain=maths lang=en", tau=0.25, permutations=300)
    assert [(r["layer"], r["expert"]) for r in found.task.top(1).to_pylist()] == [(1, 2)]
    assert [(r["layer"], r["expert"]) for r in found.languages.table.to_pylist() if r["passes"]] == [(0, 4), (1, 9)]
    at = {row["tau"]: row for row in found.counts.to_pylist()}
    assert at[0.3] == {"tau": 0.3, "languages": 2, "task": 1, "both": 0}
    assert 0.25 in at
    assert found.languages.header.tokens[0] + found.task.header.tokens[0] == len(trace)  # maths is not English here
    with pytest.raises(BadData, match="names no label besides 'lang'"):
        find_languages(trace, task="lang=en")


def numbered(path, values, counts, **options):
    return write_texts(path, [text({"tox": v}, *c) for v, c in zip(values, counts, strict=True)], **options)


def test_pearson_equals_scipy(tmp_path):
    """scipy.stats.pearsonr and spearmanr on documents' mean weights; an expert that never varies has 0."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=15).round(3)
    counts = rng.integers(1, 9, (15, 2)).tolist()
    trace = numbered(tmp_path / "t", values.astype(str), counts)
    share = [a / (a + b) for a, b in counts]
    scores = find_correlated(trace, label="tox", permutations=5000, refine=False)
    expected = stats.pearsonr(share, values)
    assert scores.column("score") == pytest.approx([expected.statistic, -expected.statistic, 0, 0])
    exact = stats.permutation_test(
        (share,), lambda x: stats.pearsonr(x, values).statistic, permutation_type="pairings", n_resamples=2000, rng=1
    ).pvalue
    assert scores.column("p")[0] == pytest.approx(exact, abs=0.06)
    ranks = find_correlated(trace, label="tox", permutations=10, ranks=True)
    assert ranks.column("score")[0] == pytest.approx(stats.spearmanr(share, values).statistic)
    high = values > np.median(values)
    assert scores.column("contrast_rate")[0] == pytest.approx(np.mean(np.array(share)[high]))
    assert scores.column("low")[0] < scores.column("score")[0] < scores.column("high")[0]


def test_an_expert_that_follows_the_number_is_found_and_others_are_not(tmp_path):
    """Expert 0's share rises with the number, 0 to 29; the rest is drawn at random among five experts."""
    rng = np.random.default_rng(1)
    counts = [[5 + i, *rng.multinomial(40, [0.2] * 5)] for i in range(30)]
    trace = numbered(tmp_path / "t", [str(i) for i in range(30)], counts, experts=6)
    scores = find_correlated(trace, label="tox", threshold=0.8)
    assert scores.column("score")[0] > 0.95
    assert np.flatnonzero(scores.column("passes")).tolist() == [0]
    assert find_correlated(trace, label="tox", threshold=0.999).column("passes").sum() == 0


def test_a_number_that_means_nothing_is_calibrated(tmp_path):
    """8 traces of 32 experts; 4 standard errors allowed."""
    p = []
    for seed in range(8):
        values = [str(v) for v in np.random.default_rng(seed).normal(size=90).round(3)]
        trace = languages(tmp_path / f"t{seed}", labels={"tox": values}, seed=seed)
        p += find_correlated(trace, label="tox", permutations=199, refine=False, bootstrap=1).column("p").tolist()
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 256))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "two", "3"], "'tox=two' is no number"),
        (["1", "1", "1"], "the same value"),
        (["1", "nan", "2"], "'tox=nan' is no number"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(tmp_path, values, message):
    trace = numbered(tmp_path / "t", values, [[1, 2]] * 3)
    with pytest.raises(BadData, match=message):
        find_correlated(trace, label="tox")


def test_a_document_of_two_numbers_is_refused(tmp_path):
    texts = [text({"tox": v}, 1, 2, document="d") for v in ("1", "2")] + [text({"tox": "3"}, 2, 1)]
    with pytest.raises(BadData, match="1 documents have several values"):
        find_correlated(write_texts(tmp_path / "t", texts), label="tox")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "language"}, "no request has a label 'language'"),
        ({"target": "it"}, "no token with lang=it"),
        ({"values": ["fr", "it"]}, "no token with lang=it"),
        ({"values": ["fr"]}, "nothing to compare it with"),
        ({"where": "phase=generated"}, "no token matches 'phase=generated'"),
        ({"method": "dominanse"}, "did you mean 'dominance'"),
        ({"tau": 1}, "no option 'tau'"),
        ({"within": "lang"}, "no document can change its value"),
        ({"permutations": 0}, "0 permutations"),
    ],
)
def test_one_clear_sentence(masses, changed, message):
    with pytest.raises(MoeworksError, match=message):
        find_by_label(masses, **({"label": "lang"} | changed))


def test_pooled_values_of_unequal_length_swap_rates_within_documents(tmp_path):
    """A loop over the 2 ** 4 swaps of four documents with 1 to 4 tokens of a and 6 to 30 of b, lengths kept."""
    import itertools

    counts = [((1, 1), (5, 9)), ((2, 0), (12, 18)), ((1, 2), (1, 5)), ((3, 1), (4, 4))]  # (expert 0, expert 1) of a, b
    texts = [
        text({"v": v}, *c, document=f"d{i}") for i, both in enumerate(counts) for v, c in zip("ab", both, strict=True)
    ]
    found = find_by_label(write_texts(tmp_path / "t", texts), label="v", permutations=4000, refine=False)

    def score(swaps):
        masses = []
        for side in (0, 1):
            runs = [sum(d[side]) * d[side ^ s][0] / sum(d[side ^ s]) for d, s in zip(counts, swaps, strict=True)]
            masses.append(sum(runs) / sum(sum(d[side]) for d in counts))
        return abs(masses[0] - masses[1]) / sum(masses)

    exact = np.mean([score(swaps) >= score((0,) * 4) - 1e-12 for swaps in itertools.product((0, 1), repeat=4)])
    assert found.column("score")[0] == pytest.approx(score((0,) * 4))
    assert found.column("p")[0] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))
