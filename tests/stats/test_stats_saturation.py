"""Saturation between checkpoints: by hand, against a loop, at chance for random routing, and what is refused."""

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.errors import BadData
from moeworks.stats import saturation
from moeworks.where import Where


def write(path, ids, *, experts=4, tokens=None, text_hash="same", **writer):
    """Texts from lists of ids, (texts, tokens, k), all with one text hash."""
    header = make_header(model=make_identity((3,), experts, np.shape(ids[0])[1]), text_hash=text_hash)
    texts = [Text({}, {3: one}, tokens=tokens, document=f"d{i}") for i, one in enumerate(ids)]
    return write_texts(path, texts, header=header, **writer)


def test_saturation_by_hand(tmp_path):
    """k = 2 of 4. Overlaps 2, 1, 0, 1 of 2: mean 1/2, which is chance: k / E = 1/2, so that saturation is 0."""
    final = write(tmp_path / "final", [[[0, 1], [0, 1]], [[2, 3], [2, 0]]])
    early = write(tmp_path / "early", [[[1, 0], [1, 2]], [[0, 1], [3, 2]]])
    (line, same) = saturation([early, final], final, steps=[100, 900]).to_pylist()
    assert (line["step"], line["layer"], line["tokens"], line["documents"]) == (100, 3, 4, 2)
    assert (line["overlap"], line["chance"], line["saturation"]) == (0.5, 0.5, 0)
    # rates: early 2/4, 3/4, 2/4, 1/4; final 3/4, 2/4, 2/4, 1/4 → (6 + 6 + 4 + 1) / 16 / 2
    assert line["load_chance"] == pytest.approx(17 / 32)
    assert np.isnan(line["low"])
    assert (same["step"], same["overlap"], same["saturation"]) == (900, 1, 0.5)


def test_saturation_equals_a_loop_over_parts_that_are_cut_differently(tmp_path):
    """Python sets; a clause, slots that did not run, and parts of 1 and of many texts."""
    rng = np.random.default_rng(0)
    traces = []
    for name, part_bytes in (("early", 300), ("final", 2000)):
        texts = []
        for i in range(14):
            ids = rng.random((9, 6)).argpartition(3, axis=1)[:, :3]
            weights = (rng.random((9, 3)) > 0.2).astype(float)
            texts.append(Text({}, {3: ids.tolist()}, {3: weights.tolist()}, generated=4, document=f"d{i}"))
        header = make_header(model=make_identity((3,), 6, 3), text_hash="same")
        traces.append(write_texts(tmp_path / name, texts, header=header, part_bytes=part_bytes))
    early, final = traces
    assert len(early.parts) > len(final.parts) > 1
    (line,) = saturation([early], final, where=Where.parse("phase=generated")).to_pylist()
    sets = [
        [
            {e for e, w in zip(*row, strict=True) if w}
            for row in zip(trace.ids(3).tolist(), trace.weights(3).tolist(), strict=True)
        ]
        for trace in traces
    ]
    phase = final.rows().phase
    shared = [len(a & b) / 3 for a, b, p in zip(*sets, phase, strict=True) if p == 1]
    assert line["tokens"] == len(shared) == 14 * 4
    assert line["overlap"] == pytest.approx(np.mean(shared))


def test_independent_routers_are_at_chance(tmp_path):
    """Null: two traces drawn apart; the interval holds 0 in most layers (8 layers, 95 %)."""
    layers = tuple(range(8))
    early, final = (
        make_trace(tmp_path / str(seed), requests=40, rows_per_request=30, layers=layers, seed=seed,
                   header={"text_hash": "same"})
        for seed in (1, 2)
    )  # fmt: skip
    lines = saturation([_same_tokens(tmp_path, early, final)], final).to_pylist()
    assert sum(line["low"] <= 0 <= line["high"] for line in lines) >= 6
    assert all(line["load_chance"] == pytest.approx(line["chance"], abs=0.02) for line in lines)


def _same_tokens(tmp_path, trace, final):
    """The choices of one trace on the tokens of another."""
    request, tokens = final.rows().request, final.rows().token
    texts = [
        Text({}, {n: trace.ids(n)[request == i].tolist() for n in trace.layers}, tokens=tokens[request == i].tolist())
        for i in range(len(final.requests))
    ]
    header = make_header(model=final.header.model, text_hash="same")
    return write_texts(tmp_path / "moved", texts, header=header)


BASE = [[[0, 1], [2, 3]], [[1, 2], [0, 3]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_hash": "other"}, "was recorded from other texts than"),
        ({"tokens": [0, 5]}, "row 1 is another token"),
        ({"experts": 5}, "takes 2 of 5 experts in .*, but takes 2 of 4"),
        ({"ids": [[[0, 1], [2, 3]], [[1, 2]]]}, "has 3 rows and .* 4"),
        ({"ids": [[[0], [2]], [[1], [0]]]}, "takes 1 of 4 experts in"),
        ({"ids": [[[0, 1]], [[1, 2], [0, 3], [1, 0]]]}, "row 1 is another request"),
    ],
)
def test_traces_that_are_not_of_the_same_text_are_refused(tmp_path, changes, message):
    final = write(tmp_path / "final", BASE)
    ids = changes.pop("ids", BASE)
    with pytest.raises(BadData, match=message):
        saturation([write(tmp_path / "early", ids, **changes)], final)


def test_each_checkpoint_needs_a_step(tmp_path):
    final = write(tmp_path / "final", BASE)
    with pytest.raises(BadData, match="2 steps for 1 checkpoints"):
        saturation([final], final, steps=[1, 2])
    assert saturation([final, final], final)["step"].to_pylist() == [0, 1]
