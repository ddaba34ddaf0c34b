"""The token table: its columns against the trace's own arrays and against formulas written out here."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from helpers.traces import make_header, make_identity, make_request, make_trace
from moeworks.artefact import hash_texts
from moeworks.errors import BadData, BadTrace
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceWriter
from moeworks.view.kept import Kept
from moeworks.view.refusals import NotThere, TooMuch
from moeworks.view.tokens import mean_distribution, request_table, rows_of_request, token_table
from moeworks.where import Rows


def byte_trace(path, *, texts=None, logits=False, generated=3, lacks=(), **writer) -> Trace:
    """A trace of the fake engine's tokenizer, whose tokens are bytes; texts of random letters unless given."""
    rng = np.random.default_rng(0)
    texts = texts or ["".join(map(chr, rng.integers(32, 127, 7 + number % 5))) for number in range(12)]
    model = make_identity((0, 3), (8, 6), (2, 3)).model_copy(update={"tokenizer_hash": "bytes"})
    head = make_header(model=model, lacks=lacks)
    with TraceWriter(path, head, logits=logits, **writer) as out:
        for number, text in enumerate(texts):
            token = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
            info = RequestInfo(
                request=number,
                tokens=len(token),
                prompt_tokens=len(token) - generated,
                labels={"lang": "fr" if number % 3 else "ru"},
                text_hash=hash_texts([text]),
            )
            made = make_request(head, info, logits=logits)
            rows = Rows(made.rows.request, made.rows.position, token, made.rows.phase)
            weights = {n: np.full_like(w, np.nan) if lacks else w for n, w in made.weights.items()}
            out.add_request(info)
            out.write(RecordedRows(rows=rows, ids=made.ids, weights=weights, logits=made.logits))
    return Trace.open(path)


@pytest.fixture(scope="module", params=[False, True], ids=["weights", "logits"])
def trace(request, tmp_path_factory) -> Trace:
    return byte_trace(tmp_path_factory.mktemp("view") / "t", logits=request.param)


def softmax(z):
    p = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def distribution(trace: Trace, layer: int):
    """Probabilities of all experts by every row, (n, E): of the router, or the k weights in their places."""
    if trace.header.logits:
        return softmax(trace.logits(layer))
    p = np.zeros((len(trace), trace.header.shape_of(layer).experts))
    weights = trace.weights(layer).astype(np.float64)
    np.put_along_axis(p, trace.ids(layer).astype(np.int64), weights / weights.sum(-1, keepdims=True), -1)
    return p


def test_columns_are_the_traces_own(trace: Trace) -> None:
    table = token_table(trace)
    rows = trace.rows()
    assert table["row"].to_pylist() == list(range(len(trace)))
    for name in ("request", "position", "token"):
        assert table[name].to_pylist() == getattr(rows, name).tolist()
    assert table["phase"].to_pylist() == ["prompt" if one == 0 else "generated" for one in rows.phase]
    for layer in trace.layers:
        assert table[f"L{layer}.ids"].to_pylist() == trace.ids(layer).tolist()
        assert table[f"L{layer}.weights"].to_pylist() == trace.weights(layer).tolist()
    assert table.schema.metadata[b"entropy"] == (b"router" if trace.header.logits else b"weights")
    assert ("L0.margin" in table.column_names) == trace.header.logits


@pytest.mark.parametrize("layer", [0, 3])
def test_entropy_and_divergence_by_their_formulas(trace: Trace, layer: int) -> None:
    p = distribution(trace, layer)
    mean = p.mean(0)
    assert mean_distribution(trace, layer) == pytest.approx(mean)
    log = np.log(np.where(p > 0, p, 1))
    table = token_table(trace)
    assert table[f"L{layer}.entropy"].to_numpy() == pytest.approx(-(p * log).sum(1), abs=1e-5)
    kl = np.where(p > 0, p * (log - np.log(mean)), 0).sum(1)
    assert table[f"L{layer}.divergence"].to_numpy() == pytest.approx(kl, abs=1e-5)
    assert kl.max() > 0.1  # else nothing was tested


def test_margin_is_the_gap_of_the_selection_scores(tmp_path) -> None:
    trace = byte_trace(tmp_path / "t", logits=True)
    p = np.sort(softmax(trace.logits(3)), -1)  # k = 3 of 6
    assert token_table(trace)["L3.margin"].to_numpy() == pytest.approx(p[:, -3] - p[:, -4], abs=1e-6)


def test_any_stretch_is_a_part_of_the_whole(trace: Trace) -> None:
    whole = token_table(trace)
    for start, stop in ((0, 1), (5, 9), (8, 40), (len(trace) - 1, len(trace))):
        assert token_table(trace, start=start, stop=stop).to_pylist() == whole.slice(start, stop - start).to_pylist()
    assert token_table(trace, start=50, stop=10_000).num_rows == len(trace) - 50


def test_texts_of_a_stretch_that_begins_inside_a_character(tmp_path) -> None:
    texts = ["aé👩b", "静か", "плохо"]
    trace = byte_trace(tmp_path / "t", texts=texts)
    whole = token_table(trace)["text"].to_pylist()
    assert "".join(whole) == "".join(texts)
    for start in range(len(trace)):
        assert token_table(trace, start=start, stop=start + 5)["text"].to_pylist() == whole[start : start + 5]
    assert request_table(trace)["preview"].to_pylist() == texts
    assert token_table(trace)["part"].to_pylist()[1:3] == [True, False]


def test_a_preview_is_the_first_eighty_characters(tmp_path) -> None:
    texts = ["静" * 100, "short", "é" * 79 + "👩👩"]
    trace = byte_trace(tmp_path / "t", texts=texts)
    assert request_table(trace)["preview"].to_pylist() == [text[:80] for text in texts]


def test_a_token_that_the_tokenizer_does_not_have_is_an_altered_trace(tmp_path) -> None:
    model = make_identity().model_copy(update={"tokenizer_hash": "bytes"})
    trace = make_trace(tmp_path / "t", header={"model": model})  # token ids up to 1,000
    with pytest.raises(BadTrace, match="is none of the tokenizer"):
        token_table(trace)


def test_layers_limit_the_columns_and_not_the_rest(trace: Trace) -> None:
    table = token_table(trace, layers=[3])
    assert {name.split(".")[0] for name in table.column_names if name.startswith("L")} == {"L3"}
    assert table["L3.entropy"].to_pylist() == token_table(trace)["L3.entropy"].to_pylist()


def test_what_is_not_there_is_refused_in_words(trace: Trace) -> None:
    with pytest.raises(BadData, match=f"it has {len(trace)} rows"):
        token_table(trace, start=len(trace), stop=len(trace) + 3)
    with pytest.raises(BadData, match="no rows"):
        token_table(trace, start=-1, stop=3)
    with pytest.raises(BadTrace, match="no layer 1; layers recorded: 0, 3"):
        token_table(trace, layers=[1])
    with pytest.raises(NotThere, match="requests 0 to 11"):
        rows_of_request(trace, 12)


def test_no_more_rows_than_are_handed_out(tmp_path) -> None:
    trace = make_trace(tmp_path / "t", requests=3, rows_per_request=8000)
    assert token_table(trace, layers=[0]).num_rows == 20_000
    with pytest.raises(TooMuch, match="20001 rows"):
        token_table(trace, start=0, stop=20_001)


def test_a_trace_without_a_tokenizer_says_why_and_shows_ids(tmp_path) -> None:
    trace = make_trace(tmp_path / "t", requests=2)
    table = token_table(trace)
    assert b"synthetic is not on this machine" in table.schema.metadata[b"no_text"]
    assert set(table["text"].to_pylist()) == {""}
    assert table["token"].to_pylist() == trace.rows().token.tolist()
    assert b"not on this machine" in request_table(trace).schema.metadata[b"no_text"]


def test_a_source_without_weights_has_no_entropy(tmp_path) -> None:
    trace = byte_trace(tmp_path / "t", lacks=("weights",))
    table = token_table(trace)
    assert table.schema.metadata[b"entropy"] == b"none"
    assert "L0.entropy" not in table.column_names
    assert "L0.ids" in table.column_names


def test_requests_with_their_rows_phases_and_labels(trace: Trace) -> None:
    table = request_table(trace)
    rows = trace.rows()
    for row in table.to_pylist():
        mine = np.flatnonzero(rows.request == row["request"])
        assert (row["first_row"], row["rows"]) == (mine[0], len(mine))
        assert (row["prompt_rows"], row["generated_rows"]) == (len(mine) - 3, 3)
        assert rows_of_request(trace, row["request"]) == (mine[0], mine[-1] + 1)
    assert table["lang"].to_pylist() == ["ru", "fr", "fr"] * 4


def test_parts_of_a_trace_make_no_difference(tmp_path) -> None:
    one, many = byte_trace(tmp_path / "a"), byte_trace(tmp_path / "b", part_bytes=600)
    assert len(many.parts) > 2
    assert token_table(many).to_pylist() == token_table(one).to_pylist()
    assert request_table(many).to_pylist() == request_table(one).to_pylist()


def test_kept_values_are_made_once_and_bounded() -> None:
    kept, made = Kept(most_bytes=1000), []

    def make(size: int):
        made.append(size)
        return np.zeros(size, np.uint8)

    assert kept.get("a", lambda: make(400)) is kept.get("a", lambda: make(400))
    kept.get("b", lambda: make(400))
    kept.get("a", lambda: make(400))  # asked for last
    kept.get("c", lambda: make(400))
    assert kept.bytes == 800
    assert made == [400, 400, 400]
    kept.get("a", lambda: make(400))
    assert made == [400, 400, 400]
    kept.get("b", lambda: make(400))  # went first
    kept.get("big", lambda: make(600))  # more than half: not kept
    assert made == [400, 400, 400, 400, 600]
    assert kept.bytes <= 1000


def test_traces_are_shown_without_torch(tmp_path) -> None:
    byte_trace(tmp_path / "t", logits=True)
    code = (
        "import sys\n"
        "from moeworks.view import *\n"
        "sources = Sources([sys.argv[1]])\n"
        "(id,) = sources.ids('trace')\n"
        "trace = sources.trace(id)\n"
        "sources.as_json(); token_table(trace); request_table(trace); expert_map(trace)\n"
        "expert_card(trace, 'L3.E5'); possible_layers(trace); layer_rows(trace, 'balance')\n"
        "compared_tokens(trace, trace); comparison_json(trace, trace); cache_rows(trace)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print('done')\n"
    ).replace("import *", "import Sources, token_table, request_table, expert_map, expert_card, possible_layers, "
              "layer_rows, compared_tokens, comparison_json, cache_rows")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
