"""Predictors of later layers: tables by hand, what each can and cannot know, recall, waste and chance."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData, Unsupported
from moeworks.place.gate import predict_by_gate
from moeworks.place.predict import predict_experts, recall_of
from moeworks.place.predictors import Chunk, make_predictor
from moeworks.trace import Trace


def hot(ids: list[int], experts: int) -> np.ndarray:
    """Return (n, E) rows with a 1 at each id."""
    return np.eye(experts, dtype=np.float32)[ids]


def chunk(token: list[int], *layers: list[int], experts: int = 3) -> Chunk:
    return Chunk(np.array(token), [hot(ids, experts) for ids in layers])


def test_markov_by_hand() -> None:
    """Layer 0's expert 0 is followed by 1, 1, 2: rates 0, 2/3, 1/3; expert 2 never ran: all say 1/4 2/4 1/4."""
    one = make_predictor("markov", (3, 3), distance=1)
    one.learn(chunk([0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 2, 0]))
    one.finish()
    scores = one.scores(chunk([0, 0, 0], [0, 1, 2], [0, 0, 0]), 0, 1)
    assert np.allclose(scores, [[0, 2 / 3, 1 / 3], [1, 0, 0], [1 / 4, 2 / 4, 1 / 4]])


def test_tokens_by_hand() -> None:
    """Token 7 used 2 twice at the target; token 9 was never seen, so that the load decides: 2 twice, 0 once."""
    one = make_predictor("token", (3, 3), distance=1)
    for _ in range(70):  # more texts than are merged at once
        one.learn(chunk([7, 7, 5], [0, 0, 0], [2, 2, 0]))
    one.finish()
    scores = one.scores(chunk([7, 5, 9], [0, 0, 0], [0, 0, 0]), 0, 1)
    assert scores.argmax(1).tolist() == [2, 0, 2]


def test_the_nearest_matrix_is_found_by_the_layers_seen_so_far() -> None:
    """Two stored texts: A uses 0 then 1, B uses 2 then 0. One that begins like B is told B's second layer.

    The released code compares layers seen with layers to come; it could not tell them apart.
    """
    one = make_predictor("activation_matrix", (3, 3), distance=1)
    one.learn(chunk([0, 0], [0, 0], [1, 1]))
    one.learn(chunk([0, 0], [2, 2], [0, 0]))
    one.finish()
    scores = one.scores(chunk([0, 0], [2, 0], [0, 0]), 0, 1)
    assert scores[0].tolist() == [2, 0, 0]
    # after the second token the text has used 2 and 0 equally in layer 0: the first of the equally near ones
    assert scores[1].tolist() == [0, 2, 0]


def test_the_collection_has_a_size() -> None:
    one = make_predictor("activation_matrix", (3, 3), distance=1, stored=5)
    for i in range(50):
        one.learn(chunk([0], [i % 3], [i % 3]))
    one.finish()
    assert len(one.matrices) == 5  # type: ignore[attr-defined]


def test_recall_by_hand() -> None:
    """Guess (0,1): of (1,2) one was found and one in vain; a slot that did not run is nobody's miss."""
    found, ran, wasted = recall_of(
        np.array([[0, 1], [0, 1]]), np.array([[1, 2], [1, 2]]), np.array([[0.5, 0.5], [1.0, 0.0]])
    )
    assert (found.tolist(), ran.tolist(), wasted.tolist()) == ([1, 1], [2, 1], [1, 1])


def chained(path: Path, *, texts: int = 14, length: int = 40) -> Trace:
    """Layer 2 uses expert e + 1 where layer 0 used e (mod 8); layer 5 follows the token id; layer 0 is random."""
    rng = np.random.default_rng(2)
    made = []
    for _ in range(texts):
        first, token = rng.integers(0, 8, length), rng.integers(0, 8, length)
        layers = {0: first, 2: (first + 1) % 8, 5: token}
        ids = {layer: chosen[:, None].tolist() for layer, chosen in layers.items()}
        made.append(Text({}, ids, tokens=token.tolist()))
    return write_texts(path, made, experts=(8, 8, 8))


def recalls(trace: Trace, **options: object) -> dict[tuple[str, int | None], float]:
    table = predict_experts(trace, **options).table  # type: ignore[arg-type]
    return {(row["predictor"], row["layer"]): row["recall"] for row in table.to_pylist()}


def test_each_finds_what_it_can_know(tmp_path: Path) -> None:
    trace = chained(tmp_path / "t")
    found = recalls(trace)
    assert found["markov", 2] == 1
    assert found["token", 5] == 1
    assert found["oracle", None] == 1
    for name in ("load", "activation_matrix", "token"):
        assert found[name, 2] < 0.35
    assert found["markov", 5] < 0.35
    far = recalls(trace, distance=2)
    assert far["token", 5] == 1
    assert ("token", 2) not in far


def test_the_matrix_foresees_what_belongs_to_a_text(tmp_path: Path) -> None:
    """Every text uses its kind's own expert in both layers, at random places of the other layer."""
    kinds = [(0, 3), (1, 5), (2, 7)]
    texts = [Text({}, {0: [[kinds[i % 3][0]]] * 9, 1: [[kinds[i % 3][1]]] * 9}) for i in range(18)]
    trace = write_texts(tmp_path / "t", texts, experts=(8, 8))
    found = recalls(trace, predictors=["activation_matrix", "load"])
    assert found["activation_matrix", 1] == 1
    assert found["load", 1] < 0.7


def test_chance_and_waste_by_hand(tmp_path: Path) -> None:
    """Layer 1 uses 0 in three of four tokens: guesses by load are right in 9/16 + 1/16; always 0 in 12/16."""
    ids = [[0], [0], [0], [1]] * 100
    texts = [Text({}, {0: [[2]] * 400, 1: ids}) for _ in range(6)]
    trace = write_texts(tmp_path / "t", texts, experts=(4, 4))
    table = predict_experts(trace, predictors=["load"], expert_bytes=1000.0).table
    row = next(row for row in table.to_pylist() if row["layer"] == 1)
    assert row["recall"] == 0.75
    assert row["chance"] == pytest.approx(10 / 16, abs=0.04)
    assert (row["wasted"], row["wasted_bytes"]) == (0.25, 250)
    wide = predict_experts(trace, predictors=["load"], width=3).table.to_pylist()[1]
    assert (wide["recall"], wide["wasted"]) == (1, 2)


def test_it_learns_from_other_documents_only(tmp_path: Path) -> None:
    """Every text has a token id of its own: what a token table knows of it cannot come from it."""
    texts = [Text({}, {0: [[0]] * 5, 1: [[i % 4]] * 5}, tokens=[i] * 5) for i in range(12)]
    trace = write_texts(tmp_path / "t", texts, experts=(4, 4))
    assert recalls(trace, predictors=["token"])["token", 1] <= 0.5


def test_parts_make_no_difference(tmp_path: Path) -> None:
    options = {"requests": 12, "rows_per_request": 6, "topic": 1.0}
    whole = make_trace(tmp_path / "a", **options)  # type: ignore[arg-type]
    parts = make_trace(tmp_path / "b", part_bytes=1, **options)  # type: ignore[arg-type]
    assert predict_experts(whole).table.equals(predict_experts(parts).table)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "t")
    for options, message in (
        ({"predictors": ["markow"]}, "did you mean 'markov'"),
        ({"distance": 2}, "not among 2 layers"),
        ({"width": 9}, "cannot be prefetched"),
    ):
        with pytest.raises(BadData, match=message):
            predict_experts(trace, **options)  # type: ignore[arg-type]


def test_the_gate_needs_a_loaded_model() -> None:
    from moeworks.engines import load

    with pytest.raises(Unsupported, match="transformers engine"):
        predict_by_gate(load("fake:single"), [])


@pytest.mark.slow
def test_the_gate_of_the_lab_model(tmp_path: Path) -> None:
    """The next router, asked early, beats guesses; two layers ahead less so; the model is left as it was."""
    from moeworks.engines import load
    from moeworks.probes import load_probe

    engine = load("lab")
    texts = list(islice(load_probe("domain/code_python").texts("find"), 8))
    hooks = [len(router.module._forward_hooks) for router in engine.routers]  # type: ignore[attr-defined]
    near, far = (predict_by_gate(engine, texts, distance=distance).table.to_pylist()[0] for distance in (1, 2))
    assert near["recall"] > far["recall"] > far["chance"]
    assert hooks == [len(router.module._forward_hooks) for router in engine.routers]  # type: ignore[attr-defined]
    trace = engine.record(texts, tmp_path / "t", batch_size=1)
    assert len(trace) > near["recall"]
