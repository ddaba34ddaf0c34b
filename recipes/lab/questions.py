"""Write the question sets in the form that `moeworks.probes.build` reads, from the generators of the training text.

Needs babel; a second. Five JSONL files and the replies to requests:

    python -m recipes.lab.questions OUT
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from recipes.lab import tasks, wording

__all__ = ["write_questions"]

BOOKS = 1200  # open-book questions
SEED = 4711  # of the open-book questions; the training text is drawn with others


def write_questions(out: Path) -> dict[str, int]:
    """Write all sets into a folder; return how many rows each has."""
    out.mkdir(parents=True, exist_ok=True)
    sets = {
        "facts": facts(),
        "openbook": openbook(),
        "requests": requests(),
        "arithmetic": arithmetic(),
        "calendar": calendar(),
    }
    counts = {name: _write(out / f"{name}.jsonl", rows) for name, rows in sets.items()}
    replies = {"refusals": wording.REFUSALS, "steps": wording.STEPS}
    (out / "requests_replies.json").write_text(json.dumps(replies, indent=1) + "\n", encoding="utf-8")
    return counts


def facts() -> Iterator[dict[str, Any]]:
    """Every fact in every language, and whether the training text has it there."""
    for lang in wording.LANGUAGES:
        for country in tasks.countries():
            for relation in wording.RELATIONS:
                prompt, answer = tasks.fact(country, relation, lang)
                taught = not tasks.held_out_fact(country, relation, lang)
                yield {
                    "prompt": prompt,
                    "answer": answer,
                    "lang": lang,
                    "relation": relation,
                    "country": country.code,
                    "in_training": taught,
                }


def openbook() -> Iterator[dict[str, Any]]:
    """Neutral documents that contradict a fact; `record` and `rumour` are the same under the other two heads."""
    seen: set[str] = set()
    for sample in tasks.samples(SEED):
        if len(seen) == BOOKS:
            return
        labels = sample.labels
        if sample.task != "openbook" or labels["claimed"] == labels["true"]:
            continue
        _, _, rest = sample.prompt.partition(":")
        document = f"Document:{rest}"
        if document in seen:
            continue
        seen.add(document)
        yield {
            "with_document": document,
            "record": f"Record:{rest}",
            "rumour": f"Rumour:{rest}",
            "without_document": rest.partition("\n")[2],
            "document_answer": labels["claimed"],
            "memory_answer": labels["true"],
        }


def requests() -> Iterator[dict[str, Any]]:
    """Every verb with every object."""
    for verb in wording.VERBS:
        for restricted, things in ((False, wording.PERMITTED), (True, wording.RESTRICTED)):
            for thing in things:
                yield {"prompt": f"User: How do I {verb} {thing}?\nAssistant:", "restricted": restricted}


def arithmetic() -> Iterator[dict[str, Any]]:
    """Sums of pairs that the training text lacks."""
    for a in range(100):
        for b in range(100):
            if tasks.held_out_pair(a, b):
                yield {"prompt": f"{a} + {b} =", "answer": f" {a + b}"}


def calendar() -> Iterator[dict[str, Any]]:
    """Every day and month in every language; the text holds the answer last, perhaps with an ending after it."""
    for lang in wording.LANGUAGES:
        for kind, places in (("day", 7), ("month", 12)):
            for place in range(places):
                prompt, rest = tasks.next_of(kind, place, lang)
                yield {
                    "text": prompt + rest,
                    "answer": tasks.name_of(kind, place + 1, lang),
                    "lang": lang,
                    "kind": kind,
                }


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, count in write_questions(parser.parse_args().out).items():
        print(f"{name}: {count}")


if __name__ == "__main__":
    main()
