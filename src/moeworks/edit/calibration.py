"""Built-in texts to collect statistics on: all languages and domains that the built-in probes know."""

from __future__ import annotations

from moeworks.examples import Example
from moeworks.probes import load_probe, probe_names
from moeworks.probes.check import side_of

__all__ = ["ENGLISH", "calibration_texts", "english_texts"]

ENGLISH = "null/split"  # its texts are all English, of several domains


def calibration_texts() -> list[Example]:
    """Return texts labelled `lang` and `domain`, of every built-in language and domain, each text once.

    They are the texts for finding of the probes of languages and domains, so that no neutral text, on which damage is
    measured, and no held-out item of these probes is of their documents.
    """
    found: dict[str, Example] = {}
    for name in probe_names():
        if name.startswith(("language/", "domain/")):
            probe = load_probe(name)
            for text in probe.texts("find"):
                if side_of(probe, text) == "contrast":
                    found.setdefault(text.content(), text)
    return list(found.values())


def english_texts() -> list[Example]:
    """Return English texts of several domains: what is calibrated on when nobody thinks of other languages."""
    return list(load_probe(ENGLISH).texts("find"))
