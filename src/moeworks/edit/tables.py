"""Tables of token ids that name experts (DeepSeek-V4): renumbered, and given another expert where theirs goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moeworks.errors import BadPlan

__all__ = ["replace_in_table"]


def replace_in_table(table: Tensor, router: Tensor, kept: Sequence[int], *, replace: bool, layer: int) -> Tensor:
    """Return a table whose ids are those after the cut: the i-th of `kept` is called i.

    A token whose expert goes gets, of the experts that stay and that it does not have yet, the one whose router row is
    the most similar (cosine) to that of the expert that goes. Slots are filled from the first on. This keeps as many
    different experts for each token as it had; nothing published says how to choose, so that its effect is to be
    measured.

    Args:
        table: expert ids of each token id, (V, k).
        router: rows of the router, (E, H).
        kept: experts that stay, ascending.
        replace: whether experts that go may be replaced.
        layer: its number, for messages.

    Raises:
        BadPlan: the table names an expert that goes and may not replace it, or too few stay.
    """
    place = torch.full((len(router),), -1, dtype=torch.long)
    place[list(kept)] = torch.arange(len(kept))
    new = place[table.long()]  # (V, k)
    if not bool((new < 0).any()):
        return new.to(table.dtype)
    if not replace:
        raise BadPlan(f"the table of token ids in layer {layer} names experts that go.")
    if len(kept) < table.shape[1]:
        raise BadPlan(f"layer {layer} keeps {len(kept)} experts, and its table gives {table.shape[1]} to each token.")
    rows = torch.nn.functional.normalize(router.float(), dim=-1)
    similarity = rows @ rows[list(kept)].T  # (E, K)
    for slot in range(table.shape[1]):
        gone = (new[:, slot] < 0).nonzero().flatten()  # (m,)
        likeness = similarity[table[gone, slot].long()].clone()  # (m, K)
        taken = new[gone]  # (m, k)
        mine, which = (taken >= 0).nonzero(as_tuple=True)
        likeness[mine, taken[mine, which]] = -torch.inf
        new[gone, slot] = likeness.argmax(-1)
    return new.to(table.dtype)
