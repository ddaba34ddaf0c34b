"""The card by its content: front matter as the Hub reads it, the plan in words, evidence, no path of a machine."""

from __future__ import annotations

import yaml

from helpers.traces import make_identity
from moeworks.address import Address
from moeworks.artefact import Header
from moeworks.edit.card import is_hub_id, model_card, source_metadata
from moeworks.edit.comparison import Comparison, Perplexity
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.edit.preview import Preview, RandomPlan
from moeworks.plan.evidence import Interval


def interval(value):
    return Interval(value=value, low=value - 0.25, high=value + 0.25)


def comparison():
    def perplexity(before, after):
        return Perplexity(texts=3, documents=3, tokens=40, before=before, after=after, ratio=interval(after / before))

    return Comparison(
        before="x",
        after="y",
        texts=3,
        documents=3,
        tokens=40,
        text_hash="abcd",
        divergence=interval(0.5),
        agreement=interval(0.75),
        perplexity={"all": perplexity(8, 10), "lang=fr": perplexity(4, 6)},
    )


def plan(name="owner/small", **fields):
    identity = make_identity([0, 2], 8, 2).model_copy(update={"name": name})
    cuts = [LayerCut(layer=layer, experts=8, keep=(0, 1, 2, 5, 7)) for layer in (0, 2)]
    header = Header(format="moeworks.edit", moeworks="0", model=identity, command="moeworks edit plan stats/")
    told = {"method": "reap", "options": {"normalise": True}, "keep": 0.625, "layers": tuple(cuts), "header": header}
    return EditPlan(**told | {"protected": (Address(0, 5),)} | fields)


def parts(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_and_words():
    metadata = {"license": "apache-2.0", "language": ["en", "fr"], "tags": ["not", "these"], "datasets": ["nor/this"]}
    text = model_card(plan(), metadata=metadata, bytes_before=2_000_000, bytes_after=1_500_000)
    front, body = parts(text)
    assert front["base_model"] == "owner/small"
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en", "fr"]
    assert front["library_name"] == "transformers"
    assert {"mixture-of-experts", "expert-pruning", "reap"} <= set(front["tags"])
    assert "not" not in front["tags"]
    assert "datasets" not in front
    assert body.startswith("\n# small-reap-62.5\n")
    for words in (
        "8 routed experts a layer became 5: those ranked lowest by reap were removed",
        "`reap`, normalise = True",
        "| protected experts | L0.E5 |",
        "| 2 | 8 | 5 | 0-2, 5, 7 |",
        "2 MB → 1.5 MB",
        "    moeworks edit plan stats/",
        "Nothing was measured",
        "AutoModelForCausalLM.from_pretrained",
    ):
        assert words in body, words


def test_evidence_of_the_plan_and_of_the_checkpoint():
    random = tuple(RandomPlan(seed=n, divergence=1.0 + n, perplexity={"all": 2.0 + n}) for n in (0, 1))
    evidence = {"preview": Preview(comparison=comparison(), random=random).evidence()}
    body = parts(model_card(plan(evidence=evidence)))[1]
    assert "| perplexity | 8 | 10, times 1.25 [1, 1.5] | times 2.5 |" in body
    assert "| KL to the original, nats a token | 0 | 0.5 [0.25, 0.75] | 1.5 |" in body
    assert "| lang=fr | 4 | 6 | 1.5 [1.25, 1.75] |" in body
    assert "of the plan, before it was carried out" in body
    assert "Nothing was measured" not in body
    body = parts(model_card(plan(), comparison=comparison()))[1]
    assert "of the checkpoint itself" in body
    assert "| 0.5 [0.25, 0.75] | – |" in body


def test_merges_neurons_and_safety_are_told():
    groups = tuple(((keep, 0.5), *(((3, 0.5),) if keep == 0 else ())) for keep in (0, 1, 2, 5, 7))
    cut = LayerCut(layer=0, experts=8, keep=(0, 1, 2, 5, 7), groups=groups)
    front, body = parts(model_card(plan(layers=(cut,), transform="mean", protected=(), weakens_safety=True)))
    assert "expert-merge" in front["tags"]
    assert "merged into them (mean, groups by reap)" in body
    assert "weaken a safety behaviour" in body
    thin = LayerCut(layer=0, experts=2, keep=(0, 1), neurons=((0, 1), (2, 3)))
    body = parts(model_card(plan(layers=(thin,), protected=(), method="camera")))[1]
    assert "Every one of 2 routed experts a layer lost neurons, chosen by camera." in body


def test_a_path_is_no_base_model():
    front, body = parts(model_card(plan(name="/home/somebody/models/mine")))
    assert "base_model" not in front
    assert "/home" not in body
    assert "# mine-reap-62.5" in body
    assert [is_hub_id(name) for name in ("a/b", "lab", "./a", "/a/b", "a/b/c", "~/a")] == [True, *[False] * 5]


def test_metadata_of_a_card(tmp_path):
    assert source_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# x\n")
    assert source_metadata(tmp_path) == {"license": "mit"}
    (tmp_path / "README.md").write_text("# no front matter\n")
    assert source_metadata(str(tmp_path)) == {}
