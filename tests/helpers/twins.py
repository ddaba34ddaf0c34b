"""Planted torch models, made once for all tests of a session, and probes small enough to run in a second."""

from __future__ import annotations

from functools import cache

from moeworks.address import Address, NeuronAddress
from moeworks.engines.fake import null_probe, planted_model, planted_probe
from moeworks.engines.transformers import TransformersEngine
from moeworks.probes import Probe

__all__ = ["no_plant", "plant", "twin"]


@cache
def twin(name: str) -> tuple[TransformersEngine, Address, NeuronAddress]:
    """Return a planted model with the expert and the neuron of its plant."""
    found = planted_model(name)
    return TransformersEngine(found.model, found.tokenizer), found.planted[0], found.planted_neurons[0]


@cache
def plant() -> Probe:
    """Return the probe of the planted behaviour."""
    return planted_probe(60)


@cache
def no_plant() -> Probe:
    """Return a probe whose sides do not differ."""
    return null_probe(60)
