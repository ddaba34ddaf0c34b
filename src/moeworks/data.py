"""Reading DATA: texts from a file, a data set, a probe or standard input, one example at a time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from moeworks.errors import BadData, MoeworksError, did_you_mean, need
from moeworks.examples import Example, example_from_row
from moeworks.lines import Problems, json_rows, open_bytes, text_lines

__all__ = ["Format", "Per", "open_dataset", "read_examples"]

Format = Literal["text", "jsonl", "parquet", "dataset", "probe"]
Per = Literal["line", "paragraph", "file"]
Rows = Iterator[tuple[int, dict[str, Any]]]

ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def read_examples(
    source: str | Path,
    *,
    format: Format | None = None,
    text: str = "text",
    per: Per = "line",
    limit: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> Iterator[Example]:
    """Yield the examples of a source lazily; memory does not grow with it.

    Args:
        source: a file (`.txt`, `.md`, `.jsonl`, `.parquet`; text and JSONL also with `.gz`), a folder that
            `datasets` saved, `hf:owner/name[/config][:split]` for a Hugging Face data set, `probe:name[:split]`
            for a probe (its part for finding unless `dev`, `held_out` or `all` is named), or `-` for standard input
            (JSONL where it starts with `{`, else text).
        format: how to read it, where the name does not say.
        text: the column that holds the text.
        per: what one example of a plain text is: a non-empty line, a paragraph (ends at a blank line), or the file.
        limit: stop after so many examples.
        labels: added to every example; they win over labels in the data.

    Raises:
        BadData: the source does not exist, holds nothing, or has bad rows. From the first bad row on nothing more is
            yielded; the rest is checked, so that all problems (twenty of them by line, then their number) are named.
        MissingExtra: a data set is asked for and `datasets` is not installed.
    """
    if limit is not None and limit < 1:
        raise BadData(f"a limit of {limit} examples leaves nothing to read; give 1 or more.")
    if per not in get_args(Per):
        raise BadData(f"per='{per}' is unknown; {did_you_mean(per, get_args(Per))}")
    kind = format or _format_of(str(source))
    if kind not in get_args(Format):
        raise BadData(f"format '{kind}' is unknown; {did_you_mean(kind, get_args(Format))}")
    if kind in ("text", "jsonl", "parquet") and str(source) != "-" and not Path(source).is_file():
        raise BadData(f"there is no file {source}.")
    examples = _probe_texts(str(source)) if kind == "probe" else _from_rows(str(source), kind, text, per)
    return _finish(examples, str(source), limit, labels or {})


def open_dataset(name: str, *, config: str | None = None, split: str = "", streaming: bool = True) -> Any:
    """Return a Hugging Face data set: a Hub id, a folder that was saved to disk, or local data files.

    `split` may stay empty where there is only one. A failure (no network, no such name) is one sentence.
    """
    try:
        import datasets  # optional, and slow to import
    except ImportError:
        raise need("datasets", "data", f"reading the data set {name}") from None
    folder = Path(name)
    try:
        saved = any((folder / part).is_file() for part in ("state.json", "dataset_dict.json"))
        if saved:
            whole = datasets.load_from_disk(name)
        elif folder.is_file():
            kind = {"text": "text", "jsonl": "json"}.get(_format_of(name), "parquet")
            whole = datasets.load_dataset(kind, data_files=name, streaming=streaming)
        else:
            whole = datasets.load_dataset(name, config, streaming=streaming)
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadData(f"cannot open the data set '{name}' (a local folder or a name on the Hub): {reason}") from None
    if not isinstance(whole, dict):
        if split:
            raise BadData(f"the data set '{name}' was saved without splits; leave ':{split}' out.")
        return whole
    if not split and len(whole) > 1:
        split = "train" if "train" in whole else ""
    if not split and len(whole) == 1:
        split = next(iter(whole))
    if split not in whole:
        raise BadData(
            f"the data set '{name}' has no split '{split}'; name one as in {name}:{next(iter(whole))}. "
            f"{did_you_mean(split, map(str, whole))}"
        )
    return whole[split]


def _format_of(source: str) -> Format:
    if source == "-":
        return "text"  # or JSONL: told by its first character
    if source.startswith("probe:"):
        return "probe"
    if source.startswith("hf:"):
        return "dataset"
    path = Path(source)
    if path.is_dir():
        return "probe" if (path / "probe.json").is_file() else "dataset"
    ending = Path(source.removesuffix(".gz")).suffix.lower()
    if ending in ENDINGS and not (ending == ".parquet" and source.endswith(".gz")):
        return ENDINGS[ending]
    if not path.exists():
        raise BadData(
            f"there is no file {source}; for a data set of the Hub write hf:{source}, for a probe probe:NAME."
        )
    raise BadData(
        f"cannot tell the format of {source} from its name; name it: one of {', '.join(get_args(Format))} "
        f"(known endings: {', '.join(ENDINGS)})."
    )


def _finish(
    examples: Iterator[Example], source: str, limit: int | None, labels: Mapping[str, str]
) -> Iterator[Example]:
    count = 0
    for count, example in enumerate(itertools.islice(examples, limit), 1):  # noqa: B007
        yield example.model_copy(update={"labels": {**example.labels, **labels}}) if labels else example
    if not count:
        raise BadData(f"{source} holds no example.")


def _probe_texts(source: str) -> Iterator[Example]:
    from moeworks.probes import SPLITS, load_probe  # probes read their rows with this package

    name, _, split = source.removeprefix("probe:").partition(":")
    wanted = split or "find"
    if wanted == "all":
        return load_probe(name).texts(None)
    for known in SPLITS:
        if known == wanted:
            return load_probe(name).texts(known)
    raise BadData(f"a probe has no split '{split}'; {did_you_mean(split, (*SPLITS, 'all'))}")


def _from_rows(source: str, kind: Format, text: str, per: Per) -> Iterator[Example]:
    """Make examples of rows; after the first bad row, only look for more of them."""
    problems = Problems("standard input" if source == "-" else source)
    place = "line" if kind in ("text", "jsonl") else "row"
    for count, (number, row) in enumerate(_rows(source, kind, per, problems)):
        if text not in row and (text != "text" or not {"answer", "messages"} & row.keys()):
            columns = ", ".join(map(str, row)) or "none"
            problems.add(f"{place} {number}", f"no column '{text}' for the text; columns here: {columns}")
            if not count:
                problems.raise_if_any()  # a wrong column name is wrong in every row
            continue
        if text != "text":
            row = {"text": row[text], **{name: value for name, value in row.items() if name not in (text, "text")}}
        try:
            example = example_from_row(row)
        except ValueError as error:
            problems.add(f"{place} {number}", error)
            continue
        if not problems.count:
            yield example
    problems.raise_if_any()


def _rows(source: str, kind: Format, per: Per, problems: Problems) -> Rows:
    if kind == "dataset":
        yield from enumerate(_dataset_rows(source), 1)
    elif kind == "parquet":
        yield from _parquet_rows(source)
    elif source == "-":
        yield from _standard_input(sys.stdin.buffer, kind, per, problems)
    else:
        with open_bytes(source) as stream:
            yield from json_rows(stream, problems) if kind == "jsonl" else _text_rows(stream, per, problems)


def _text_rows(lines: Any, per: Per, problems: Problems) -> Rows:
    """Yield (number of the first line, row) of a plain text."""
    first, gathered = 0, list[str]()
    for number, line in text_lines(lines, problems):
        if per == "line":
            if line.strip():
                yield number, {"text": line}
        elif per == "paragraph" and not line.strip():
            if gathered:
                yield first, {"text": "\n".join(gathered)}
            gathered.clear()
        else:
            first = number if not gathered else first
            gathered.append(line)
    whole = "\n".join(gathered)
    if whole.strip():
        yield first, {"text": whole}


def _standard_input(stream: BinaryIO, kind: Format, per: Per, problems: Problems) -> Rows:
    """Read JSONL where the first character that is not blank is an opening brace."""
    blank: list[bytes] = []
    for line in stream:
        blank.append(line)
        if line.strip():
            break
    lines = itertools.chain(blank, stream)
    opening = blank[-1].removeprefix(b"\xef\xbb\xbf").lstrip() if blank else b""
    jsonl = kind == "jsonl" or opening.startswith(b"{")
    yield from json_rows(lines, problems) if jsonl else _text_rows(lines, per, problems)


def _parquet_rows(source: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise BadData(f"{source} cannot be read as Parquet after row {number}: {error}.") from None


def _dataset_rows(source: str) -> Iterator[dict[str, Any]]:
    name, _, split = source.removeprefix("hf:").partition(":")
    config = None
    if not Path(name).exists() and name.count("/") == 2:
        name, _, config = name.rpartition("/")
    try:
        for row in open_dataset(name, config=config, split=split):
            yield dict(row)
    except MoeworksError:
        raise
    except Exception as error:  # a data set is read by code of many kinds: files, network, decoders
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadData(f"reading the data set {name} failed: {reason}") from None
