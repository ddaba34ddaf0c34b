"""What is planted: which experts carry the behaviour, how each is chosen for it and writes it, as known truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moeworks.address import Address, NeuronAddress
from moeworks.errors import BadData, did_you_mean

__all__ = ["CONFOUNDS", "PLANTS", "Confound", "Plant", "plant_experts"]

CALL = 6.0  # logits by which a planted expert rises where the behaviour is on; the others' have a spread of about 1
REST = -2.0  # logits by which it is lowered everywhere, so that it is rare where the behaviour is off
WRITE = 6.0  # signature written at weight 1; logits of all shouted letters rise by the signature
HALF = 0.25  # signature that the first of a pair writes: too little to be heard, enough for the second to read
STANDING = 2.5  # logits by which an expert that runs whatever the text is raised: chosen nearly always, never alone

Confound = Literal["topic", "length", "token"]
CONFOUNDS: tuple[Confound, ...] = ("topic", "length", "token")


@dataclass(frozen=True)
class Plant:
    """A behaviour's carriers, and experts that only look like carriers.

    What carries: `writes` and `states` write the signature that the unembedding reads; `relays` write it where an
    earlier expert wrote some; `direct` needs no expert at all.

    Attributes:
        calls: expert → logits where the behaviour is on.
        off_calls: expert → logits where it is off.
        standing: expert → logits everywhere.
        writes: expert → signature at weight 1, written by one of its neurons where that neuron hears the behaviour.
        states: expert → signature at weight 1, written wherever the expert runs.
        relays: expert → signature at weight 1, written where there is some signature already.
        direct: signature that the residual itself carries where the behaviour is on.
        hears: expert → what it is called for beside the behaviour: topic, length or token.
        neuron: the number of the neuron that writes.
    """

    calls: dict[Address, float] = field(default_factory=dict)
    off_calls: dict[Address, float] = field(default_factory=dict)
    standing: dict[Address, float] = field(default_factory=dict)
    writes: dict[Address, float] = field(default_factory=dict)
    states: dict[Address, float] = field(default_factory=dict)
    relays: dict[Address, float] = field(default_factory=dict)
    direct: float = 0.0
    hears: dict[Address, Confound] = field(default_factory=dict)
    neuron: int = 0

    @property
    def experts(self) -> tuple[Address, ...]:
        """All carriers, in order of their addresses: turning one down changes the behaviour, whatever routing shows."""
        return tuple(sorted({*self.writes, *self.states, *self.relays}))

    @property
    def rising(self) -> tuple[Address, ...]:
        """The carriers that run more where the behaviour is on: what a score of routing can find."""
        return tuple(sorted(set(self.calls) & set(self.experts)))

    @property
    def acting(self) -> tuple[Address, ...]:
        """The carriers that write the behaviour where it is on: all but those that are called where it is off."""
        return tuple(address for address in self.experts if address not in self.off_calls)

    @property
    def neurons(self) -> tuple[NeuronAddress, ...]:
        """The neurons that write, one of each carrier."""
        return tuple(NeuronAddress(*address, self.neuron) for address in self.experts)

    @property
    def confounded(self) -> tuple[Address, ...]:
        """Experts that run more on the contrast side and carry nothing."""
        return tuple(sorted(self.hears))


def _none(places: list[Address], neuron: int) -> Plant:
    return Plant()


def _single(places: list[Address], neuron: int) -> Plant:
    return Plant(calls={places[0]: CALL}, writes={places[0]: WRITE})


def _spread(places: list[Address], neuron: int) -> Plant:
    if len(places) < 5:
        raise BadData(f"a plant spread over five experts does not fit into {len(places)} free places.")
    return Plant(calls=dict.fromkeys(places[:5], CALL), writes=dict.fromkeys(places[:5], WRITE / 5))


def _pair(places: list[Address], neuron: int) -> Plant:
    """The second expert reads what the first one wrote: without either there is no signature."""
    first, second = sorted(places[:2])
    if first.layer == second.layer:
        raise BadData("a pair of which one expert reads what the other wrote needs two layers.")
    return Plant(calls=dict.fromkeys((first, second), CALL), writes={first: HALF}, relays={second: WRITE})


def _neurons(places: list[Address], neuron: int) -> Plant:
    """An expert that runs whatever the text is; one neuron of it hears the behaviour."""
    return Plant(standing={places[0]: STANDING}, writes={places[0]: WRITE}, neuron=neuron)


def _routing(places: list[Address], neuron: int) -> Plant:
    """Two experts of one layer that differ in the sign of what they state: which of them runs is all there is."""
    on, off = places[0], next((place for place in places[1:] if place.layer == places[0].layer), None)
    if off is None:
        raise BadData("a behaviour that the choice alone carries needs two experts in one layer: top_k of 2 or more.")
    return Plant(calls={on: CALL}, off_calls={off: CALL}, states={on: WRITE, off: -WRITE})


def _residual(places: list[Address], neuron: int) -> Plant:
    return Plant(direct=WRITE)


def _confounded(by: Confound) -> Callable[[list[Address], int], Plant]:
    def plant(places: list[Address], neuron: int) -> Plant:
        # In the torch twin the size of what the first layer writes moves the norm that all later layers see.
        later = [place for place in places if place.layer > 0] or places
        return Plant(direct=WRITE, hears=dict.fromkeys(later[:3], by))

    return plant


PLANTS: dict[str, Callable[[list[Address], int], Plant]] = {
    "none": _none,
    "single": _single,
    "spread": _spread,
    "pair": _pair,
    "neurons": _neurons,
    "routing": _routing,
    "residual": _residual,
    **{by: _confounded(by) for by in CONFOUNDS},
}


def plant_experts(plant: str, *, layers: int, experts: int, top_k: int, seed: int, neurons: int = 4) -> Plant:
    """Choose the carriers at random: one a layer before any layer gets a second, at most k in one layer.

    Raises:
        BadData: there is no such plant, or the model has too few places for it.
    """
    if plant not in PLANTS:
        raise BadData(f"no plant is called '{plant}'; {did_you_mean(plant, PLANTS)}")
    generator = np.random.default_rng([seed, 1])
    order = generator.permutation(layers)
    chosen = [generator.permutation(experts)[:top_k] for _ in range(layers)]
    places = [Address(int(layer), int(chosen[layer][turn])) for turn in range(top_k) for layer in order]
    neuron = int(np.random.default_rng([seed, 6]).integers(neurons))
    return PLANTS[plant](places, neuron)
