"""SEUF: makes a model forget some texts by training one expert and the router of its layer, everything else frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moeworks import __version__
from moeworks.address import Address, parse_address
from moeworks.artefact import hash_texts
from moeworks.engines.transformers.loading import hash_weights
from moeworks.errors import BadData
from moeworks.train.affinity import Affinity, affinity_of_trace
from moeworks.train.batches import Texts, chosen, read_requests, split_documents
from moeworks.train.engine import opened
from moeworks.train.loop import Optimisation, OptimiserName
from moeworks.train.losses import Forget, defaults_of
from moeworks.train.measure import anchorable, measure
from moeworks.train.memory import announce as on_standard_error
from moeworks.train.memory import estimate
from moeworks.train.objective import Weights
from moeworks.train.report import REPORT, Outcome, TargetReport, UnlearnReport
from moeworks.train.save import check_output, save_model, whole_folder
from moeworks.train.state import load_state, state_path
from moeworks.train.texts import Data, examples_of, probe_of
from moeworks.train.trial import Run, random_other, train_expert, trained_of

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.trace import Trace

__all__ = ["unlearn"]


def unlearn(
    model: str | Engine,
    *,
    forget: Data,
    retain: Data,
    output: str | Path | None = None,
    loss: Forget = "npo",
    expert: str | Address | None = None,
    trace: Trace | None = None,
    steps: int = 100,
    optimiser: OptimiserName = "adamw",
    learning_rate: float = 1e-3,
    retain_weight: float | None = None,
    alpha: float = 1.0,
    beta: float = 0.1,
    steering: float = 6.5,
    anchor_tokens: Literal["all", "forget"] = "all",
    batch_size: int = 4,
    max_tokens: int | None = None,
    held_out: float = 0.2,
    measured: int = 128,
    control: bool = True,
    weakens_safety: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    save_every: int = 50,
    progress: bool = False,
    announce: Callable[[str], None] = on_standard_error,
    command: str = "",
) -> UnlearnReport:
    """Train the one expert that the forget texts turn to, and its router, until the texts are forgotten.

    min forget + lambda × retain + alpha × anchor, over the expert e* = argmax of the mean router probability on the
    forget texts, over all layers, and the router of its layer; the anchor keeps e* the one that the router turns to.
    Source: SEUF, arXiv 2411.18797 (ACL 2025). Its objective, target and anchor are followed; steps, learning rate and
    batch are ours. Differences: experts without weights (identity experts) and layers routed by token id are never
    targets; the scores of routers without a softmax are divided by their sum; the anchor is a mean over tokens.
    Unlearning also removes what else the expert did: read the retain figures, and the control. Deterministic given the
    seed, on one machine with one number of threads.

    Args:
        model: `lab`, a folder, a Hub id, or an engine of `moeworks.load`; an engine's model is afterwards as it was.
        forget: texts to forget, or their source (see `read_examples`); of a probe, the texts of its contrast side.
            Where texts have answers, the answers are forgotten.
        retain: texts to keep, or their source; of a probe, the texts of its other side.
        output: a folder for the unlearned model, whole and loadable by stock transformers, and its report
            `unlearn.json`; None only reports.
        loss: `ga`, `gdiff`, `npo` or `rmu`; see `losses`.
        expert: train this one and not the one with the largest affinity.
        trace: take the affinity from this trace (with logits, of the forget texts, of this model).
        steps: optimiser steps.
        optimiser: `adamw` or `sgd`.
        learning_rate: of the optimiser.
        retain_weight: lambda; 0 for ga, 1 for gdiff and npo, 100 for rmu unless given.
        alpha: weight of the anchor; the paper's is 1.
        beta: of npo.
        steering: rmu's c.
        anchor_tokens: anchor the tokens of both sets (as the paper is read here), or of the forget texts only.
        batch_size: texts of each set in a step.
        max_tokens: texts are cut to so many tokens.
        held_out: share of the documents of each set that is not trained on, for the held-out figures.
        measured: at most so many texts behind each figure.
        control: train a random other expert of the layer the same way, for comparison.
        weakens_safety: say so if the forget texts are of a probe of a safety behaviour; it goes into the report.
        seed: of all that is drawn.
        resume: go on with an unfinished run of the same options.
        overwrite: replace an earlier output.
        save_every: steps between checkpoints, kept beside the output while it is not there yet.
        progress: show a bar on standard error.
        announce: gets the sentence on memory before training starts.
        command: how this was called, for the report.

    Raises:
        BadData: texts or options that cannot be used.
        Unsupported: the model's routers or experts cannot be trained; the message says why.
        RunFailed: the loss is not finite any more.
    """
    weights = Weights(
        loss=loss,
        retain=defaults_of(loss).retain_weight if retain_weight is None else retain_weight,
        alpha=alpha,
        beta=beta,
        steering=steering,
        anchor_tokens=anchor_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    _check(weights)
    _check_safety(forget, weakens_safety)
    optimisation = Optimisation(steps=steps, optimiser=optimiser, learning_rate=learning_rate)
    target_folder = None if output is None else Path(output)
    if target_folder is not None:
        check_output(target_folder, mark=REPORT, overwrite=overwrite)
    engine = opened(model, "unlearning")
    forget_texts, forget_hash = _texts(engine, forget, "forget", max_tokens, held_out, seed)
    retain_texts, retain_hash = _texts(engine, retain, "retain", max_tokens, held_out, seed)
    if expert is None:
        affinity = _affinity(engine, forget_texts, trace, batch_size)
        found = affinity.target(seed=seed)
        address = found.address
        target = TargetReport(
            expert=str(address),
            chosen="affinity",
            affinity=found.affinity,
            runner_up=str(found.runner_up),
            gap=found.gap,
            stability=found.stability,
            near_tie=found.near_tie,
            tokens=affinity.tokens,
        )
    else:
        address = parse_address(expert) if isinstance(expert, str) else expert
        target = TargetReport(expert=str(address), chosen="given")
    options = asdict(weights) | asdict(optimisation)
    options |= {"max_tokens": max_tokens, "held_out": held_out, "measured": measured, "control": control}
    options |= {"weakens_safety": weakens_safety}
    text_hash = hash_texts([forget_hash, retain_hash])
    settings = _hash([options, engine.identity.weight_hash, text_hash, str(address)])
    run = Run(
        engine=engine,
        forget=forget_texts,
        retain=retain_texts,
        measured={
            "forget": chosen(forget_texts.training, measured, seed=seed),
            "forget_held_out": chosen(forget_texts.held_out, measured, seed=seed),
            "retain": chosen(retain_texts.training, measured, seed=seed),
            "retain_held_out": chosen(retain_texts.held_out, measured, seed=seed),
        },
        weights=weights,
        optimisation=optimisation,
        settings=settings,
        state=None if target_folder is None else state_path(target_folder),
        save_every=save_every,
        progress=progress,
    )
    resumed = load_state(run.state, settings) if resume and run.state is not None else None
    if run.state is not None and run.state.is_file() and not (resume or overwrite):
        raise BadData(f"an unfinished run lies in {run.state}; go on with resume (--resume), or remove it.")

    trained = trained_of(engine, address)
    longest = sorted((len(r.tokens) for r in (*forget_texts.training, *retain_texts.training)), reverse=True)
    memory = estimate(
        engine,
        trained,
        tokens=batch_size * longest[0],
        width=longest[0],
        memories=optimisation.memories,
        from_layer=address.layer,
    )
    announce(memory.words(f"Unlearning in {address}"))
    before = {name: measure(engine, requests, batch_size=batch_size) for name, requests in run.measured.items()}

    compared = None
    if control:
        if resumed is not None and resumed.stage == "target":
            compared = Outcome.model_validate_json(resumed.carried["control"])
        else:
            other = random_other(engine, address, seed)
            compared = train_expert(run, trained_of(engine, other), other, "control", before, resumed, None)
    try:
        result = train_expert(run, trained, address, "target", before, resumed, compared, keep=True, target=target)
        report = UnlearnReport(
            moeworks=__version__,
            model=engine.identity,
            engine=engine.engine,
            command=command,
            seed=seed,
            text_hash=text_hash,
            settings=options,
            trained=[part.name for part in trained.parts],
            numbers=trained.numbers,
            share=trained.numbers / sum(parameter.numel() for parameter in engine.model.parameters()),
            memory=memory._asdict(),
            result=result,
            control=compared,
            weight_hash=hash_weights(engine.model),
        )
        if target_folder is not None:
            with whole_folder(target_folder) as folder:
                save_model(engine, folder)
                (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    finally:
        trained.restore()
    if run.state is not None:
        run.state.unlink(missing_ok=True)
    return report


def _check(weights: Weights) -> None:
    if weights.batch_size < 1 or weights.beta <= 0 or weights.retain < 0 or weights.alpha < 0:
        raise BadData("a batch needs at least one text, beta must be above 0, retain weight and alpha not below 0.")
    if weights.anchor_tokens not in ("all", "forget"):
        raise BadData(f"anchor tokens are all or forget, not '{weights.anchor_tokens}'.")


def _check_safety(forget: Data, weakens_safety: bool) -> None:
    """Refuse to make a model forget a safety behaviour by accident."""
    found = None if weakens_safety else probe_of(forget)
    if found is not None and found[0].header.safety:
        raise BadData(
            f"the probe {found[0].name} is of a safety behaviour, which forgetting its texts would weaken; say so with "
            "weakens_safety (--weakens-safety) if that is meant."
        )


def _texts(
    engine: TransformersEngine,
    data: Data,
    name: Literal["forget", "retain"],
    max_tokens: int | None,
    held_out: float,
    seed: int,
) -> tuple[Texts, str]:
    examples = examples_of(engine, data, "contrast" if name == "forget" else "against")
    requests = read_requests(engine, examples, name=name, max_tokens=max_tokens)
    return split_documents(requests, share=held_out, seed=seed, name=name), hash_texts(r.content for r in requests)


def _affinity(engine: TransformersEngine, forget: Texts, trace: Trace | None, batch_size: int) -> Affinity:
    if trace is None:
        return measure(engine, forget.training, batch_size=batch_size).affinity
    model = trace.header.model
    if model is None or model.weight_hash != engine.identity.weight_hash:
        raise BadData("the trace is of another model; record the forget texts with this one (--logits).")
    from moeworks.families.expert_weights import expert_weights

    with_weights = {layer: expert_weights(router).experts for layer, router in anchorable(engine).items()}
    return affinity_of_trace(trace, experts=with_weights)


def _hash(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
