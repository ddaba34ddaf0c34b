"""Scores of neurons: the extra column, a method without a null, and files from before either was there."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from moeworks.errors import BadData
from moeworks.find import Scores, ScoresHeader
from moeworks.find.artefact import COLUMNS, NEURON_COLUMNS, hash_scores

HEADER = {
    "moeworks": "0",
    "contrast": "side=contrast",
    "against": "side=against",
    "method": "made_up",
    "aggregate": "macro",
    "documents": (6, 6),
    "pairs": 0,
    "tokens": (60, 60),
    "permutations": 0,
    "drawn": 0,
    "exhaustive": False,
    "smallest_p": 1.0,
    "alpha": 0.05,
    "bootstrap": 0,
    "top": 10,
}


def neuron_scores() -> Scores:
    """Two neurons of L0.E1 and one of L2.E0, not tested."""
    n = 3
    columns = dict.fromkeys(COLUMNS.names, np.full(n, np.nan)) | {
        "layer": np.array([0, 0, 2], np.int32),
        "expert": np.array([1, 1, 0], np.int32),
        "neuron": np.array([4, 7, 5], np.int32),
        "score": np.array([1.5, -3.0, 2.0]),
        "contrast_rate": np.array([2.0, 0.0, 2.5]),
        "against_rate": np.array([0.5, 3.0, 0.5]),
        "passes": np.zeros(n, bool),
    }
    table = pa.table({name: columns[name] for name in NEURON_COLUMNS.names}, schema=NEURON_COLUMNS)
    header = ScoresHeader(**HEADER, null="none", unit="neuron", quantity="activation")
    return Scores(table, header.model_copy(update={"hash": hash_scores(table, header)}))


def test_neurons_are_saved_and_loaded(tmp_path) -> None:
    scores = neuron_scores()
    loaded = Scores.load(scores.save(tmp_path / "s.arrow"))
    assert loaded.table.schema == scores.table.schema
    for name in NEURON_COLUMNS.names:  # NaN is not equal to itself in Arrow
        np.testing.assert_array_equal(loaded.column(name), scores.column(name))
    assert loaded.header == scores.header
    assert loaded.unit == "neuron"
    assert loaded.table.column_names[:3] == ["layer", "expert", "neuron"]


def test_the_hash_covers_neurons(tmp_path) -> None:
    scores = neuron_scores()
    neurons = pa.array([4, 7, 6], pa.int32())
    Scores(scores.table.set_column(2, NEURON_COLUMNS.field(2), neurons), scores.header).save(tmp_path / "s.arrow")
    with pytest.raises(BadData, match="altered"):
        Scores.load(tmp_path / "s.arrow")


def test_the_strongest_neurons() -> None:
    scores = neuron_scores()
    assert scores.top(5)["neuron"].to_pylist() == [5, 4]
    assert scores.top(5, sign=0)["neuron"].to_pylist() == [7, 5, 4]
    with pytest.raises(BadData, match="no grid of experts"):
        scores.matrix()


def test_words_of_scores_without_a_test() -> None:
    assert neuron_scores().summary(2).splitlines()[-4:] == [
        "  null     none: a ranking without a test",
        "No test was made, so none of them passes. The strongest of 3 neurons:",
        "  L0.E1.N7  -3, activation 0 against 3",
        "  L2.E0.N5  +2, activation 2.5 against 0.5",
    ]


def test_fields_that_came_later_leave_old_hashes_as_they_were() -> None:
    """A file written before `unit` and `quantity` were there must still load: its hash did not know them."""
    later = {"unit", "quantity", "tail", "match", "downweight", "label", "target", "facts", "notes"}
    table = pa.table({n: np.zeros(1, COLUMNS.field(n).type.to_pandas_dtype()) for n in COLUMNS.names}, schema=COLUMNS)
    header = ScoresHeader(**HEADER, null="labels")
    old = header.model_copy(update={"hash": ""}).model_dump_json(exclude=later)
    digest = hashlib.blake2b(old.encode(), digest_size=16)
    for name in COLUMNS.names:
        digest.update(np.ascontiguousarray(table[name].to_numpy()).tobytes())
    assert hash_scores(table, header) == digest.hexdigest()
    assert hash_scores(table, header.model_copy(update={"quantity": "activation"})) != digest.hexdigest()
