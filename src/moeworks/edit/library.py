"""A library of plans for tasks, found again by how a router takes a text: PreMoE's retrieval.

A folder with one folder for each plan: `plan.json`, `signature.arrow` (a vector for each layer) and `entry.json`, which
is written last, so that an entry without it is no entry.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.artefact import ModelIdentity, problems_of, replace_file
from moeworks.edit.files import edit_plan_hash, load_edit_plan, save_edit_plan
from moeworks.edit.plan import EditPlan
from moeworks.edit.scores.base import stacked, tokens_of
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, did_you_mean

if TYPE_CHECKING:
    from moeworks.edit.planning import StatisticsLike
    from moeworks.engines.base import Engine
    from moeworks.examples import Example

__all__ = ["Found", "PlanLibrary", "Signature", "signature_of", "signature_of_prompt"]

Array = NDArray[Any]
Signature = Mapping[int, Array]  # layer → (E,) mean over tokens of the raw logit where it is the token's largest
_NAME = re.compile(r"[\w][\w.-]*")


class Found(NamedTuple):
    """One plan of the library, and how far its text is from the one asked for."""

    name: str
    distance: float
    plan: EditPlan


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = "moeworks.library"
    version: int = 1
    name: str
    model: ModelIdentity = Field(description="the model that statistics and plan are of")
    tokens: int = Field(description="tokens that the signature is the mean of")
    label: str = Field("", description="value of the label that the signature is of; empty: all text")
    plan_hash: str


def signature_of(statistics: StatisticsLike | Sequence[LayerStatistics], label: str | None = None) -> dict[int, Array]:
    """Return the TCESS vector of every layer, of all text or of one value of the label.

    Source: PreMoE, arXiv 2505.17639v1, whose index holds that of the first layer with experts.
    """
    layers = list(statistics) if isinstance(statistics, Sequence) else [statistics.layer(n) for n in statistics.layers]
    tokens = tokens_of(layers, label)[:, 0]
    if not (tokens > 0).all():
        raise BadData("a signature is a mean over tokens, and there are none; score some text first.")
    sums = stacked(layers, "top_logit", label)
    return {layer.layer: row / count for layer, row, count in zip(layers, sums, tokens, strict=True)}


def signature_of_prompt(engine: Engine, prompt: str | Example | Sequence[str | Example]) -> dict[int, Array]:
    """Return the signature of one or several prompts, by recording what the routers make of them.

    PreMoE runs the first layers only; here the model runs whole, once over the prompts.

    Raises:
        BadData: there is no prompt.
    """
    import tempfile

    from moeworks.examples import Example as Text

    given = [prompt] if isinstance(prompt, (str, Text)) else list(prompt)
    texts = [Text(text=text) if isinstance(text, str) else text for text in given]
    if not texts:
        raise BadData("there is no prompt to look up.")
    with tempfile.TemporaryDirectory() as folder:
        trace = engine.record(texts, Path(folder) / "trace", logits=True)
        found = {}
        for layer in trace.layers:
            logits = np.asarray(trace.logits(layer), np.float64)  # (n, E)
            sums = np.zeros(logits.shape[1])
            np.add.at(sums, logits.argmax(1), logits.max(1))
            found[layer] = sums / len(logits)
    return found


class PlanLibrary:
    """Plans for tasks, looked up by the nearest router signature."""

    def __init__(self, folder: str | Path) -> None:
        """Open a library; a folder that is not there is an empty one until something is added."""
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Return the names of all plans."""
        if not self.folder.is_dir():
            return []
        return sorted(path.parent.name for path in self.folder.glob("*/entry.json"))

    def add(
        self,
        name: str,
        statistics: StatisticsLike | Sequence[LayerStatistics],
        plan: EditPlan,
        *,
        label: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Put a plan into the library under the signature of its text.

        Args:
            name: of the task; letters, digits, `.`, `-` and `_`.
            statistics: of the task's text, of the same model.
            plan: what is to be used for this task.
            label: take the signature of one value of the label.
            overwrite: replace a plan of the same name.

        Raises:
            BadData: the name cannot be used or is taken, or the plan is for another model than the library's.
        """
        if not _NAME.fullmatch(name):
            raise BadData(f"'{name}' is no name for a plan in a library; use letters, digits, '.', '-' and '_'.")
        if name in self.names() and not overwrite:
            raise BadData(f"the library has a plan '{name}' already; choose another name, or overwrite it.")
        if plan.model is None:
            raise BadData("the plan does not say which model it is for.")
        others = [entry for entry in map(self._entry, self.names()) if entry.name != name]
        if others and others[0].model.weight_hash != plan.model.weight_hash:
            raise BadData(f"this library is of {others[0].model.name}; signatures of other weights do not compare.")
        signature = signature_of(statistics, label)
        wrong = [shape.layer for shape in plan.model.layers if len(signature.get(shape.layer, ())) != shape.experts]
        if wrong:
            raise BadData(f"the statistics do not cover layers {', '.join(map(str, wrong))} of the plan's model.")
        layers = list(statistics) if isinstance(statistics, Sequence) else [statistics.layer(statistics.layers[0])]
        entry = _Entry(
            name=name,
            model=plan.model,
            tokens=int(tokens_of(layers[:1], label)[0, 0]),
            label=label or "",
            plan_hash=edit_plan_hash(plan),
        )
        home = self.folder / name
        (home / "entry.json").unlink(missing_ok=True)
        save_edit_plan(plan, home / "plan.json")
        table = pa.table(
            {
                "layer": pa.array(list(signature), pa.int32()),
                "signature": pa.array([row.tolist() for row in signature.values()], pa.list_(pa.float64())),
            }
        )
        with (
            replace_file(home / "signature.arrow") as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        with replace_file(home / "entry.json") as path:
            path.write_text(json.dumps(entry.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")

    def remove(self, name: str) -> None:
        """Take a plan out of the library."""
        self._entry(name)
        (self.folder / name / "entry.json").unlink()
        shutil.rmtree(self.folder / name)

    def plan(self, name: str) -> EditPlan:
        """Return a plan by its name.

        Raises:
            BadData: there is none, or its file is not the one that was put in.
        """
        entry = self._entry(name)
        plan = load_edit_plan(self.folder / name / "plan.json")
        if edit_plan_hash(plan) != entry.plan_hash:
            raise BadData(f"the plan '{name}' was changed since it was put into the library; add it again.")
        return plan

    def nearest(self, signature: Signature, *, all_layers: bool = False) -> list[tuple[str, float]]:
        """Return the names of all plans with their distances, the nearest first; equal ones by name.

        Args:
            signature: of `signature_of` or `signature_of_prompt`.
            all_layers: Euclidean distance over the vectors of all layers, and not over that of the first alone.

        Raises:
            BadData: the library is empty, or the signature is of another model.
        """
        if not self.names():
            raise BadData(f"there is no plan in {self.folder}; add some first.")
        found = []
        for name in self.names():
            stored = self._signature(name)
            layers = sorted(stored) if all_layers else [min(stored)]
            if any(len(signature.get(layer, ())) != len(stored[layer]) for layer in layers):
                raise BadData(f"this signature is not of the model of the plan '{name}': other layers or experts.")
            square = sum(float(((np.asarray(signature[layer]) - stored[layer]) ** 2).sum()) for layer in layers)
            found.append((name, float(np.sqrt(square))))
        return sorted(found, key=lambda pair: (pair[1], pair[0]))

    def find(
        self,
        signature: Signature | None = None,
        *,
        engine: Engine | None = None,
        prompt: str | Example | Sequence[str | Example] | None = None,
        all_layers: bool = False,
    ) -> Found:
        """Return the plan whose text was routed most like a signature, or like prompts that an engine runs.

        The nearest one is returned however far it is; look at `distance`, or at `nearest` for the others.

        Raises:
            BadData: neither or both are given, the engine's model is not the library's, or the library is empty.
        """
        if (signature is None) == (engine is None or prompt is None):
            raise BadData("look up either a signature, or a prompt with the engine that runs it.")
        if signature is None:
            assert engine is not None
            assert prompt is not None
            for entry in map(self._entry, self.names()[:1]):
                if entry.model.weight_hash != engine.identity.weight_hash:
                    raise BadData(f"this library is of {entry.model.name}, and the engine runs {engine.identity.name}.")
            signature = signature_of_prompt(engine, prompt)
        name, distance = self.nearest(signature, all_layers=all_layers)[0]
        return Found(name, distance, self.plan(name))

    def _entry(self, name: str) -> _Entry:
        file = self.folder / name / "entry.json"
        if name not in self.names():
            raise BadData(f"the library has no plan '{name}'; {did_you_mean(name, self.names())}")
        try:
            return _Entry.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise BadData(f"{file} is damaged: {problems_of(error)}; add the plan again.") from None

    def _signature(self, name: str) -> dict[int, Array]:
        with pa.memory_map(str(self.folder / name / "signature.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
        vectors = table["signature"].to_pylist()
        return {layer: np.array(row) for layer, row in zip(table["layer"].to_pylist(), vectors, strict=True)}
