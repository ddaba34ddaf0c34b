"""Options of generation, named as in transformers, in vLLM's words."""

from __future__ import annotations

from typing import Any

from moeworks.errors import BadData, did_you_mean

__all__ = ["sampling_options"]

_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_options(generation: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return arguments of `vllm.SamplingParams`; greedy unless `do_sample` is true.

    Raises:
        BadData: an option that vLLM does not have, or that would do nothing without sampling.
    """
    options = dict(generation)
    sampled = bool(options.pop("do_sample", False))
    beams = options.pop("num_beams", 1)
    if beams != 1:
        raise BadData("vLLM's engine decodes greedily or samples; leave out num_beams.")
    unknown = options.keys() - set(_SAME)
    if unknown:
        name = min(unknown)
        raise BadData(f"the vLLM engine does not know '{name}'; {did_you_mean(name, ['do_sample', *_SAME])}")
    if not sampled:
        options = {name: value for name, value in options.items() if name == "repetition_penalty"}
        return {"temperature": 0.0, **options}
    return {"temperature": 1.0, "seed": seed, **options}
