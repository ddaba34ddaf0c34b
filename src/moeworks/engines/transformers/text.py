"""Generates text with transformers' own `generate`, prompts padded on the left, under a tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moeworks.engines.base import Generation
from moeworks.engines.transformers.gating import sessions
from moeworks.engines.transformers.layout import Batch, GenerationBatch
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tap import Tap
    from moeworks.plan import Plan

__all__ = ["Run", "check_options", "generate", "run_generation"]

# Ways of generating in which a forward pass is not the prompt or one next token for each beam.
REFUSED = ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size", "custom_generate", "inputs_embeds")


class Run(NamedTuple):
    """What one batch generated."""

    batch: GenerationBatch
    generated: list[list[int]]  # token ids of each prompt, the closing one included, padding not
    beam_rows: NDArray[Any] | None  # (prompts, longest) pass rows of the winning beams


def generate(
    engine: TransformersEngine,
    prompts: Sequence[str | Example],
    plan: Plan | None,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    options: dict[str, Any],
) -> list[Generation]:
    """See `TransformersEngine.generate`."""
    check_options(options)
    examples = [Example(text=prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    requests = list(engine.reader.read(iter(examples), room=max_new_tokens, keep_end=True))
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].tokens))
    results: dict[int, Generation] = {}
    with sessions(engine, plan, requests, record=False) as passes:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [requests[place] for place in places]
            for tap, rows in passes(places):
                run = run_generation(engine, tap, batch, max_new_tokens, seed + start, options)
                for row in rows:
                    tokens, place = run.generated[row], places[row]
                    shown = engine.tokenizer.decode(tokens, skip_special_tokens=True)
                    results[place] = Generation(requests[place].content, shown, tuple(tokens))
    return [results[place] for place in range(len(requests))]


def check_options(options: dict[str, Any]) -> None:
    """Refuse options of `generate` under which rows could not be told apart.

    Raises:
        Unsupported: a forward pass would not be the prompt or one token for each beam.
        BadData: a prompt would get several continuations.
    """
    refused = [name for name in REFUSED if options.get(name) is not None]
    if refused:
        raise Unsupported(f"{', '.join(refused)}: passes are then not one token each; leave it out to record or steer.")
    if options.get("num_return_sequences", 1) != 1:
        raise BadData("each prompt gets one continuation; repeat the prompt instead of num_return_sequences.")


def run_generation(
    engine: TransformersEngine,
    tap: Tap,
    prepared: Sequence[Prepared],
    new_tokens: int,
    seed: int,
    options: dict[str, Any],
) -> Run:
    """Generate for one batch of prompts under a tap; options were checked by `check_options`."""
    model = engine.model
    config = model.generation_config
    options = {"do_sample": False, "num_beams": 1, **options}
    batch = GenerationBatch(Batch(prepared, pad_left=True), beams=options["num_beams"])
    tap.start(batch)
    if options["do_sample"]:
        torch.manual_seed(seed)
    with torch.inference_mode():
        output = model.generate(
            **batch.prompts.tensors(engine.pad_token, model.device),
            max_new_tokens=new_tokens,
            pad_token_id=engine.pad_token,
            return_dict_in_generate=True,
            output_scores=options["num_beams"] > 1,
            **options,
        )
    ends = options.get("eos_token_id", config.eos_token_id)
    ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    width = batch.prompts.width
    generated = [_until_end(row, ends) for row in output.sequences[:, width:].tolist()]
    beam_rows = None
    if options["num_beams"] > 1:
        beam_rows = np.asarray(output.beam_indices.cpu().numpy())
    return Run(batch, generated, beam_rows)


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Drop the padding after the first closing token."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
