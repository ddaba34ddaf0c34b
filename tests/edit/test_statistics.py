"""The folder of statistics: what it holds, what it refuses, and that two of them add up to one of both texts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.models import tiny_engine
from moeworks.edit.collect import COLLECTABLE, collect, columns_of
from moeworks.edit.statistics import COLUMNS, LayerRows, LayerStatistics
from moeworks.edit.statistics_file import HEADER, Statistics, layer_file, save_statistics
from moeworks.edit.statistics_sum import merge_statistics
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.schemas import json_schema_of

TEXTS = [
    ("The tower stands on a hill.", "en"),
    ("Rain.", "en"),
    ("Der Turm steht auf einem Berg, und es regnet.", "de"),
    ("La tour est sur une colline.", "fr"),
    ("One two three four five six.", "en"),
]
EXAMPLES = [Example(text=text, labels={"lang": lang}) for text, lang in TEXTS]
OPTIONS = {"label": "lang", "groups": [*COLLECTABLE], "batch_size": 2, "rows": 6}


@pytest.fixture(scope="module")
def engine():
    return tiny_engine("sigmoid_groups")


@pytest.fixture(scope="module")
def folders(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    collect(engine, EXAMPLES[:2], folder / "a", **OPTIONS)
    collect(engine, EXAMPLES[2:], folder / "b", **OPTIONS)
    collect(engine, EXAMPLES, folder / "both", **OPTIONS | {"rows": 0})
    return folder


def test_two_folders_add_up_to_one_of_both_texts(folders, tmp_path):
    merged = merge_statistics([folders / "b", folders / "a"], tmp_path / "sum", command="as typed")
    both = Statistics.open(folders / "both")
    assert merged.header.labels == ("de", "en", "fr")  # en is in both
    assert merged.header.tokens == both.header.tokens
    assert merged.header.texts == 5
    for layer in both:
        other = merged.layer(layer.layer)
        for name, (_, _, join, _) in COLUMNS.items():
            a, b = layer.arrays[name], other.arrays[name]
            if name in ("count", "first", "pairs"):
                assert a.dtype == b.dtype == np.int64
                assert np.array_equal(a, b), name
            elif join == "max":  # batches of other shapes round otherwise
                assert np.allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()), name
            else:
                assert np.allclose(a, b, rtol=1e-3, atol=1e-5 * max(np.abs(a).max(), 1e-9)), name
        assert np.array_equal(layer.sets[0], other.sets[0])
        assert np.array_equal(layer.sets[1], other.sets[1])
        parts = [Statistics.open(folders / name).layer(layer.layer).rows() for name in ("b", "a")]
        for field, values in zip(LayerRows._fields, other.rows(), strict=True):
            assert np.array_equal(values, np.concatenate([getattr(part, field) for part in parts]))
    again = merge_statistics([folders / "b", folders / "a"], tmp_path / "sum2")
    assert again.hash == merged.hash
    merged.verify()


def test_sums_are_exact_by_hand(folders):
    """Joined over labels, and of one label, by plain addition."""
    both = Statistics.open(folders / "both")
    count = both.array("count")  # (L, E)
    assert count.shape == (2, 16)
    assert np.array_equal(count, sum(both.array("count", label) for label in ("de", "en", "fr")))
    assert (count.sum(1) == 3 * sum(both.header.tokens)).all()
    assert np.array_equal(both.array("peak"), np.max([both.array("peak", v) for v in ("de", "en", "fr")], axis=0))
    pairs = both.array("pairs")
    assert np.array_equal(np.diagonal(pairs, axis1=1, axis2=2), count)
    assert np.array_equal(pairs, pairs.transpose(0, 2, 1))
    assert np.array_equal(both.layer(1).sets[1].sum(), sum(both.header.tokens))


def test_what_cannot_be_added_up_is_said_all_at_once(engine, folders, tmp_path):
    collect(engine, EXAMPLES[3:], tmp_path / "plain", groups=["cheap"])
    collect(tiny_engine("sigmoid_groups", seed=1), EXAMPLES[3:], tmp_path / "other", **OPTIONS)
    with pytest.raises(BadData) as error:
        merge_statistics([folders / "a", tmp_path / "plain", tmp_path / "other", folders / "a"], folders / "b")
    for part in (
        "b holds statistics already",
        "other is of another model (or other weights of it)",
        "plain tells texts apart by '', the first by 'lang'",
        "plain holds cheap, the first cheap, router",
        "some keep rows of text and some do not",
        "the same texts are in two of them",
    ):
        assert part in str(error.value)
    with pytest.raises(BadData, match="give two folders or more"):
        merge_statistics([folders / "a"], tmp_path / "x")
    merge_statistics([folders / "a", folders / "b"], tmp_path / "sum")
    with pytest.raises(BadData, match="same texts are in two"):
        merge_statistics([tmp_path / "sum", folders / "b"], tmp_path / "twice")


def test_unknown_versions_other_files_and_damage_are_refused(folders, tmp_path):
    import shutil

    def changed(**values):
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders / "a", copy)
        plain = json.loads((copy / HEADER).read_text())
        (copy / HEADER).write_text(json.dumps(plain | values))
        return copy

    with pytest.raises(BadData, match=r"is of version 2, this moeworks .* reads version 1"):
        Statistics.open(changed(version=2))
    with pytest.raises(BadData, match="no header of statistics"):
        Statistics.open(changed(format="moeworks.trace"))
    with pytest.raises(BadData, match="damaged: texts"):
        Statistics.open(changed(texts=-1))
    with pytest.raises(BadData, match="there are no statistics in"):
        Statistics.open(tmp_path / "nowhere")
    broken = changed()
    (broken / HEADER).write_text("{")
    with pytest.raises(BadData, match="no JSON"):
        Statistics.open(broken)
    short = changed()
    layer_file(short, 1).unlink()
    with pytest.raises(BadData, match=r"lacks files of layers \[1\]"):
        Statistics.open(short)
    cut = changed()
    layer_file(cut, 1).write_bytes(layer_file(cut, 1).read_bytes()[:-8])
    with pytest.raises(BadData, match="is damaged"):
        Statistics.open(cut).layer(1)
    swapped = changed()
    layer_file(swapped, 1).write_bytes(layer_file(swapped, 2).read_bytes())
    with pytest.raises(BadData, match=r"layers \[1\] are not those that were written"):
        Statistics.open(swapped).verify()
    with pytest.raises(BadData, match="has no layer 0; it has 1, 2"):
        Statistics.open(folders / "a").layer(0)


def test_what_is_missing_says_what_to_collect(engine, tmp_path):
    statistics = collect(engine, EXAMPLES, tmp_path / "s", groups=["cheap"])
    with pytest.raises(BadData, match="--collect means"):
        statistics.array("output_sum")
    with pytest.raises(BadData, match="no statistic is called 'counts'"):
        statistics.array("counts")
    with pytest.raises(BadData, match="no text has the label 'xx'"):
        statistics.array("count", "xx")


def test_statistics_that_are_at_hand_are_written_and_read_back(engine, tmp_path):
    count = np.array([[3, 0, 5, 1]])
    rows = LayerRows(
        np.ones((2, 3), np.float32), np.array([[0], [2]], np.int32), np.ones((2, 1), np.float32), np.zeros((2, 4), "f4")
    )
    layers = [
        LayerStatistics(
            layer=n,
            tokens=np.array([9]),
            labels=("all",),
            arrays={"count": count + n, "gate": (count + n) / 2},
            sets=(np.array([[0], [2]], np.int32), np.array([3, 6])),
            load_rows=lambda: rows,
        )
        for n in (1, 4)
    ]
    written = save_statistics(
        tmp_path / "s", layers, model=engine.identity, groups=["cheap"], texts=1, text_hash="t", seed=5
    )
    assert written.layers == [1, 4]
    assert len(written) == 2
    assert written.header.seed == 5
    assert np.array_equal(written.array("count"), [[4, 1, 6, 2], [7, 4, 9, 5]])
    assert np.array_equal(written.layer(4).rows().ids, rows.ids)
    assert np.array_equal(written.layer(4).sets[1], [3, 6])
    with pytest.raises(BadData, match="holds statistics already"):
        save_statistics(tmp_path / "s", layers, model=engine.identity, groups=[], texts=1, text_hash="")


def test_layers_of_other_shapes_are_taken_one_by_one(engine, tmp_path):
    layers = [
        LayerStatistics(layer=n, tokens=np.array([1]), labels=("all",), arrays={"count": np.zeros((1, n), np.int64)})
        for n in (2, 3)
    ]
    written = save_statistics(tmp_path / "s", layers, model=engine.identity, groups=[], texts=1, text_hash="")
    with pytest.raises(BadData, match="layers differ in the shape"):
        written.array("count")


def test_the_schema_names_every_field():
    schema = json_schema_of("statistics")
    assert {"labels", "tokens", "groups", "layers", "hash", "text_hash", "model"} <= schema["properties"].keys()


def test_columns_of_groups():
    assert columns_of(["router"]) == ("count", "pairs", "logit_gram")
    assert set(columns_of(COLLECTABLE)) == set(COLUMNS)
