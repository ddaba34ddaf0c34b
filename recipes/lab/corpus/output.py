"""Write the splits, the evaluation groups and the manifest of a corpus, all of them or none.

Needs the standard library; about 20 seconds for the whole corpus. Run by `python -m recipes.lab.corpus OUT`.

Everything is written under OUT/.partial first. Only when that is whole do its folders take their places, and
`manifest.json` last: a folder without a manifest is no corpus.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.lab.corpus.records import MANY, Record, held_out

__all__ = ["check_target", "evaluation_groups", "write_corpus"]

PARTS = ("train", "heldout", "eval")
MANIFEST = "manifest.json"
PARTIAL = ".partial"
CORE = ("de", "en", "es", "fr", "it", "ja", "ru")  # languages of every core group, which has at least one more
CORE_GROUPS = 160  # of a domain

Row = Mapping[str, Any]


def check_target(out: Path) -> None:
    """Stop with one sentence if `out` has folders that are not a corpus and would be replaced."""
    strange = [part for part in PARTS if (out / part).exists()]
    if strange and not (out / MANIFEST).is_file() and not (out / PARTIAL).is_dir():
        raise SystemExit(f"{out} has {strange[0]} but no {MANIFEST}, so it is no corpus; name another folder.")


def write_corpus(records: Sequence[Record], dropped: Mapping[str, int], out: Path) -> tuple[int, int]:
    """Write a corpus to `out`; return the numbers of evaluation groups, all and core."""
    partial = out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    for part in PARTS:
        (partial / part).mkdir(parents=True)
    held = held_out(records)
    lines: dict[Path, list[str]] = defaultdict(list)
    for record, is_held in zip(records, held, strict=True):
        folder = partial / ("heldout" if is_held else "train")
        lines[folder / f"{record.domain}.{record.lang}.jsonl.gz"].append(_line(record.public()))
    for path, content in sorted(lines.items()):
        _write_gz(path, content)
    groups = evaluation_groups(record for record, is_held in zip(records, held, strict=True) if is_held)
    core = _core(groups)
    _write_gz(partial / "eval" / "aligned_all.jsonl.gz", map(_line, groups))
    _write(partial / "eval" / "aligned_core.jsonl", "".join(f"{_line(row)}\n" for row in core))
    manifest = {
        **_counts(records, held),
        "eval": {"aligned_all": len(groups), "aligned_core": len(core), "core_languages": CORE},
        "dropped": dropped,
    }
    _write(partial / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True))
    _put(partial, out)
    return len(groups), len(core)


def evaluation_groups(held: Iterable[Record]) -> list[Row]:
    """Return the held-out groups with English and many languages, by name."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in held:
        if record.group is not None:
            groups[record.group].append(record)
    return [
        {
            "group": group,
            "domain": members[0].domain,
            "doc": members[0].doc,
            "licence": {record.lang: record.licence for record in members},
            "source": {record.lang: record.source for record in members},
            "langs": sorted({record.lang for record in members}),
            "text": {record.lang: record.text for record in members},
        }
        for group, members in sorted(groups.items())
        if len({record.lang for record in members}) >= MANY and any(record.lang == "en" for record in members)
    ]


def _core(groups: Sequence[Row]) -> list[Row]:
    """Return groups of usual length in all core languages, the same number of each domain where it has them."""
    domains: dict[str, list[Row]] = defaultdict(list)
    for row in groups:
        usual = 60 <= len(row["text"]["en"]) <= 900
        if usual and set(CORE) <= set(row["langs"]) and not row["group"].startswith("word/"):
            domains[row["domain"]].append(row)
    return [
        row
        for _, rows in sorted(domains.items())
        for row in sorted(rows, key=lambda row: hashlib.md5(row["group"].encode()).digest())[:CORE_GROUPS]
    ]


def _counts(records: Sequence[Record], held: Sequence[bool]) -> dict[str, list[Row]]:
    totals: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    sources: dict[tuple[str, str, str, str], Counter[str]] = defaultdict(Counter)
    for record, is_held in zip(records, held, strict=True):
        split, size = "heldout" if is_held else "train", len(record.text.encode())
        total = totals[record.domain, record.lang]
        total.update({"train_records": 0, "train_bytes": 0, "heldout_records": 0, "heldout_bytes": 0})
        total.update({f"{split}_records": 1, f"{split}_bytes": size})
        source = sources[record.source, record.licence, record.domain, record.lang]
        source.update(records=1, bytes=size, grouped=record.group is not None)
    return {
        "totals": [{"domain": domain, "lang": lang, **total} for (domain, lang), total in sorted(totals.items())],
        "sources": [
            {"source": source, "licence": licence, "domain": domain, "lang": lang, **count}
            for (source, licence, domain, lang), count in sorted(sources.items())
        ],
    }


def _put(partial: Path, out: Path) -> None:
    """Move a whole corpus to its place; without the manifest it is none until the end."""
    (out / MANIFEST).unlink(missing_ok=True)
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
        (partial / part).replace(out / part)
    (partial / MANIFEST).replace(out / MANIFEST)
    partial.rmdir()


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_gz(path: Path, lines: Iterable[str]) -> None:
    """Write lines without name and time, so that the same lines are the same bytes."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed:
        for line in lines:
            compressed.write(f"{line}\n".encode())
