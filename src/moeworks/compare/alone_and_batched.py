"""Does a model route a text alike alone and in a batch? Records the same texts both ways and compares them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moeworks.compare.comparison import Comparison, compare
from moeworks.errors import BadData
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example

__all__ = ["stability"]


def stability(
    engine: Engine,
    examples: Sequence[Example],
    folder: str | Path | None = None,
    *,
    batch_size: int = 8,
    generate: int = 0,
    where: Where = Where(),
    label: str | None = None,
    seed: int = 0,
    progress: bool = False,
    command: str = "",
) -> Comparison:
    """Record texts one at a time and in batches, and compare the two traces.

    Args:
        engine: what runs the model.
        examples: the texts; they are read twice.
        folder: where the traces `alone` and `batched` are kept; without, they are thrown away.
        batch_size: texts a batch, more than 1.
        generate: tokens to generate after each text.
        where, label, seed: as in `compare`.
        progress: whether bars are shown.
        command: as typed, for the traces' headers.

    Raises:
        BadData: fewer than two texts, or a batch of one.
    """
    if batch_size < 2 or len(examples) < 2:
        raise BadData(
            f"a text alone is compared with the same text in a batch: give two texts and a batch of two at least, not "
            f"{len(examples)} and {batch_size}."
        )
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary if folder is None else folder)
        alone, batched = (
            engine.record(
                examples,
                place / name,
                logits=True,
                generate=generate,
                batch_size=size,
                seed=seed,
                progress=progress,
                total=len(examples),
                command=command,
            )
            for name, size in (("alone", 1), ("batched", batch_size))
        )
        return compare(alone, batched, where=where, label=label, seed=seed)
