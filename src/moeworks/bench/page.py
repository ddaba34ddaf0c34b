"""`docs/league.md`: how the league was run, a reading, the tables and the pictures, all from `league.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from moeworks.artefact import replace_file
from moeworks.bench.edit_table import edit_tables, read_editing
from moeworks.bench.picture import save_detection, save_steering
from moeworks.bench.reading import read_detection, read_steering
from moeworks.bench.schema import DetectCell, EditCell, League, Settings, SteerCell
from moeworks.bench.table import detection_tables, steering_tables
from moeworks.lab import LAB_MODELS, lab_path

__all__ = ["page", "save_page"]

HEAD = """# League tables

Every registered method on every probe: the same texts, the same number of experts, the same controls. Made by
`make league` from what was measured; nothing here is written by hand. What each method is: [methods](methods.md).

On **planted** models the truth is known. One expert carries the behaviour (`single`), five share it (`spread`), two
must act together (`pair`), one neuron of an expert that runs on both sides alike does (`neurons`), only the choice
between two experts does (`routing`). In `residual` no expert carries it and routing does not show it; in `topic`,
`length` and `token` no expert carries it either, and routing follows something else that the two sides differ in.
Models are small torch mixtures (four layers, 16 experts each, two run), one for each seed. Carried behaviours are
contrasted on pairs of texts of the same words, `token` too; nulls and the other probes on texts that differ.
Seconds are those of one thread, with whatever else the machine was doing.
"""


def save_page(league: League, path: Path) -> None:
    """Write the page and, beside it in `images`, its pictures."""
    images = path.parent / "images"
    if league.detect:
        save_detection(league.detect, images / "league-detect.png")
    if league.steer:
        save_steering(league.steer, images / "league-steer.png")
    with replace_file(path) as temporary:
        temporary.write_text(page(league), encoding="utf-8")


def page(league: League) -> str:
    """Return the page as Markdown."""
    parts = [HEAD.strip()]
    if league.detect:
        parts.append("## Detection")
        parts.append("![Which claims are right, method by method](images/league-detect.png)")
        for model, cells in _by_model(league.detect):
            parts += [f"### {_title(model)}: detection", read_detection(cells, model=f"`{model}`")]
            parts.append(_how(model, league.detect_settings[model]))
            parts.append(detection_tables(cells, planted=any(cell.kind == "planted" for cell in cells)))
    if league.steer:
        parts.append("## Steering")
        parts.append(
            "A method's first experts, as many as there are to be found on a planted model and as many as the budget"
            " says elsewhere, are turned down, whether they pass or not; policies do what they were published with, to"
            " the scores that they were published with. Of scores of neurons as many neurons are set to 0 (on a real"
            " model a quarter of an expert's neurons for each expert). On planted models, what turns a behaviour up is"
            " measured where it is off; a real probe has one set of items."
        )
        parts.append("![What works, method by method](images/league-steer.png)")
        for model, steered in _by_model(league.steer):
            parts += [f"### {_title(model)}: steering", read_steering(steered, model=f"`{model}`")]
            parts.append(_how(model, league.steer_settings[model]))
            parts.append(steering_tables(steered))
    if league.edit:
        parts.append("## Editing")
        parts.append(
            "Every registered way to cut, merge or thin experts, at two shares, carried out in memory and measured on"
            " held-out neutral texts. Plans are made from statistics of texts of all languages and domains (matching)"
            " and of English alone (mismatching); methods run with their defaults, super experts protected."
        )
        for model, edited in _by_model(league.edit):
            parts += [f"### {_title(model)}: editing", read_editing(edited, model=f"`{model}`")]
            parts.append(_how_edited(model, league.edit_settings[model]))
            parts.append(edit_tables(edited))
    return "\n\n".join(parts) + "\n"


def _by_model(cells: Sequence[DetectCell] | Sequence[SteerCell] | Sequence[EditCell]) -> Iterator[tuple[str, list]]:  # type: ignore[type-arg]
    for model in dict.fromkeys(cell.model for cell in cells):
        yield model, [cell for cell in cells if cell.model == model]


def _title(model: str) -> str:
    return {"planted": "Planted models", "fake": "Planted models in numpy"}.get(model, f"Model `{model}`")


def _how(model: str, settings: Settings) -> str:
    sizes, planted = settings.sizes, not settings.weights
    texts = f"{sizes['documents']} texts of a probe" if planted else f"{sizes['texts'] or 'all'} texts of a probe"
    versions = ", ".join(f"{name} {number}" for name, number in settings.versions.items())
    return (
        f"Budget `{settings.budget}`: {settings.seeds} seeds ({settings.null_seeds} of nulls), {texts},"
        f" {sizes['experts']} experts where nothing says how many are sought, {sizes['permutations']} permutations,"
        f" {sizes['controls']} random plans; made with {versions}."
        + ("" if planted else f" {_weights(model, settings)}")
    )


def _how_edited(model: str, settings: Settings) -> str:
    sizes = settings.sizes
    versions = ", ".join(f"{name} {number}" for name, number in settings.versions.items())
    return (
        f"Budget `{settings.budget}`: {sizes['calibration']} calibration texts, {sizes['rows']} rows kept, "
        f"{sizes['neutral'] or 'all'} test texts, {sizes['items'] or 'all'} items of each probe, {settings.seeds} "
        f"random cuts; made with {versions}. {_weights(model, settings)}"
    )


def _weights(model: str, settings: Settings) -> str:
    """Return which weights were measured, and a warning where a lab model has others by now."""
    words = f"Hash of the weights: {settings.weights}."
    if model in LAB_MODELS:
        shipped = json.loads((lab_path(model) / "measured.json").read_text(encoding="utf-8"))["weight_hash"]
        if shipped != settings.weights:
            words += f" **These were an earlier version's: `{model}` was trained anew since ({shipped}).**"
    return words
