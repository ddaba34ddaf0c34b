"""Routes of other engines become traces: round trips through their documented forms, and what is refused."""

import base64
import io
import json

import numpy as np
import pytest

from helpers.traces import make_identity, make_trace
from moeworks.artefact import EngineIdentity
from moeworks.compare import compare
from moeworks.errors import BadData
from moeworks.stats import balance
from moeworks.trace.importers import import_answers, import_table

MOE = (1, 3)  # routers of a model with layers 0 to 3, of which 0 and 2 are dense


@pytest.fixture
def trace(tmp_path):
    return make_trace(tmp_path / "own", layers=MOE, generated=4, requests=3, experts=8, top_k=2)


def routes_of(trace, request, layers=4):
    """(tokens, hidden layers, k): what a server returns, dense layers zero."""
    rows = trace.rows().request == request
    routes = np.zeros((int(rows.sum()), layers, 2), np.int64)
    for layer in MOE:
        routes[:, layer] = trace.ids(layer)[rows]
    return routes


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def answers(trace, *, start=0, form="offline", dtype=np.uint8):
    """One JSON object a request; the last token of the text, 7, was sampled and never processed."""
    rows = trace.rows()
    for request in range(len(trace.requests)):
        here = rows.request == request
        tokens, prompt = rows.token[here].tolist(), int((rows.phase[here] == 0).sum())
        ids = {"prompt_token_ids": tokens[:prompt], "token_ids": [*tokens[prompt:], 7]}
        routes = routes_of(trace, request).astype(dtype)[start:]
        if form == "offline":
            yield {
                **ids,
                "routed_experts": npy(routes),
                "routed_experts_prompt_start": start,
                "document": f"d{request}",
            }
        elif form == "server":
            choice = {"token_ids": ids["token_ids"], "routed_experts": npy(routes)}
            yield {"prompt_token_ids": ids["prompt_token_ids"], "choices": [choice]}
        else:
            raw = base64.b64encode(routes.astype("<i4").tobytes()).decode()
            yield {
                "input_ids": ids["prompt_token_ids"],
                "output_ids": ids["token_ids"],
                "meta_info": {"routed_experts": raw},
                "routed_experts_start_len": start,
            }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("form", "dtype", "format"),
    [("offline", np.uint8, "vllm"), ("server", np.int16, "vllm"), ("sglang", np.int32, "sglang")],
)
def test_answers_give_the_decisions_back(tmp_path, trace, form, dtype, format):
    source = write(tmp_path / "a.jsonl", answers(trace, form=form, dtype=dtype))
    found = import_answers(source, tmp_path / "in", model=trace.header.model, format=format, version="0.33")
    for layer in MOE:
        assert np.array_equal(found.ids(layer), trace.ids(layer))
        assert np.isnan(found.weights(layer)).all()
    for name in ("request", "position", "token", "phase"):
        assert np.array_equal(getattr(found.rows(), name), getattr(trace.rows(), name))
    assert (found.header.lacks, found.header.engine.name) == (("weights",), format)
    found.verify()
    compared = compare(trace, found)
    assert compared.lacks == ("weights",)
    assert [line["flips"] for line in compared.layers.to_pylist()] == [0, 0]
    assert balance(found).column("max_violation").to_pylist() == balance(trace).column("max_violation").to_pylist()


@pytest.mark.parametrize("form", ["offline", "sglang"])
def test_a_start_offset_leaves_its_rows_out_and_counts_them(tmp_path, trace, form):
    source = write(tmp_path / "a.jsonl", answers(trace, start=3, form=form))
    format = "sglang" if form == "sglang" else "vllm"
    found = import_answers(source, tmp_path / "in", model=trace.header.model, format=format)
    assert found.header.dropped == {"sliced": 9}
    assert found.rows().position.min() == 3
    found.verify()
    compared = compare(trace, found)
    assert (compared.rows, compared.only_first) == (len(trace) - 9, 9)
    assert all(line["flips"] == 0 for line in compared.layers.to_pylist())


def broken(trace, change):
    rows = list(answers(trace))
    routes = routes_of(trace, 1).astype(np.int64)
    rows[1]["routed_experts"] = npy(change(routes))
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r * 0, "all zeros: nothing was captured"),
        (lambda r: r + 8 * (np.arange(4) == 3)[:, None], "layer 3: expert 15, but they are 0 to 7"),
        (lambda r: r[:, ::-1], "no router there"),
        (lambda r: r[:-1], "9 rows of routes"),
        (lambda r: r[:, :3], "the routes have 3 layers"),
        (lambda r: r[..., :1], "1 experts a token, the model takes 2"),
        (lambda r: r.astype(np.float32), "not ids"),
        (lambda r: np.where(r == r.max(), -1, r), "expert -1"),
    ],
)
def test_routes_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, trace, change, message):
    source = write(tmp_path / "a.jsonl", broken(trace, change))
    with pytest.raises(BadData, match=message) as error:
        import_answers(source, tmp_path / "in", model=trace.header.model, format="vllm")
    assert "line 2" in str(error.value)
    assert not (tmp_path / "in").exists()


def test_routers_alone_and_a_fused_shared_expert(tmp_path, trace):
    """TensorRT-LLM counts the layers with routers alone; a fused shared expert is slot k with an id from E on."""
    rows = list(answers(trace))
    for request, row in enumerate(rows):
        routes = routes_of(trace, request)[:, list(MOE)]
        shared = np.full((*routes.shape[:2], 1), 8)
        row["routed_experts"] = npy(np.concatenate([routes, shared], -1))
    found = import_answers(write(tmp_path / "a.jsonl", rows), tmp_path / "in", model=trace.header.model, format="vllm")
    assert all(np.array_equal(found.ids(layer), trace.ids(layer)) for layer in MOE)


def test_all_bad_lines_are_named(tmp_path, trace):
    rows = list(answers(trace))
    rows[0].pop("routed_experts")
    rows[2]["token_ids"] = "seven"
    with pytest.raises(BadData, match=r"(?s)2 problems.*line 1: no routed experts.*line 3: no list of token ids"):
        import_answers(write(tmp_path / "a.jsonl", rows), tmp_path / "in", model=trace.header.model, format="vllm")


def table_text(trace, *, weights=True):
    rows = trace.rows()
    head = ["request", "position", "token", "layer", "phase", "label.lang", "expert_0", "expert_1"]
    lines = [",".join([*head, *(["weight_0", "weight_1"] if weights else [])])]
    phases = ("prompt", "generated", "forced")
    for n in range(len(rows)):
        for layer in reversed(MOE):
            own = [rows.request[n], rows.position[n], rows.token[n], layer, phases[rows.phase[n]], "fr"]
            held = [repr(float(w)) for w in trace.weights(layer)[n]] if weights else []
            lines.append(",".join(map(str, [*own, *trace.ids(layer)[n], *held])))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("weights", [True, False])
def test_a_table_gives_the_decisions_back(tmp_path, trace, weights):
    source = tmp_path / "t.csv"
    source.write_text(table_text(trace, weights=weights))
    engine = EngineIdentity(name="mine", version="1", dtype="float32")
    found = import_table(source, tmp_path / "in", model=trace.header.model, engine=engine)
    compared = compare(trace, found)
    assert compared.identical
    assert compared.lacks == (() if weights else ("weights",))
    assert set(found.request_table().labels["lang"]) == {"fr"}
    assert found.rows().phase.tolist() == trace.rows().phase.tolist()
    if weights:
        assert all(np.array_equal(found.weights(layer), trace.weights(layer)) for layer in MOE)


def test_a_table_that_lacks_something(tmp_path, trace):
    lines = table_text(trace).splitlines()
    source = tmp_path / "t.csv"
    source.write_text("\n".join([*lines[:5], *lines[6:]]) + "\n")
    with pytest.raises(BadData, match="not one row for each of the layers 1, 3"):
        import_table(source, tmp_path / "in", model=trace.header.model)
    source.write_text("\n".join(line.partition(",")[2] for line in lines) + "\n")
    with pytest.raises(BadData, match="lacks the columns request"):
        import_table(source, tmp_path / "in", model=trace.header.model)
    with pytest.raises(BadData, match="cannot read"):
        import_table(tmp_path / "none.csv", tmp_path / "in", model=make_identity(MOE))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("routed_experts_prompt_start", "three", "position 'three'"),
        ("routed_experts_prompt_start", -1, "position -1"),
        ("labels", ["fr"], r"'labels' is \['fr'\], not an object"),
        ("token_ids", [2**40], "no list of token ids"),
        ("choices", [7], "no routed experts"),
        ("routed_experts", "!", "not base64"),
    ],
)
def test_fields_of_the_wrong_kind_are_named(tmp_path, trace, field, value, message):
    rows = [{**row, field: value} for row in answers(trace)]
    if field == "choices":
        rows = [{name: v for name, v in row.items() if name != "routed_experts"} for row in rows]
    with pytest.raises(BadData, match=message):
        import_answers(write(tmp_path / "a.jsonl", rows), tmp_path / "in", model=trace.header.model, format="vllm")
    assert not (tmp_path / "in").exists()


def test_a_null_in_a_choice_does_not_hide_what_the_answer_says(tmp_path, trace):
    rows = [
        dict(row, choices=[dict(row["choices"][0], prompt_token_ids=None)]) for row in answers(trace, form="server")
    ]
    found = import_answers(write(tmp_path / "a.jsonl", rows), tmp_path / "in", model=trace.header.model, format="vllm")
    assert len(found) == len(trace)


def test_a_table_of_the_wrong_kind(tmp_path, trace):
    lines = table_text(trace).splitlines()
    source = tmp_path / "t.csv"
    for row, message in (
        (lines[3].replace(",", ",x", 1), "position holds string, not whole numbers"),
        (",".join([*lines[3].split(",")[:6], "", *lines[3].split(",")[7:]]), "expert_0 lacks 1 of 60 values"),
    ):
        source.write_text("\n".join([*lines[:3], row, *lines[4:]]) + "\n")
        with pytest.raises(BadData, match=message):
            import_table(source, tmp_path / "in", model=trace.header.model)
    source.write_text("\n".join([*lines[:5], *lines[7:]]) + "\n")
    with pytest.raises(BadData, match="request 0 has position 3 after 1"):
        import_table(source, tmp_path / "in", model=trace.header.model)
    assert not (tmp_path / "in").exists()
