"""The texts of a probe that a method may train on: those that have a token on its contrast side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeworks.engines.transformers.layout import Batch
from moeworks.errors import BadData
from moeworks.train.engine import opened
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.probes.probe import Probe, Split

__all__ = ["contrast_texts"]


def contrast_texts(engine: Engine, probe: Probe, split: Split) -> list[Example]:
    """Return these texts, in their order.

    Raises:
        BadData: the split has none.
        Unsupported: the engine holds no torch model.
    """
    reader = opened(engine, "training on a probe").reader
    contrast, where = Where.parse(probe.header.contrast), Where.parse(probe.header.where)
    examples = list(probe.texts(split))
    if examples:
        forward = Batch(list(reader.read(iter(examples)))).forward()
        inside = contrast.mask(forward.rows, forward.requests, strict=False)
        inside &= where.mask(forward.rows, forward.requests, strict=False)
        taken = np.bincount(forward.rows.request, weights=inside, minlength=len(examples)) > 0
        examples = [example for example, take in zip(examples, taken, strict=True) if take]
    if not examples:
        raise BadData(
            f"the probe {probe.name} has no text in its split '{split}' with a token on its contrast side "
            f"'{probe.header.contrast}'."
        )
    return examples
