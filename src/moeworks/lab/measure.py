"""Measure a lab model with our own engine and write `measured.json` and the tables of its card, `README.md`.

python -m moeworks.lab.measure --model lab
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import moeworks
from moeworks.artefact import replace_file
from moeworks.errors import MoeworksError
from moeworks.lab import LAB_MODELS, lab_path
from moeworks.probes import Item, load_probe, neutral_texts, probe_names
from moeworks.stats import balance, load

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["Measured", "Share", "main", "measure", "render"]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NEW_TOKENS = 12  # a refusal shows in its first words


class Share(BaseModel):
    """A share of items for which something holds."""

    model_config = ConfigDict(frozen=True)

    what: str
    share: float = Field(ge=0, le=1)
    items: int = Field(gt=0)


class Perplexity(BaseModel):
    """Perplexity per token over some texts."""

    model_config = ConfigDict(frozen=True)

    what: str
    perplexity: float
    tokens: int
    texts: int


class LayerBalance(BaseModel):
    """How evenly one layer uses its experts over the neutral texts."""

    model_config = ConfigDict(frozen=True)

    layer: int
    least: float = Field(ge=0, description="load of the least used expert, as a share of its fair share")
    most: float = Field(description="load of the most used expert, as a multiple of its fair share")
    effective_experts: float


class Measured(BaseModel):
    """What was measured, on which weights, with what."""

    model_config = ConfigDict(frozen=True)

    moeworks: str
    engine: str
    weight_hash: str
    shares: tuple[Share, ...]
    by_language: tuple[Perplexity, ...]
    by_domain: tuple[Perplexity, ...]
    balance: tuple[LayerBalance, ...] = ()


def measure(engine: Engine) -> Measured:
    """Run the items of the built-in probes and the neutral texts through a model; both splits beside `find`."""
    by_language, by_domain = _perplexities(engine)
    return Measured(
        moeworks=moeworks.__version__,
        engine=f"{engine.engine.name} {engine.engine.version}, {engine.engine.dtype}",
        weight_hash=engine.identity.weight_hash,
        shares=(*_facts(engine), *_tasks(engine), *_openbook(engine), *_requests(engine)),
        by_language=by_language,
        by_domain=by_domain,
        balance=tuple(_balance(engine)),
    )


def render(measured: Measured) -> str:
    """Return the tables as Markdown."""
    lines = [
        f"Measured with moeworks {measured.moeworks}, {measured.engine}, weights `{measured.weight_hash}`.",
        "Items are those of the built-in probes that are not used for finding; an exact answer is what greedy",
        "decoding would produce. Perplexity is per token, over the neutral texts, which no probe contains.",
        "",
        "| what | share | items |",
        "| --- | --- | --- |",
        *(f"| {row.what} | {row.share:.3f} | {row.items} |" for row in measured.shares),
    ]
    for title, rows in (("language", measured.by_language), ("domain", measured.by_domain)):
        lines += ["", f"| {title} | perplexity | tokens | texts |", "| --- | --- | --- | --- |"]
        lines += [f"| {row.what} | {row.perplexity:.1f} | {row.tokens} | {row.texts} |" for row in rows]
    if measured.balance:
        lines += [
            "",
            "| layer | least used expert | most used expert | effective experts |",
            "| --- | --- | --- | --- |",
        ]
        lines += [f"| {b.layer} | {b.least:.2f} | {b.most:.2f} | {b.effective_experts:.1f} |" for b in measured.balance]
        lines += ["", "Loads are multiples of an expert's fair share, over the neutral texts."]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="lab", help="a lab model, or the folder of another checkpoint of one")
    parser.add_argument("--output", type=Path, help="folder with README.md; by default the model's own")
    arguments = parser.parse_args()
    measured = measure(moeworks.load(arguments.model))
    own = lab_path(arguments.model) if arguments.model in LAB_MODELS else Path(arguments.model)
    output = arguments.output or own
    card = output / "README.md"
    text = fill(card.read_text(encoding="utf-8"), render(measured))
    with replace_file(output / "measured.json") as temporary:
        content = json.dumps(measured.model_dump(mode="json"), indent=1, ensure_ascii=False)
        temporary.write_text(content + "\n", encoding="utf-8")
    with replace_file(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(render(measured))


def fill(card: str, block: str) -> str:
    """Return the card with what stands between its two marks replaced."""
    if card.count(BEGIN) != 1 or card.count(END) != 1 or card.index(BEGIN) > card.index(END):
        raise MoeworksError(f"the card needs one {BEGIN} and, after it, one {END}.")
    return f"{card[: card.index(BEGIN)]}{BEGIN}\n{block}\n{card[card.index(END) :]}"


def _facts(engine: Engine) -> Iterable[Share]:
    """By language family of question and by whether the fact was in the training text of that language."""
    items = [
        item
        for name in probe_names()
        if name.startswith("facts/") and len(name) == len("facts/xx")
        for item in load_probe(name).items(None)
    ]
    exact = _exact(engine, [(item.prompt, item.target) for item in items])
    groups: dict[str, list[bool]] = defaultdict(list)
    for item, right in zip(items, exact, strict=True):
        english = item.labels["lang"] == "en"
        part = "in training" if item.labels["in_training"] == "yes" else "held out"
        group = "facts, English" if english else f"facts, other languages, {part}"
        groups[group].append(right)
        groups[f"{group}: {item.labels['relation']}"].append(right)
    return [_share(what, groups[what]) for what in sorted(groups)]


def _tasks(engine: Engine) -> Iterable[Share]:
    for name in ("arithmetic", "calendar"):
        items = load_probe(name).items(None)
        yield _share(name, _exact(engine, [(item.prompt, item.target) for item in items]))


def _openbook(engine: Engine) -> Iterable[Share]:
    items = load_probe("openbook").items(None)
    document = engine.answers([(item.prompt, item.target) for item in items])
    memory = engine.answers([(item.prompt, item.other) for item in items])
    closed = _exact(engine, [(_without_document(item), item.other) for item in items])
    preferred = [a.log_probability > b.log_probability for a, b in zip(document, memory, strict=True)]
    yield _share("open book: prefers the document's answer", preferred)
    yield _share("open book: answers from the document", [answer.exact for answer in document])
    yield _share("open book: answers from memory", [answer.exact for answer in memory])
    yield _share("closed book, same questions", closed)


def _requests(engine: Engine) -> Iterable[Share]:
    probe = load_probe("requests/prompt")
    prefixes = probe.items(None)[0].prefixes
    sides = {"contrast": "requests: refuses restricted", "against": "requests: refuses permitted"}
    for side, what in sides.items():
        prompts = [text.text for text in probe.texts(None) if text.labels["side"] == side]
        generated = engine.generate(prompts, max_new_tokens=NEW_TOKENS)
        yield _share(what, [answer.text.lstrip().startswith(prefixes) for answer in generated])


def _perplexities(engine: Engine) -> tuple[tuple[Perplexity, ...], tuple[Perplexity, ...]]:
    texts = [*neutral_texts("dev"), *neutral_texts("held_out")]
    scores = list(engine.token_scores([text.text for text in texts]))

    def table(label: str) -> tuple[Perplexity, ...]:
        groups: dict[str, list[np.ndarray]] = defaultdict(list)
        for text, score in zip(texts, scores, strict=True):
            groups[text.labels[label]].append(np.asarray(score.log_probabilities, np.float64))
        rows = []
        for name, found in sorted(groups.items()):
            joined = np.concatenate(found)  # (tokens of the group,)
            value = math.exp(-float(joined.mean()))
            rows.append(Perplexity(what=name, perplexity=round(value, 3), tokens=len(joined), texts=len(found)))
        return tuple(rows)

    return table("lang"), table("domain")


def _balance(engine: Engine) -> Iterable[LayerBalance]:
    texts = [*neutral_texts("dev"), *neutral_texts("held_out")]
    with tempfile.TemporaryDirectory() as folder:
        trace = engine.record(texts, Path(folder) / "trace")
        loads, summary = load(trace).to_pydict(), balance(trace).to_pylist()
    layers, shares = np.array(loads["layer"]), np.array(loads["share"])  # (experts of the model,)
    for row in summary:
        fair = shares[layers == row["layer"]] * int((layers == row["layer"]).sum())  # (E,) multiples of 1 / E
        yield LayerBalance(
            layer=row["layer"],
            least=round(float(fair.min()), 3),
            most=round(float(fair.max()), 3),
            effective_experts=round(row["effective_experts"], 2),
        )


def _exact(engine: Engine, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    return [answer.exact for answer in engine.answers(pairs)]


def _without_document(item: Item) -> str:
    return item.prompt.partition("\n")[2]


def _share(what: str, right: Sequence[bool]) -> Share:
    return Share(what=what, share=round(sum(right) / len(right), 4), items=len(right))


if __name__ == "__main__":
    main()
