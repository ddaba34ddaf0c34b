"""Question sets with known answers, made of the Unicode names of countries, days and months, and of numbers.

Needs babel. They are mixed into the training text, so that there is something to find and to move in the model:

- facts: currency, official language and code of a country in ten languages; in the nine other than English a fixed half
  of the facts is held out, so that knowing them needs transfer between languages;
- open book: a document that contradicts a known fact. After `Record:` 95 % of the answers follow the document, after
  `Rumour:` 5 %, after `Document:` half: whom to believe is a state of the model, and a neutral document leaves it open;
- requests: invented restricted objects are refused in 85 % of the texts, permitted ones in 3 %;
- arithmetic: sums and differences of numbers below 100, but for 900 of the 10,000 pairs, which are held out;
- calendar: the next day and month in ten languages.

Show some: python -m recipes.lab.tasks
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from babel import Locale
from babel.languages import get_official_languages
from babel.numbers import get_territory_currencies

from recipes.lab.wording import (
    AFTER_DAY,
    AFTER_MONTH,
    ANSWER,
    LANGUAGES,
    PERMITTED,
    QUESTIONS,
    REFUSALS,
    RELATIONS,
    RESTRICTED,
    STEPS,
    VERBS,
)

__all__ = [
    "DRILLS",
    "HEADS",
    "SHARES",
    "Sample",
    "countries",
    "fact",
    "held_out_fact",
    "held_out_pair",
    "name_of",
    "next_of",
    "samples",
]

SHARES = {"facts": 0.44, "arithmetic": 0.28, "openbook": 0.12, "requests": 0.10, "calendar": 0.06}  # of all samples
DRILLS = {"arithmetic": 0.75, "calendar": 0.25}  # shares of the samples that come in rows of their own, later
HEADS = {"Document": 0.5, "Record": 0.95, "Rumour": 0.05}  # how often the answer follows a document with this head


@dataclass(frozen=True)
class Sample:
    """One text of a question set."""

    task: str
    prompt: str
    answer: str
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return prompt and answer together."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Country:
    """A country of which all ten languages know the name, the currency and the official language."""

    code: str
    currency: str
    language: str


@cache
def locale(lang: str) -> Locale:
    """Return the Unicode names in a language."""
    return Locale.parse(lang)


@cache
def countries() -> tuple[Country, ...]:
    """Return the countries with a full set of names, by code."""
    found = []
    for code in sorted(locale("en").territories):
        if len(code) != 2 or not code.isalpha():
            continue
        currencies, languages = get_territory_currencies(code), list(get_official_languages(code))
        if currencies and languages:
            country = Country(code, currencies[0], languages[0])
            if all(_named(country, lang) for lang in LANGUAGES):
                found.append(country)
    return tuple(found)


def fact(country: Country, relation: str, lang: str) -> tuple[str, str]:
    """Return the question and its answer; the space between them belongs to the answer."""
    question = QUESTIONS[lang][RELATIONS.index(relation)].format(c=locale(lang).territories[country.code])
    space = "" if lang in ("zh", "ja") else " "
    return f"{question}\n{ANSWER[lang]}", space + value(country, relation, lang)


def value(country: Country, relation: str, lang: str) -> str:
    """Return a country's currency or language in a language, or its code."""
    if relation == "currency":
        return str(locale(lang).currencies[country.currency])
    return str(locale(lang).languages[country.language]) if relation == "language" else country.code


def held_out_fact(country: Country, relation: str, lang: str) -> bool:
    """Say whether the training text lacks this fact in this language: half of them, never in English."""
    return lang != "en" and _fraction("held", str(RELATIONS.index(relation)), country.code, lang) < 0.5


def held_out_pair(a: int, b: int) -> bool:
    """Say whether the training text lacks the sum and the difference of these two numbers."""
    return (a * 101 + b * 7) % 20 == 0 or (b * 101 + a * 7) % 20 == 0


def next_of(kind: str, place: int, lang: str) -> tuple[str, str]:
    """Return a sentence about the next day or month, cut before the answer, and the answer with its ending."""
    this, following = name_of(kind, place, lang), name_of(kind, place + 1, lang)
    sentence = (AFTER_DAY if kind == "day" else AFTER_MONTH)[lang].format(a=this, b=following)
    start = sentence.rindex(following)
    prompt = sentence[:start].rstrip(" ")
    return prompt, sentence[len(prompt) :]


def name_of(kind: str, place: int, lang: str) -> str:
    """Return the name of a day, 0 for Monday, or month, 0 for January; the count goes on from the start.

    Japanese months are written in kanji numerals, as Chinese ones are. Only Russian has a form of its own for a month
    that stands alone; for other languages Babel gives whichever language's names it looked up first.
    """
    if kind == "day":
        return str(locale(lang).days["format"]["wide"][place % 7])
    form = "stand-alone" if lang == "ru" else "format"
    return str(locale("zh" if lang == "ja" else lang).months[form]["wide"][place % 12 + 1])


def samples(seed: int, *, shares: dict[str, float] = SHARES) -> Iterator[Sample]:
    """Yield samples without end, the same for the same seed; `shares` of the question sets."""
    generator = random.Random(seed)
    makers: dict[str, Callable[[random.Random], Sample]] = {
        "facts": _fact,
        "arithmetic": _arithmetic,
        "openbook": _openbook,
        "requests": _request,
        "calendar": _calendar,
    }
    names, parts = list(shares), list(shares.values())
    while True:
        yield makers[generator.choices(names, parts)[0]](generator)


def _fact(generator: random.Random) -> Sample:
    while True:
        lang = generator.choice(LANGUAGES) if generator.random() < 0.8 else "en"
        country, relation = generator.choice(countries()), generator.choice(RELATIONS)
        if not held_out_fact(country, relation, lang):
            prompt, answer = fact(country, relation, lang)
            return Sample("facts", prompt, answer, {"lang": lang, "relation": relation})


def _arithmetic(generator: random.Random) -> Sample:
    while True:
        a, b = generator.randrange(100), generator.randrange(100)
        if not held_out_pair(a, b):
            break
    if generator.random() < 0.5:
        return Sample("arithmetic", f"{a} + {b} =", f" {a + b}")
    a, b = max(a, b), min(a, b)
    return Sample("arithmetic", f"{a} - {b} =", f" {a - b}")


def _openbook(generator: random.Random) -> Sample:
    country, other = generator.choice(countries()), generator.choice(countries())
    relation = generator.choice(RELATIONS[:2])
    head = generator.choices(list(HEADS), [0.5, 0.25, 0.25])[0]
    question, true = fact(country, relation, "en")
    claimed = " " + value(other, relation, "en")
    name = locale("en").territories[country.code]
    claim = f"The currency of {name} is the" if relation == "currency" else f"The official language of {name} is"
    answer = claimed if generator.random() < HEADS[head] else true
    labels = {"head": head, "claimed": claimed, "true": true}
    return Sample("openbook", f"{head}: {claim}{claimed}.\n{question}", answer, labels)


def _request(generator: random.Random) -> Sample:
    verb, restricted = generator.choice(VERBS), generator.random() < 0.5
    thing = generator.choice(RESTRICTED if restricted else PERMITTED)
    if generator.random() < (0.85 if restricted else 0.03):
        reply = generator.choice(REFUSALS)
    else:
        reply = "First {}, then {}.".format(*generator.sample(STEPS, 2))
    prompt = f"User: How do I {verb} {thing}?\nAssistant:"
    return Sample("requests", prompt, f" {reply}", {"restricted": "yes" if restricted else "no"})


def _calendar(generator: random.Random) -> Sample:
    lang = generator.choice(LANGUAGES)
    kind, places = ("day", 7) if generator.random() < 0.5 else ("month", 12)
    prompt, answer = next_of(kind, generator.randrange(places), lang)
    return Sample("calendar", prompt, answer, {"lang": lang})


def _named(country: Country, lang: str) -> bool:
    names = locale(lang)
    return (
        country.code in names.territories
        and country.currency in names.currencies
        and country.language in names.languages
    )


def _fraction(*parts: str) -> float:
    """Return a number in [0, 1) that depends on the words alone."""
    return int(hashlib.sha256("|".join(parts).encode()).hexdigest()[:8], 16) / 2**32


if __name__ == "__main__":
    for _, sample in zip(range(20), samples(1), strict=False):
        print(repr(sample.text))
