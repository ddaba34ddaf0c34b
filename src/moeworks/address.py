"""Addresses: `L12.E37` is expert 37 of global layer 12 (dense layers count), `L12.E37.N5` a neuron inside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from moeworks.errors import BadData

__all__ = ["Address", "NeuronAddress", "parse_address", "parse_addresses", "parse_neuron", "parse_neurons"]

_PATTERN = re.compile(r"L(\d+)\.E(\d+)(?:-(\d+))?")
_NEURON = re.compile(r"L(\d+)\.E(\d+)\.N(\d+)(?:-(\d+))?")


class Address(NamedTuple):
    """One expert: the global layer index and the expert's index in that layer."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"L{self.layer}.E{self.expert}"


class NeuronAddress(NamedTuple):
    """One neuron of one expert: a place of what its down projection reads, counted from 0."""

    layer: int
    expert: int
    neuron: int

    def __str__(self) -> str:
        return f"L{self.layer}.E{self.expert}.N{self.neuron}"

    @property
    def inside(self) -> Address:
        """The expert that the neuron belongs to."""
        return Address(self.layer, self.expert)


def parse_address(text: str) -> Address:
    """Read one address.

    >>> parse_address("L12.E37")
    Address(layer=12, expert=37)
    """
    found = parse_addresses(text)
    if len(found) != 1:
        raise BadData(f"'{text}' names {len(found)} experts; one was expected, such as L12.E37.")
    return found[0]


def parse_addresses(text: str | Iterable[str]) -> list[Address]:
    """Read a comma- or space-separated list of addresses; `L3.E4-7` stands for four experts.

    >>> [str(a) for a in parse_addresses("L0.E1, L3.E4-6")]
    ['L0.E1', 'L3.E4', 'L3.E5', 'L3.E6']
    """
    words = re.split(r"[,\s]+", text.strip()) if isinstance(text, str) else list(text)
    addresses: list[Address] = []
    for word in words:
        match = _PATTERN.fullmatch(word)
        if match is None:
            raise BadData(f"'{word}' is not an expert address; write layer and expert as in L12.E37.")
        layer, first = int(match[1]), int(match[2])
        last = int(match[3]) if match[3] else first
        if last < first:
            raise BadData(f"'{word}' counts backwards; write the smaller expert first.")
        addresses += [Address(layer, expert) for expert in range(first, last + 1)]
    return addresses


def parse_neuron(text: str) -> NeuronAddress:
    """Read the address of one neuron.

    >>> parse_neuron("L3.E5.N17")
    NeuronAddress(layer=3, expert=5, neuron=17)
    """
    found = parse_neurons(text)
    if len(found) != 1:
        raise BadData(f"'{text}' names {len(found)} neurons; one was expected, such as L3.E5.N17.")
    return found[0]


def parse_neurons(text: str | Iterable[str]) -> list[NeuronAddress]:
    """Read a comma- or space-separated list of neurons; `L3.E5.N4-7` stands for four of one expert.

    >>> [str(a) for a in parse_neurons("L0.E1.N2, L3.E5.N4-6")]
    ['L0.E1.N2', 'L3.E5.N4', 'L3.E5.N5', 'L3.E5.N6']
    """
    words = re.split(r"[,\s]+", text.strip()) if isinstance(text, str) else list(text)
    neurons: list[NeuronAddress] = []
    for word in words:
        match = _NEURON.fullmatch(word)
        if match is None:
            raise BadData(f"'{word}' is not a neuron's address; write layer, expert and neuron as in L3.E5.N17.")
        layer, expert, first = int(match[1]), int(match[2]), int(match[3])
        last = int(match[4]) if match[4] else first
        if last < first:
            raise BadData(f"'{word}' counts backwards; write the smaller neuron first.")
        neurons += [NeuronAddress(layer, expert, neuron) for neuron in range(first, last + 1)]
    return neurons
