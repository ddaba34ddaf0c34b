"""`trace show`, `inspect --expert` and `inspect --map`: the same numbers as the page's, and every mistake in words."""

from __future__ import annotations

import json

import pytest

from helpers.traces import make_identity, make_trace
from moeworks.cli import main
from moeworks.find import find
from moeworks.view import Sources, expert_card, expert_map, token_table


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    model = make_identity((0, 2), 8, 2).model_copy(update={"name": "lab", "tokenizer_hash": _lab_tokenizer()})
    return make_trace(
        tmp_path_factory.mktemp("view") / "t", requests=80, rows_per_request=[9, 12], labels={"lang": ["fr", "ru"]},
        header={"model": model}, logits=True,
    )  # fmt: skip


def _lab_tokenizer() -> str:
    from transformers import AutoTokenizer

    from moeworks.engines.transformers.loading import hash_tokenizer
    from moeworks.lab import lab_path

    return hash_tokenizer(AutoTokenizer.from_pretrained(lab_path()))


def run(capsys, *words, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    assert left.value.code == code, printed.err
    return printed.err if code else printed.out


def as_json(capsys, *words):
    return json.loads(run(capsys, *words, "--json"))


def test_trace_show_gives_the_token_table(trace, capsys) -> None:
    told = as_json(capsys, "trace", "show", trace.path, "--from", 5, "--rows", 7)
    assert told["rows"] == json.loads(json.dumps(token_table(trace, start=5, stop=12).to_pylist()))
    assert (told["rows_in_all"], told["entropy"], told["no_text"]) == (len(trace), "router", "")
    one = as_json(capsys, "trace", "show", trace.path, "--request", 3, "--layer", 2)
    assert {row["request"] for row in one["rows"]} == {3}
    assert len(one["rows"]) == 12
    assert "L0.ids" not in one["rows"][0]


def test_trace_show_in_words(trace, capsys) -> None:
    lines = run(capsys, "trace", "show", trace.path, "--rows", 3).splitlines()
    assert lines[0].split() == ["row", "request", "position", "phase", "text", "L0", "L2"]
    table = token_table(trace, stop=3)
    for line, row in zip(lines[1:4], table.to_pylist(), strict=True):
        assert repr(row["text"]) in line or row["part"]
        assert line.endswith(" ".join(map(str, row["L2.ids"])))
    one = run(capsys, "trace", "show", trace.path, "--rows", 3, "--layer", 0).splitlines()
    assert one[0].split()[-4:] == ["weights", "entropy", "margin", "divergence"]


def test_a_trace_without_a_tokenizer_shows_ids(tmp_path, capsys) -> None:
    trace = make_trace(tmp_path / "t", requests=2)
    printed = run(capsys, "trace", "show", trace.path, "--rows", 2)
    assert "No text: the tokenizer of synthetic is not on this machine" in printed
    assert str(trace.rows().token[0]) in printed
    assert f"token {trace.rows().token[0]}" in run(
        capsys, "inspect", trace.path, "--expert", f"L0.E{trace.ids(0)[0, 0]}"
    )


def test_a_tokenizer_that_is_not_the_traces_is_refused(tmp_path, capsys) -> None:
    from moeworks.lab import lab_path

    trace = make_trace(tmp_path / "t", requests=2)
    assert "its hash is another" in run(
        capsys, "trace", "show", trace.path, "--tokenizer", lab_path(), code=2
    )  # fmt: skip


def test_inspect_expert_gives_the_card(trace, capsys) -> None:
    told = as_json(capsys, "inspect", trace.path, "--expert", "L2.E5")
    assert told == json.loads(json.dumps(expert_card(trace, "L2.E5")))
    printed = run(capsys, "inspect", trace.path, "--expert", "L2.E5")
    assert printed.startswith("L2.E5: runs for ")
    assert "Rates by lang" in printed
    assert "Runs together with" in printed


def test_scores_on_a_card_and_a_map(trace, tmp_path, capsys) -> None:
    file = tmp_path / "s.arrow"
    scores = find(trace, contrast="lang=ru", against="lang=fr", permutations=50, bootstrap=20)
    scores.save(file)
    told = as_json(capsys, "inspect", trace.path, "--expert", "L2.E5", "--scores", file)
    assert told["scores"][str(file)]["method"] == "risk_difference"
    assert "does not pass" in run(capsys, "inspect", trace.path, "--expert", "L2.E5", "--scores", file)
    told = as_json(capsys, "inspect", trace.path, "--map", "score", "--scores", file)
    assert told["rows"] == json.loads(json.dumps(expert_map(trace, by="score", scores=scores).to_pylist()))


@pytest.mark.parametrize("words", [("load",), ("weight",), ("specialisation", "--label", "lang", "--value", "ru")])
def test_inspect_map_gives_the_map(trace, capsys, words) -> None:
    told = as_json(capsys, "inspect", trace.path, "--map", *words)
    named = {"label": "lang", "value": "ru"} if len(words) > 1 else {}
    assert told["rows"] == json.loads(json.dumps(expert_map(trace, by=words[0], **named).to_pylist()))
    printed = run(capsys, "inspect", trace.path, "--map", *words, "--top", 4).splitlines()
    assert printed[0].split()[:2] == ["expert", "value"]
    assert "of 16 experts" in printed[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--expert", "L2.E9"), "layer 2 has experts 0 to 7"),
        (("--expert", "L2.E5", "--what", "balance"), "--what does not go with --expert"),
        (("--expert", "L2.E5", "--map", "load"), "--map does not go with --expert"),
        (("--map", "specialisation"), "name both"),
        (("--map", "score"), "belong together"),
        (("--map", "load", "--model", "lab"), "--model does not go with --map"),
        (("--value", "ru"), "are for --expert or --map"),
        (("--expert", "L2.E5", "--device", "cpu"), "is for a model"),
        (("--expert", "L2.E5", "--scores", "missing.arrow"), "there is no file missing.arrow"),
    ],
)
def test_mistakes_are_told_in_words(trace, capsys, words, message) -> None:
    error = run(capsys, "inspect", trace.path, *words, code=2)
    assert message in error
    assert "Traceback" not in error


def test_mistakes_of_trace_show(trace, capsys) -> None:
    assert "requests 0 to 79" in run(capsys, "trace", "show", trace.path, "--request", 80, code=2)
    assert "leave --from out" in run(capsys, "trace", "show", trace.path, "--request", 2, "--from", 3, code=2)
    assert "no layer 1" in run(capsys, "trace", "show", trace.path, "--layer", 1, code=2)
    assert f"it has {len(trace)} rows" in run(capsys, "trace", "show", trace.path, "--from", len(trace), code=2)


def test_the_page_and_the_command_line_decode_alike(trace) -> None:
    sources = Sources([trace.path])
    (id,) = sources.ids("trace")
    assert token_table(trace, decoder=sources.decoder(id))["text"] == token_table(trace)["text"]
    assert any(token_table(trace)["text"].to_pylist())
