"""`moeworks edit upcycle`: a mixture of experts from a dense model, in a stock class, compared with it first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeworks.cli.options import Json, Seed, named_values, one_of

if TYPE_CHECKING:
    from moeworks.edit.dense.upcycling import Upcycled


def command(
    dense: Annotated[
        str,
        typer.Argument(metavar="DENSE", help="A dense Qwen3, Llama or Mistral: folder or Hub id.", show_default=False),
    ],
    experts: Annotated[int, typer.Option("--experts", min=2, help="Routed experts.")] = 8,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Experts a token.")] = 2,
    method: Annotated[
        str,
        typer.Option("--method", help="copy, merge, bam; pieces: partition, cmoe, factorllm, read_me, unified."),
    ] = "copy",
    shared: Annotated[int, typer.Option("--shared", min=0, help="Shared experts, of the same width.")] = 0,
    target: Annotated[
        str,
        typer.Option(
            "--target", help="qwen3_moe or mixtral; with shared experts glm4_moe or dots1. Fitting, unless given."
        ),
    ] = "",
    router: Annotated[
        str, typer.Option("--router", help="auto (the method's), zero, random, hidden, local or domain.")
    ] = "auto",
    data: Annotated[
        str, typer.Option("--data", metavar="DATA", help="Texts for methods that look at them, and to measure on.")
    ] = "",
    by: Annotated[str, typer.Option("--by", metavar="LABEL", help="Label that tells domains apart.")] = "",
    expert: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="MODEL", help="A fine-tune that is an expert (merge, bam); repeatable."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of text for each layer, about.")] = 2048,
    scale: Annotated[
        str, typer.Option("--scale", help="Weight of a chosen piece: one, or mass (experts / top-k).")
    ] = "one",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; nothing is written without it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Make experts of a dense model's feed-forward layers and print how far the result is from it.

    Copies, and pieces when all are chosen, compute what the dense model does. Fewer pieces lose, until they are
    trained; give --data to see how much. The dense model and the new weights are held in memory.
    """
    from moeworks.cli.output import print_json
    from moeworks.data import read_examples
    from moeworks.edit.dense import TARGETS, UPCYCLINGS, upcycle
    from moeworks.edit.dense.upcycling import ROUTERS

    one_of(method, UPCYCLINGS.names(), "--method")
    chosen: Any = one_of(router, ROUTERS, "--router")
    weight: Any = one_of(scale, ("one", "mass"), "--scale")
    if target:
        one_of(target, tuple(TARGETS), "--target")
    made = upcycle(
        dense,
        output,
        experts=experts,
        top_k=top_k,
        method=method,
        shared=shared,
        target=target,
        router=chosen,
        examples=read_examples(data) if data else None,
        by=by,
        others=expert or (),
        rows=rows,
        scale=weight,
        seed=seed,
        options=named_values(option),
        overwrite=overwrite,
    )
    if json:
        print_json(made)
    else:
        _print(made)


def _print(made: Upcycled) -> None:
    from statistics import fmean

    from moeworks.cli.output import print_table

    share = f" and {made.shared} shared" if made.shared else ""
    print(
        f"{made.family}: {made.experts} experts{share} of {made.neurons} neurons, {made.top_k} a token, weights that "
        f"sum to {made.scale:g}; router: {made.router}."
    )
    if made.fits:
        near, chance, same = (
            fmean(getattr(fit, name) for fit in made.fits) for name in ("divergence", "chance", "agreement")
        )
        print(
            f"Routers follow their labels with a KL of {near:.3g} nats (all experts alike: {chance:.3g}) and "
            f"{same:.0%} of the same experts, on the rows they were fitted to."
        )
    rows: list[tuple[Any, ...]] = []
    texts = "held-out text" if made.held_out else "the text given"
    for what, found in (("random tokens", made.random), (texts, made.text)):
        if found is not None:
            perplexities = (found.perplexity_before, found.perplexity_after) if found is made.text else (None, None)
            rows.append((what, found.tokens, found.largest, found.divergence, found.agreement, *perplexities))
    print_table(["against the dense model", "tokens", "logits", "KL", "same top", "perplexity", "after"], rows)
    if made.text is None and made.random.divergence > 1e-6:
        print("It does not compute what the dense model did; give --data to see what that costs on text.")
    if made.output is not None:
        print(f"Written to {made.output}.")
