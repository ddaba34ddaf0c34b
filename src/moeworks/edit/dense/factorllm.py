"""FactorLLM: neighbouring pieces of a layer, and a router fitted to which pieces come nearest to the layer.

Source: arXiv 2408.11855, released code read. There the router is trained for 10,000 steps inside the model, with this
loss beside the language model's and a balancing one; here it is fitted layer by layer and nothing else moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeworks.edit.dense.ffn import Ffn, Inputs, Split
from moeworks.edit.dense.partition import How, partition
from moeworks.edit.dense.registry import UPCYCLINGS, needs_inputs
from moeworks.edit.dense.routers import Aim, fit_router, local_labels

__all__ = ["factorllm"]


@UPCYCLINGS.register("factorllm")
def factorllm(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    others: Sequence[Ffn] = (),
    by: How = "contiguous",
    aim: Aim = "share",
) -> Split:
    """Cut into pieces and fit the router to local reconstruction (`local_labels`), by KL, on the rows given.

    The gate is 0 or 1 times E / k in the paper; see `evened` for how a stock router comes to equal weights, and the
    option `scale=mass` for E / k.

    Args:
        ffn: the dense layer.
        inputs: rows of text.
        experts, shared: pieces; the paper has 4 and none.
        top_k: k; 2 in the paper.
        seed: of random pieces.
        others: not used.
        by: how neurons are cut; the released code has neighbours.
        aim: what a piece is compared with; the paper's is `share`, see `local_labels` for when `whole` is better.
    """
    if inputs is None:
        raise needs_inputs(inputs, "factorllm")
    split = partition(ffn, experts=experts, shared=shared, seed=seed, by=by)
    router, _ = fit_router(inputs.hidden, local_labels(ffn, split, inputs, top_k, aim=aim), top_k=top_k)
    return replace(split, router=router)
