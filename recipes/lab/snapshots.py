"""Record a fixed text of 50,000 tokens with the weights that training kept, for saturation and drift.

Needs moeworks with its transformers extra; half a minute of one core for each of the twelve. The text is held-out text
of every domain and language, whole records in a fixed order, so that the traces belong together token by token:

    python -m recipes.lab.snapshots CORPUS RUN DATA/tokenizer.json OUT

OUT gets `text.jsonl`, a trace a step (`step-00016/` …) and, at the first, middle and last of them, the
checkpoint itself (`step-00016-model/`). They are made again by the recipe rather than shipped: 90 MB of traces.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path

import moeworks
from moeworks.data import read_examples
from recipes.lab.export import export

__all__ = ["TOKENS", "fixed_text", "record_snapshots"]

TOKENS = 50_000
LONGEST = 500  # bytes of a record
CHECKPOINTS = 3  # whose weights stay


def fixed_text(corpus: Path, path: Path, tokens: int = TOKENS) -> int:
    """Write about so many tokens of held-out text as JSONL, in turn from every domain and language; return how many.

    A token is counted as three bytes, so that the text does not depend on a tokenizer. Long records are left out; the
    few that are still longer than the context are cut, which the trace counts.
    """
    groups = []
    for source in sorted((corpus / "heldout").glob("*.jsonl.gz")):
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            records = map(json.loads, lines)
            groups.append([record for record in records if len(record["text"].encode()) <= LONGEST])
    left, rows, place = 3 * tokens, [], 0
    while left > 0 and any(place < len(group) for group in groups):
        for group in groups:
            if place < len(group) and left > 0:
                record = group[place]
                labels = {name: record[name] for name in ("domain", "lang", "source", "licence")}
                rows.append({"text": record["text"], "document": record["doc"], "labels": labels})
                left -= len(record["text"].encode())
        place += 1
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def record_snapshots(corpus: Path, run: Path, tokenizer: Path, out: Path) -> list[Path]:
    """Record the text with every kept step; what is there already is left as it is. Return the traces."""
    kept = sorted(run.glob("step-*.safetensors"))
    if not kept:
        raise SystemExit(f"{run} has no step-*.safetensors; train first.")
    out.mkdir(parents=True, exist_ok=True)
    text = out / "text.jsonl"
    fixed_text(corpus, text)
    stay = {kept[round(i * (len(kept) - 1) / (CHECKPOINTS - 1))] for i in range(CHECKPOINTS)}
    traces = []
    for weights in kept:
        trace, model = out / weights.stem, out / f"{weights.stem}-model"
        traces.append(trace)
        if (trace / "trace.json").is_file() and (model.is_dir() or weights not in stay):
            continue
        if not model.is_dir():
            export(weights, tokenizer, model)
        engine = moeworks.load(str(model))
        engine.record(read_examples(text), trace, batch_size=16, overwrite=True, progress=True)
        if weights not in stay:
            shutil.rmtree(model)
    return traces


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("corpus", "run", "tokenizer", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    for trace in record_snapshots(arguments.corpus, arguments.run, arguments.tokenizer, arguments.out):
        print(trace)


if __name__ == "__main__":
    main()
