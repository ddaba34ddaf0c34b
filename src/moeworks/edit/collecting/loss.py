"""Gradients of the language-modelling loss at the output of every expert, for HEAPr's second-order score of neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moeworks.edit.collecting.corpus import Corpus
from moeworks.edit.collecting.gather import LayerGather
from moeworks.edit.collecting.taps import Tap, looking_away
from moeworks.engines.transformers.inside import ExpertPass, PassRequests, Watch, _logits, _with_gradients
from moeworks.engines.transformers.layout import Batch
from moeworks.where import Rows, Where

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["add_gradients", "next_token_loss"]


def add_gradients(
    engine: TransformersEngine, corpus: Corpus, batch: Batch, gathers: Sequence[LayerGather], taps: Sequence[Tap]
) -> None:
    """Run a batch once more, with its graph, and add `neuron_loss` to every layer.

    The loss is the sum, not the mean, of the cross-entropy of every next token of every text, so that it does not
    depend on how texts are batched; HEAPr's ranking does not depend on the factor between the two. Experts are
    recomputed in place of the module's own forward for this pass, which is compared with it at first use.
    """
    seen: list[tuple[ExpertPass, Tensor]] = []
    by_layer = {gather.layer: gather for gather in gathers if gather.wants("neuron_loss")}
    if not by_layer:
        return

    def observe(shown: ExpertPass, rows: Rows, requests: PassRequests) -> None:
        texts = requests.numbers[shown.take(rows.request)]
        seen.append((shown, torch.from_numpy(np.asarray(corpus.labels)[texts])))

    watch = Watch(observe, Where(layer=tuple(sorted(by_layer))), gradients=True)
    with (
        looking_away(taps),
        _with_gradients(engine.model),
        engine.session(None, record=False, watch=watch) as tap,
    ):
        tap.start(batch)
        tensors = batch.tensors(engine.pad_token, engine.model.device)
        logits = _logits(engine.model(**tensors, use_cache=False))
        loss = next_token_loss(logits, tensors["input_ids"], tensors["attention_mask"])
        gradients = torch.autograd.grad(loss, [shown.outputs for shown, _ in seen], allow_unused=True)
    for (shown, labels), gradient in zip(seen, gradients, strict=True):
        if gradient is not None and shown.layer in by_layer:
            by_layer[shown.layer].add_gradients(shown.expert, labels.to(shown.key.device), shown.key.detach(), gradient)


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the summed cross-entropy of every token that follows another real token of its text.

    Args:
        logits: (batch, width, vocabulary).
        ids, mask: (batch, width) tokens, and 1 where they are real.
    """
    there = (mask[:, 1:] * mask[:, :-1]).bool()
    targets = ids[:, 1:].masked_fill(~there, -100)
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
    )
