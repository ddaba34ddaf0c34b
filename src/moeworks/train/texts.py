"""The texts a method trains on: of a file or data set, or those of a probe that have a token on one of its sides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from moeworks.data import read_examples
from moeworks.engines.transformers.layout import Batch
from moeworks.errors import BadData, did_you_mean
from moeworks.examples import Example
from moeworks.train.engine import opened
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.probes.probe import Probe, Split

__all__ = ["Data", "examples_of", "probe_of", "side_texts"]

Data = str | Path | Iterable[Example]


def examples_of(engine: Engine, data: Data, side: Literal["contrast", "against"]) -> Iterable[Example]:
    """Return the examples of a source; of a probe, those of one side, since it holds texts of both."""
    found = probe_of(data)
    if found is not None:
        return side_texts(engine, *found, side)
    return read_examples(data) if isinstance(data, str | Path) else data


def probe_of(data: Data) -> tuple[Probe, Split] | None:
    """Return the probe and split that a source names (`probe:NAME[:SPLIT]` or a probe's folder), if it names one."""
    from moeworks.probes import SPLITS, load_probe

    if not isinstance(data, str | Path):
        return None
    name, _, wanted = str(data).removeprefix("probe:").partition(":")
    if not str(data).startswith("probe:"):
        if not (Path(data) / "probe.json").is_file():
            return None
        name, wanted = str(data), ""
    for split in SPLITS:
        if split == (wanted or "find"):
            return load_probe(name), split
    raise BadData(f"a probe has no split '{wanted}'; {did_you_mean(wanted, SPLITS)}")


def side_texts(
    engine: Engine, probe: Probe, split: Split, side: Literal["contrast", "against"] = "contrast"
) -> list[Example]:
    """Return a probe's texts that have a token on this side, in their order.

    Raises:
        BadData: the split has none.
        Unsupported: the engine holds no torch model.
    """
    reader = opened(engine, "training on a probe").reader
    clause = probe.header.contrast if side == "contrast" else probe.header.against
    examples = list(probe.texts(split))
    if examples:
        forward = Batch(list(reader.read(iter(examples)))).forward()
        inside = Where.parse(clause).mask(forward.rows, forward.requests, strict=False)
        inside &= Where.parse(probe.header.where).mask(forward.rows, forward.requests, strict=False)
        taken = np.bincount(forward.rows.request, weights=inside, minlength=len(examples)) > 0
        examples = [example for example, take in zip(examples, taken, strict=True) if take]
    if not examples:
        raise BadData(
            f"the probe {probe.name} has no text in its split '{split}' with a token on its {side} side '{clause}'."
        )
    return examples
