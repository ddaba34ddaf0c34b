"""RouterLens: tunes the routers alone on a task, counts which experts they then select, and undoes the tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.address import Address
from moeworks.artefact import hash_texts
from moeworks.errors import BadData
from moeworks.find.artefact import COLUMNS, Scores, ScoresHeader, hash_scores
from moeworks.train.batches import chosen, in_order, read_requests, training_batch
from moeworks.train.engine import opened
from moeworks.train.loop import Optimisation, fit
from moeworks.train.losses import next_token_loss, token_log_probabilities
from moeworks.train.measure import count_selected, language_logits
from moeworks.train.memory import announce as on_standard_error
from moeworks.train.memory import estimate
from moeworks.train.slices import Trained, low_rank_parts
from moeworks.train.texts import Data, examples_of

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["ceft_settings", "router_lens", "top_experts"]

Array = NDArray[Any]


def router_lens(
    model: str | Engine,
    texts: Data,
    *,
    epochs: float = 3.0,
    rank: int = 8,
    alpha: float = 32.0,
    learning_rate: float = 5e-4,
    batch_size: int = 8,
    samples: int = 2000,
    max_tokens: int = 300,
    per_layer: int = 8,
    contrast: str = "",
    seed: int = 0,
    progress: bool = False,
    announce: Callable[[str], None] = on_standard_error,
    command: str = "",
) -> Scores:
    """Return how often each expert runs for a task's tokens once the routers were tuned on it; nothing else is trained.

    Load balancing in training hides specialists: a router spreads tokens that it could send to the expert that is best
    for them. Low-rank updates of the gate matrices let it choose, and the counts of top-k selections over all tokens
    of the texts (context, question and answer) say whom. Source: RouterLens, arXiv 2508.19594, whose released code
    sets rank 8, alpha 32, learning rate 5e-4, 3 epochs, 2,000 texts of 300 tokens, 8 experts a layer; counts there,
    here divided by the number of tokens, which ranks alike within a layer. The batch size is ours; the loss is that of
    the answers where texts have answers, else of all tokens. There is no test: the method ranks, it claims nothing.
    The model is left as it was, to the bit.

    Args:
        model: `lab`, a folder, a Hub id, or an engine of `moeworks.load`.
        texts: of the task, or their source (see `read_examples`); of a probe, those of its contrast side.
        epochs, rank, alpha, learning_rate, batch_size: of the tuning, by AdamW.
        samples: at most so many texts, drawn by the seed.
        max_tokens: texts are cut to so many tokens.
        per_layer: experts a layer that are named in the header.
        contrast: clause that chose the texts, for the header.
        seed: of all that is drawn.
        progress: show a bar on standard error.
        announce: gets the sentence on memory before training starts.
        command: how this was called, for the header.

    Returns:
        Scores with `score` = `contrast_rate` = share of tokens an expert runs for after tuning, `against_rate` the
        same before; p, q and intervals are NaN, nothing passes.

    Raises:
        BadData: texts or options that cannot be used.
        Unsupported: a router has no matrix that can be tuned, or its decisions cannot be read.
    """
    if epochs <= 0 or rank < 1 or batch_size < 1 or samples < 1 or per_layer < 1:
        raise BadData("epochs, rank, batch size, samples and experts a layer must be above 0.")
    engine = opened(model, "RouterLens")
    given = examples_of(engine, texts, "contrast")
    requests = chosen(read_requests(engine, given, name="task", max_tokens=max_tokens), samples, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        part
        for router in engine.routers
        for part in low_rank_parts(router, rank=rank, alpha=alpha, generator=generator)
    ]
    trained = Trained(engine.model, parts)
    optimisation = Optimisation(
        steps=max(1, math.ceil(len(requests) * epochs / batch_size)), learning_rate=learning_rate
    )
    width = max(len(request.tokens) for request in requests)
    memory = estimate(
        engine, trained, tokens=batch_size * width, width=width, memories=optimisation.memories, from_layer=0
    )
    announce(memory.words("Tuning the routers"))

    def step(number: int) -> dict[str, float]:
        batch = training_batch(engine, in_order(requests, number, batch_size, seed=seed))
        logits = language_logits(engine, batch)
        loss = next_token_loss(token_log_probabilities(logits, batch.inputs["input_ids"]), batch.counted)
        trained.accumulate(loss)
        return {"loss": float(loss.detach())}

    before, tokens = count_selected(engine, requests, batch_size=batch_size)
    try:
        with engine.session(None, record=False, plain=True):
            history = fit(trained, step, optimisation, what="tuning routers", progress=progress)
        after, _ = count_selected(engine, requests, batch_size=batch_size)
    finally:
        trained.restore()
    epoch = min(len(history), math.ceil(len(requests) / batch_size))
    facts = {
        "loss_first_epoch": float(np.mean([entry["loss"] for entry in history[:epoch]])),
        "loss_last_epoch": float(np.mean([entry["loss"] for entry in history[-epoch:]])),
        "tuned_numbers": trained.numbers,
    }
    documents = len({request.document for request in requests})
    header = ScoresHeader(
        moeworks=__version__,
        model=engine.identity,
        engine=engine.engine,
        command=command,
        seed=seed,
        text_hash=hash_texts(request.content for request in requests),
        contrast=contrast,
        against=contrast,
        method="router_lens",
        options={
            "epochs": epochs,
            "rank": rank,
            "alpha": alpha,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "samples": samples,
            "max_tokens": max_tokens,
            "per_layer": per_layer,
        },
        aggregate="micro",
        documents=(documents, documents),
        pairs=documents,
        tokens=(tokens, tokens),
        null="none",
        permutations=0,
        drawn=0,
        exhaustive=False,
        smallest_p=1.0,
        alpha=0.05,
        bootstrap=0,
        top=per_layer,
        facts=facts,
        notes=("The second rate is that of the same tokens before the routers were tuned.",),
    )
    return _scores(engine, before, after, tokens, header)


def _scores(
    engine: TransformersEngine, before: dict[int, Array], after: dict[int, Array], tokens: int, header: ScoresHeader
) -> Scores:
    rate = np.concatenate([after[router.layer] for router in engine.routers]) / tokens
    earlier = np.concatenate([before[router.layer] for router in engine.routers]) / tokens
    missing = np.full(len(rate), np.nan)
    layers = np.concatenate([np.full(router.experts, router.layer, np.int32) for router in engine.routers])
    experts = np.concatenate([np.arange(router.experts, dtype=np.int32) for router in engine.routers])
    columns = [layers, experts, rate, rate, earlier, *[missing] * 5, np.zeros(len(rate), bool)]
    table = pa.table(columns, schema=COLUMNS)
    scores = Scores(table, header)
    named = top_experts(scores, header.options["per_layer"])
    facts = header.facts | {"experts": [str(Address(layer, e)) for layer, found in named.items() for e in found]}
    header = header.model_copy(update={"facts": facts})
    return Scores(table, header.model_copy(update={"hash": hash_scores(table, header)}))


def top_experts(scores: Scores, per_layer: int = 8) -> dict[int, list[int]]:
    """Return the experts with the largest scores of every layer, largest first; equal ones by number."""
    layer, expert, score = (scores.column(name) for name in ("layer", "expert", "score"))
    found = {}
    for number in scores.layers:
        own = np.flatnonzero(layer == number)
        order = own[np.lexsort((expert[own], -score[own]))]
        found[number] = expert[order][:per_layer].tolist()
    return found


def ceft_settings(
    scores: Scores, engine: TransformersEngine, *, per_layer: int = 8, rank: int = 8, alpha: float = 32.0
) -> dict[str, Any]:
    """Return what CEFT would fine-tune, as settings in the manner of PEFT: the projections of the top experts.

    CEFT (arXiv 2508.19594) puts low-rank adapters on gate, up and down projection of these experts alone. Stacked
    experts are one parameter, which PEFT adapts as a whole: `experts` says which slices of `target_parameters` to
    train; the others have to be masked by the trainer.
    """
    from moeworks.train.slices import expert_parts

    chosen_experts = top_experts(scores, per_layer)
    names = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    routers = {router.layer: router for router in engine.routers}
    targets = [names[id(part.parameter)] for layer in chosen_experts for part in expert_parts(routers[layer], 0)]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_parameters": targets,
        "experts": {str(layer): experts for layer, experts in chosen_experts.items()},
    }
