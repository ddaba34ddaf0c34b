"""Clean a text, and tell whether it is in the language that it claims to be in.

Needs the standard library; microseconds a text. Run by `python -m recipes.lab.corpus OUT`.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

__all__ = ["clean", "fingerprint", "looks_like", "strip_tags"]

SPACES = re.compile(r"[ \t\r\f\v\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SCRIPTS = {
    script: re.compile(f"[{ranges}]+")
    for script, ranges in {
        "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
        "Cyrillic": "\u0400-\u052f",
        "Han": "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
        "Kana": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9d",
        "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3",
        "Arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
        "Devanagari": "\u0900-\u097f",
        "other": "\u0370-\u03ff\u0530-\u05ff\u0700-\u074f\u0780-\u08ff\u0980-\u10ff\u1200-\u1dff\u1f00-\u1fff",
    }.items()
}
LEAST = {"ru": ("Cyrillic", 0.5), "ar": ("Arabic", 0.5), "hi": ("Devanagari", 0.5), "ko": ("Hangul", 0.35)}
ENGLISH = {"the", "of", "and", "to", "is", "for", "with", "that", "this", "you", "from", "are", "your"}


def clean(text: str, *, lines: bool = False) -> str:
    """Return a text in one normal form, without invisible characters and runs of spaces; lines may be kept."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = CONTROL.sub(lambda found: "\n" if found.group() == "\r" else " ", text)
    if not lines:
        text = text.replace("\n", " ")
    return re.sub(r" *\n *", "\n", SPACES.sub(" ", text)).strip()


def strip_tags(text: str) -> str:
    """Return the text of a piece of markup."""
    text = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", text)
    text = re.sub(r"(?s)<!--.*?-->", "", text)
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def looks_like(lang: str, text: str) -> bool:
    """Say whether a text may be in a language; what was left untranslated or is broken is not."""
    letters = {script: sum(map(len, found.findall(text))) for script, found in SCRIPTS.items()}
    total = sum(letters.values())
    if total == 0:
        return True
    if lang in LEAST:
        script, share = LEAST[lang]
        return letters[script] >= share * total
    if lang == "zh":
        return letters["Han"] >= 0.3 * total and letters["Kana"] <= 0.02 * total
    if lang == "ja":
        return letters["Kana"] + letters["Han"] >= 0.3 * total and (letters["Kana"] > 0 or total < 12)
    return letters["Latin"] >= 0.85 * total and (lang == "en" or not _mostly_english(text))


def fingerprint(text: str) -> bytes:
    """Return what two texts share that differ in case, spaces or punctuation alone."""
    return hashlib.md5(re.sub(r"[\W_]+", "", text.casefold()).encode()).digest()


def _mostly_english(text: str) -> bool:
    words = re.findall(r"[a-z]+", text.lower())
    return len(words) >= 6 and sum(word in ENGLISH for word in words) > 0.12 * len(words)
