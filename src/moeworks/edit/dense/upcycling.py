"""`upcycle`: a stock mixture-of-experts checkpoint from a dense one, compared with it before it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from moeworks.edit.compress.factors import check_options
from moeworks.edit.dense.compare import Difference, compare_models, random_tokens
from moeworks.edit.dense.ffn import Ffn, Inputs, Split
from moeworks.edit.dense.registry import UPCYCLINGS
from moeworks.edit.dense.routers import (
    Fit,
    domain_labels,
    evened,
    fit_router,
    local_labels,
    mean_hidden_rows,
    random_rows,
)
from moeworks.edit.dense.source import Dense, Text, collect_inputs, open_dense, read_texts
from moeworks.edit.dense.targets import build, default_target, target_for
from moeworks.errors import BadData, BadPlan
from moeworks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MARK", "ROUTERS", "Upcycled", "make", "upcycle"]

MARK = "moeworks_upcycle.json"
RouterKind = Literal["auto", "zero", "random", "hidden", "local", "domain"]
ROUTERS = ("auto", "zero", "random", "hidden", "local", "domain")
Scale = Literal["one", "mass"]


@dataclass(frozen=True)
class Upcycled:
    """What was made, and what it costs before any training.

    Attributes:
        family: of the new model.
        experts, top_k, shared, neurons: its numbers; neurons of each expert.
        scale: sum of the chosen experts' weights, in effect.
        router: how its rows came about.
        fits: of each layer's router to its labels, where it was fitted here.
        random: against the dense model on random tokens.
        text: the same on held-out text, or None without text.
        held_out: whether that text was kept from fitting.
        output: the folder, or None if nothing was written.
    """

    family: str
    experts: int
    top_k: int
    shared: int
    neurons: int
    scale: float
    router: str
    fits: tuple[Fit, ...]
    random: Difference
    text: Difference | None
    held_out: bool
    output: str | None = None


def upcycle(
    dense: str | Dense,
    output: str | Path | None = None,
    *,
    experts: int,
    top_k: int = 2,
    method: str = "copy",
    shared: int = 0,
    target: str = "",
    router: RouterKind = "auto",
    examples: Iterable[Example] | None = None,
    by: str = "",
    others: Sequence[str | Dense] = (),
    rows: int = 2048,
    scale: Scale = "one",
    even: bool = True,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Upcycled:
    """Make a mixture-of-experts model of a dense one, measure the difference, and write it if there is an output.

    Weights are normalised to sum 1. Whole copies need no factor. Pieces of a layer count 1 each when all E are chosen
    and the sum of weights is E; with k < E the sum is k (`scale="one"`: each chosen piece as it is), or E
    (`scale="mass"`: each stands for E / k pieces, FactorLLM's rule), and loss is to be expected until it is trained.

    Args:
        dense: model of a family in `FAMILIES`; all of it and the new weights are held in memory.
        output: folder to write, stock; None measures alone.
        experts, top_k, shared: routed experts, experts a token, shared experts.
        method: a registered way: copy, merge, bam, partition, cmoe, factorllm, read_me, unified.
        target: stock class; qwen3_moe or mixtral, with shared experts glm4_moe, unless given.
        router: the method's own or `random`, or for pieces `local` where there is text (auto); zero rows; random;
            mean hidden states of each domain; fitted to local reconstruction; fitted to the domain of each text.
        examples: text; every fourth is kept from fitting and compared on.
        by: label that tells domains apart.
        others: models whose layers are the experts (merge, bam).
        rows: rows of text for each layer, at most about so many.
        scale: see above.
        even: shrink the router of pieces so that chosen ones count alike; see `evened`.
        seed: of everything that is drawn.
        options: of the method.
        overwrite: replace an earlier output of this function.

    Raises:
        BadData, BadPlan, Unsupported: with the reason; nothing is written then.
    """
    from moeworks.train.save import check_output

    if output is not None:
        check_output(Path(output), mark=MARK, overwrite=overwrite)
    source = open_dense(dense) if isinstance(dense, str) else dense
    models = [open_dense(other) if isinstance(other, str) else other for other in others]
    texts = [] if examples is None else read_texts(source, iter(examples), by=by)
    model, made = make(
        source,
        experts=experts,
        top_k=top_k,
        method=method,
        shared=shared,
        target=target,
        router=router,
        texts=texts,
        others=models,
        rows=rows,
        scale=scale,
        even=even,
        seed=seed,
        options=options,
    )
    if output is None:
        return made
    made = replace(made, output=str(output))
    chosen = {"method": method, "options": dict(options or {}), "seed": seed, "source": source.name}
    _write(model, source, Path(output), {**chosen, "others": [other.name for other in models], **asdict(made)})
    return made


def make(
    dense: Dense,
    *,
    experts: int,
    top_k: int = 2,
    method: str = "copy",
    shared: int = 0,
    target: str = "",
    router: RouterKind = "auto",
    texts: Sequence[Text] = (),
    others: Sequence[Dense] = (),
    rows: int = 2048,
    scale: Scale = "one",
    even: bool = True,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, Upcycled]:
    """Do what `upcycle` does in memory and return the model as well."""
    function, extra = UPCYCLINGS.get(method), dict(options or {})
    fixed = {"experts": experts, "top_k": top_k, "shared": shared, "seed": seed}
    check_options(function, {**fixed, **extra})
    _check_numbers(experts, top_k, router, scale)
    host = target_for(target or default_target(dense.family, shared), dense.model.config, shared=shared)
    _same_shape(dense, others)
    held_out = len(texts) >= 4
    fitted = [text for i, text in enumerate(texts) if i % 4 != 3] if held_out else list(texts)
    inputs: list[Inputs] = collect_inputs(dense, fitted, rows=rows, seed=seed) if fitted else []
    splits: list[Split] = []
    routers: list[Tensor] = []
    fits: list[Fit] = []
    kind = ""
    for layer in range(len(dense.layers)):
        ffn, seen = dense.ffn(layer), inputs[layer] if inputs else None
        parts = [other.ffn(layer) for other in others]
        split = function(ffn, seen, **{**fixed, "seed": seed + layer}, others=parts, **extra)
        rows_, fit, kind = _router(ffn, split, seen, router, top_k, seed + layer)
        if split.each is not None and even:
            rows_ = evened(rows_, None if seen is None else seen.hidden)
        if not layer:
            _check_width(split)
        splits.append(replace(split, router=None))
        routers.append(rows_)
        fits += [] if fit is None else [fit]
    factor = 1.0 if splits[0].each is None else float(top_k if scale == "one" else experts)
    rest = _mean_weights(others) if method == "bam" else None
    model = build(dense, host, splits, routers, top_k=top_k, scale=factor, rest=rest)
    compared = [text.tokens for i, text in enumerate(texts) if not held_out or i % 4 == 3]
    made = Upcycled(
        family=host.family,
        experts=experts,
        top_k=top_k,
        shared=shared,
        neurons=splits[0].up.shape[1],
        scale=factor,
        router=kind,
        fits=tuple(fits),
        random=compare_models(dense.model, model, random_tokens(dense.model.config.vocab_size, seed=seed)),
        text=compare_models(dense.model, model, compared) if compared else None,
        held_out=held_out,
    )
    return model, made


def _router(
    ffn: Ffn, split: Split, inputs: Inputs | None, kind: str, top_k: int, seed: int
) -> tuple[Tensor, Fit | None, str]:
    """Return rows, how well they fit, and how they came about."""
    width = ffn.up.shape[1]
    if kind == "auto" and split.router is not None:
        return split.router, None, "own"
    if kind == "auto":
        pieces = split.each is not None
        kind = "zero" if pieces and top_k == split.experts else "local" if pieces and inputs is not None else "random"
    if kind == "zero":
        if top_k < split.experts and split.each is not None:
            raise BadPlan(
                f"a router of zeros sends every token to the same {top_k} of {split.experts} pieces; take another one."
            )
        return torch.zeros(split.experts, width), None, kind
    if kind == "random":
        return random_rows(split.experts, width, seed=seed), None, kind
    if inputs is None:
        raise BadData(f"a router made by '{kind}' looks at text; give some with --data (examples=).")
    if kind == "hidden":
        return mean_hidden_rows(inputs, split.experts), None, kind
    labels = domain_labels(inputs, split.experts) if kind == "domain" else local_labels(ffn, split, inputs, top_k)
    rows, fit = fit_router(inputs.hidden, labels, top_k=1 if kind == "domain" else top_k)
    return rows, fit, kind


def _check_numbers(experts: int, top_k: int, router: str, scale: str) -> None:
    problems = []
    if experts < 2:
        problems.append(f"{experts} experts are no choice; give 2 or more")
    if not 1 <= top_k <= experts:
        problems.append(f"a token cannot have {top_k} of {experts} experts; give --top-k 1 to {experts}")
    if router not in ROUTERS:
        problems.append(f"router is one of {', '.join(ROUTERS)}, not '{router}'")
    if scale not in ("one", "mass"):
        problems.append(f"scale is one or mass, not '{scale}'")
    if problems:
        raise BadPlan(f"This cannot be made: {'; '.join(problems)}.")


def _check_width(split: Split) -> None:
    """Refuse experts so narrow that the grouped products of transformers, its default, do not take their rows."""
    width, size = split.up.shape[1], split.up.element_size()
    if width * size % 16:
        raise BadPlan(
            f"experts of {width} neurons have rows of {width * size} bytes; stock kernels need a multiple of 16 bytes, "
            f"{16 // size} neurons. Choose other numbers of routed and shared experts."
        )


def _same_shape(dense: Dense, others: Sequence[Dense]) -> None:
    own = {name: tensor.shape for name, tensor in dense.model.state_dict().items()}
    for other in others:
        if {name: tensor.shape for name, tensor in other.model.state_dict().items()} != own:
            raise BadData(f"'{other.name}' has other weights than '{dense.name}'; both have to be tunes of one base.")


def _mean_weights(others: Sequence[Dense]) -> dict[str, Tensor]:
    """Return the mean of the models' weights outside their feed-forward layers, by name."""
    states = [other.model.state_dict() for other in others]
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(tensor.dtype)
        for name, tensor in states[0].items()
        if ".mlp." not in name
    }


def _write(model: PreTrainedModel, dense: Dense, output: Path, record: Mapping[str, Any]) -> None:
    from transformers.utils import logging

    from moeworks import __version__
    from moeworks.engines.transformers.loading import SETTINGS
    from moeworks.train.save import whole_folder

    logging.disable_progress_bar()
    with whole_folder(output) as temporary:
        model.save_pretrained(temporary)
        if dense.tokenizer is not None:
            dense.tokenizer.save_pretrained(temporary)
        if dense.settings:
            (temporary / SETTINGS).write_text(json.dumps(dict(dense.settings)) + "\n", encoding="utf-8")
        document = {"format": "moeworks.upcycle", "version": 1, "moeworks": __version__, **record}
        (temporary / MARK).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
