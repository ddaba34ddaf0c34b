"""Train the tokenizer and turn corpus and question sets into token files.

Needs babel, numpy, rich and tokenizers; about 2 minutes of one core for the whole corpus. Writes, into one folder,
`tokenizer.json`, one `.npy` of uint16 a domain and language, and `data.json`, which is written last:

    python -m recipes.lab.prepare CORPUS OUT
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from recipes.lab import tasks

__all__ = ["BEGIN", "SPECIAL", "prepare"]

SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>")
BEGIN = 0  # every text starts with <|endoftext|>
VOCABULARY = 8192
TASK, DRILL = "tasks", "drills"  # the domains of the question sets
SUM = re.compile(r"(\d{1,2}) [+-] (\d{1,2}) = \d+")


def prepare(corpus: Path, out: Path, *, samples: int = 700_000, vocabulary: int = VOCABULARY) -> None:
    """Write everything that training reads; `samples` of the question sets are drawn, and half as many drills."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {split: read_texts(corpus / split) for split in ("train", "heldout")}
    tokenizer = _tokenizer(texts["train"], vocabulary)
    tokenizer.save(str(out / "tokenizer.json"))
    parts = []
    for split, groups in texts.items():
        for (domain, lang), group in track(sorted(groups.items()), f"tokens of {split}", transient=True):
            random.Random(3).shuffle(group)
            parts.append(_write(tokenizer, group, out, split=split, domain=domain, lang=lang))
    for domain, generator, drawn in (
        (TASK, tasks.samples(11), samples),
        (DRILL, tasks.samples(13, shares=tasks.DRILLS), samples // 2),
    ):
        chosen = (sample.text for sample in islice(generator, drawn))
        parts.append(_write(tokenizer, chosen, out, split="train", domain=domain, lang="mix"))
    (out / "data.json").write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")


def read_texts(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Read a split of the corpus by domain and language; sums whose pair is held out are left out of the drills."""
    texts: dict[tuple[str, str], list[str]] = {}
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise SystemExit(f"{folder} has no *.jsonl.gz; build the corpus first.")
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                text = record["text"]
                if record["doc"].startswith("arith/"):
                    text = "\n".join(drill for drill in text.split("\n") if not _held_out(drill))
                if text:
                    texts.setdefault((record["domain"], record["lang"]), []).append(text)
    return texts


def _held_out(drill: str) -> bool:
    found = SUM.fullmatch(drill)
    return found is not None and tasks.held_out_pair(int(found[1]), int(found[2]))


def _tokenizer(texts: dict[tuple[str, str], list[str]], vocabulary: int) -> Tokenizer:
    """Train byte-level BPE with digits apart; a domain and language shows it 1.2 million characters at most."""

    def shown() -> Iterator[str]:
        generator = random.Random(0)
        for _, group in sorted(texts.items()):
            left = 1_200_000
            for text in generator.sample(group, len(group)):
                yield text
                left -= len(text)
                if left < 0:
                    break
        for sample in islice(tasks.samples(5), 30_000):
            yield sample.text

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(shown(), trainer)
    return tokenizer


def _write(tokenizer: Tokenizer, texts: Iterator[str] | list[str], out: Path, **labels: str) -> dict[str, str | int]:
    """Write the tokens of some texts, each after the begin token, one after the other."""
    pieces: list[np.ndarray] = []
    remaining = iter(texts)
    while batch := list(islice(remaining, 4096)):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            pieces.append(np.array([BEGIN, *encoding.ids], np.uint16))
    tokens = np.concatenate(pieces)  # (tokens,)
    name = f"{labels['split']}.{labels['domain']}.{labels['lang']}.npy"
    np.save(out / name, tokens)
    return {"file": name, **labels, "tokens": len(tokens)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder with train/ and heldout/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=700_000, help="texts of the question sets")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    arguments = parser.parse_args()
    prepare(arguments.corpus, arguments.out, samples=arguments.samples, vocabulary=arguments.vocabulary)


if __name__ == "__main__":
    main()
