"""Theorems of Metamath, in words and as formulas, and arithmetic that is generated here.

Needs the Debian package metamath-databases; about 5 seconds, besides fetching. Run alone by
`python -m recipes.lab.corpus OUT --only metamath arithmetic`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from recipes.lab.corpus.chunks import LANGUAGES, Document, in_all
from recipes.lab.corpus.clean import clean
from recipes.lab.corpus.packages import Packages, deb_members
from recipes.lab.corpus.records import Collector, Record
from recipes.lab.corpus.sources.word_problems import PROBLEMS

__all__ = ["Theorem", "arithmetic", "metamath", "theorems"]

WORDS_CAP, FORMULAS_CAP = 2_500_000, 1_500_000  # characters
RUN = 6  # theorems in a text
STATEMENT = re.compile(r"\$\(\s(.*?)\s\$\)\s+(\S+)\s+\$[ap]\s(.*?)\s\$[=.]", re.S)
CREDIT = re.compile(
    r"\((?:Contributed|Revised|Proof (?:shortened|modification)|New usage|Proof revised)[^()]*(?:\([^()]*\)[^()]*)*\)"
)
GENERATED, FREE = "generated==1", "CC0-1.0"
SEED = 20240501
DRILLS, WORD_PROBLEMS = 9000, 1000


@dataclass(frozen=True)
class Theorem:
    """A theorem: its label, what it says in words, and its formula."""

    label: str
    words: str
    formula: str


def metamath(packages: Packages, collector: Collector) -> None:
    """Add theorems in runs of six: in words, and every second run as formulas."""
    package = packages.debian("metamath-databases")
    words = formulas = 0
    for member, content in sorted(deb_members(package, re.compile(r"/i?set\.mm$").search).items(), reverse=True):
        found = list(theorems(content.decode("ascii", "replace")))
        for first in range(0, len(found), RUN):
            run = found[first : first + RUN]
            doc = f"{member.split('/')[-1].removesuffix('.mm')}/{first // (10 * RUN):05d}"
            if words <= WORDS_CAP:
                text = "\n".join(f"Theorem {theorem.label}. {theorem.words}" for theorem in run)
                if collector.add(Record(text, "en", "math", package.source, FREE, f"mm-text/{doc}", first)):
                    words += len(text)
            if formulas <= FORMULAS_CAP and first % (2 * RUN) == RUN:
                text = "\n".join(f"{theorem.label} : {theorem.formula}" for theorem in run)
                if collector.add(Record(text, "en", "math", package.source, FREE, f"mm-formal/{doc}", first)):
                    formulas += len(text)


def theorems(database: str) -> Iterator[Theorem]:
    """Yield the theorems of a data base that have more to say than what they are a lemma for."""
    for statement in STATEMENT.finditer(database):
        comment, label, formula = statement.groups()
        words = CREDIT.sub("", clean(comment.rsplit("$(", 1)[-1]))
        words = re.sub(r"<[^>]*>", "", words)
        words = re.sub(r"_([A-Za-z][^_`~]{0,60}?)_", r"\1", words)  # emphasis
        words = re.sub(r"~ (\S+)", r"\1", words)  # references
        words = words.replace("` ", "").replace(" `", "").replace("`", "")  # formulas
        words = re.sub(r"\s+([.,;:)])", r"\1", clean(words))
        left = label.endswith(("OLD", "ALT")) or "Obsolete" in words
        if len(words) > 30 and not left and not re.match(r"Lemma for \S+$", words.rstrip(".")):
            yield Theorem(label, words, clean(formula))


def arithmetic(packages: Packages, collector: Collector) -> None:
    """Add drills of seven kinds, and word problems of one step in all languages; both are drawn from one seed."""
    generator = random.Random(SEED)
    for place in range(DRILLS):
        kind = generator.randrange(7)
        text = "\n".join(_drill(generator, kind) for _ in range(generator.randint(6, 12)))
        collector.add(Record(text, "en", "math", GENERATED, FREE, f"arith/{place:05d}", 0))
    for place in range(WORD_PROBLEMS):
        units = [_word_problem(generator) for _ in range(3)]
        document = Document(
            f"word/{place:05d}",
            "math",
            units,
            in_all(GENERATED),
            in_all(FREE),
            chunk=10**6,
            separator=" ",
            distinct=False,
        )
        collector.add_document(document)


def _number(generator: random.Random) -> int:
    return generator.randint(0, 10 ** generator.choice([1, 1, 2, 2, 3, 4]))


def _drill(generator: random.Random, kind: int) -> str:
    a, b = _number(generator), _number(generator)
    match kind:
        case 0:
            return f"{a} + {b} = {a + b}"
        case 1:
            return f"{max(a, b)} - {min(a, b)} = {abs(a - b)}"
        case 2:
            return f"{a % 100} * {b % 100} = {(a % 100) * (b % 100)}"
        case 3:
            divisor = b % 50 + 1
            return f"{a} = {divisor} * {a // divisor} + {a % divisor}"
        case 4:
            return f"{a} {'<' if a < b else '>' if a > b else '='} {b}"
        case 5:
            return ", ".join(str(a % 100 + (b % 30 + 1) * step) for step in range(7))
        case _:
            x, factor, rest = a % 40, b % 12 + 1, _number(generator) % 50
            return f"{factor} x + {rest} = {factor * x + rest}; {factor} x = {factor * x}; x = {x}"


def _word_problem(generator: random.Random) -> dict[str, str]:
    kind = generator.randrange(3)
    a, b = generator.randint(2, 99), generator.randint(2, 30)
    if kind == 1:
        a, b = max(a, b) + 1, min(a, b)
    if kind == 2:
        b = generator.randint(2, 12)
    result = (a + b, a - b, a * b)[kind]
    return {lang: PROBLEMS[lang][kind].format(a=a, b=b, c=result) for lang in LANGUAGES}
