"""What every method is tried on: planted models of known truth, nulls, and the built-in probes on a real model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from moeworks.address import Address, NeuronAddress
from moeworks.bench.schema import BudgetName, Kind
from moeworks.engines.base import Engine
from moeworks.engines.fake import CONFOUNDS, FakeEngine, neutral_examples, plant_probe, planted_model
from moeworks.engines.fake.network import NEURONS
from moeworks.engines.fake.plants import plant_experts
from moeworks.engines.fake.twin import NEURONS as TWIN_NEURONS
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.probes import Probe, load_probe, neutral_texts, probe_names
from moeworks.probes.check import side_of
from moeworks.study.budget import some_documents, some_items, some_of_each

__all__ = ["NUMBER", "SIDE", "SIZES", "Case", "Sizes", "Truth", "cases_of"]

SIDE, NUMBER = "league_side", "league_number"  # labels that say the side of a text, for methods that compare labels
LAYERS, EXPERTS, TOP_K = 4, 16, 2  # of planted models
CARRIED = ("single", "spread", "pair", "neurons", "routing")
PAIRED = (*CARRIED, "token")  # the same words on both sides; nulls are not, or nothing would differ by chance either
UNCARRIED = ("residual", *CONFOUNDS)
NULL_TEXTS, NO_PLANT, SHUFFLED = "null: same texts", "null: no plant", "null: sides drawn"
QUICK_PROBES = (
    "language/fr",
    "language/zh",
    "domain/code_python",
    "domain/math",
    "facts/de",
    "openbook",
    "requests",
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much a budget stands for; None is all there is."""

    seeds: int
    null_seeds: int  # of each of two nulls, where a rate is to be told from 0; of a model's only null twice as many
    documents: int  # of a planted probe
    planted_items: int
    planted_neutral: int
    texts: int | None  # of a real probe's find split
    items: int | None
    neutral: int | None
    experts: int  # turned on a real model, and on planted models where nothing is sought
    permutations: int
    bootstrap: int
    controls: int  # random plans; by chance alone a plan beats all of n in one of n + 1


SIZES: dict[BudgetName, Sizes] = {
    "quick": Sizes(
        seeds=3, null_seeds=10, documents=120, planted_items=12, planted_neutral=6, texts=80, items=12, neutral=8,
        experts=5, permutations=500, bootstrap=100, controls=9,
    ),
    "full": Sizes(
        seeds=3, null_seeds=10, documents=160, planted_items=16, planted_neutral=8, texts=400, items=60, neutral=40,
        experts=5, permutations=1000, bootstrap=200, controls=19,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What is known of a planted model."""

    acting: tuple[Address, ...]  # experts that write the behaviour where it is on
    neurons: tuple[NeuronAddress, ...]
    confounded: tuple[Address, ...]  # experts that run more on the contrast side and carry nothing


@dataclass(frozen=True)
class Case:
    """One probe on one model with one seed."""

    model: str
    probe: Probe
    quiet: Probe  # the probe with items where the behaviour is off, for what turns it up; of real models the same one
    kind: Kind
    seed: int
    engine: Callable[[], Engine]
    truth: Truth | None
    budget: int  # experts
    neutral: tuple[Example, ...]

    @property
    def name(self) -> str:
        """The probe's name in the tables."""
        return self.probe.name

    @property
    def paired(self) -> bool:
        """Whether any document has texts on both sides."""
        sides: dict[str, set[str]] = {}
        for text in self.probe.texts("find"):
            sides.setdefault(text.document, set()).add(side_of(self.probe, text))
        return any({"contrast", "against"} <= found for name, found in sides.items() if name)

    def texts(self, *, apart: bool = False) -> list[Example]:
        """Return the texts of the find split, their side as a label too; `apart` gives each side its own document."""
        texts = []
        for text in self.probe.texts("find"):
            side = side_of(self.probe, text)
            labels = {**text.labels}
            if side in ("contrast", "against"):
                labels |= {SIDE: side, NUMBER: "1" if side == "contrast" else "0"}
            document = f"{text.document}/{side}" if apart and text.document else text.document
            texts.append(text.model_copy(update={"labels": labels, "document": document}))
        return texts


def cases_of(
    model: str, sizes: Sizes, *, probes: Sequence[str] = (), every_null: bool = True, budget: BudgetName = "quick"
) -> Iterator[Case]:
    """Yield the cases of a model, all seeds of a probe one after another.

    Args:
        model: `planted` (the torch twins), `fake` (the same in numpy), or a model that `moeworks.load` opens.
        sizes: how much.
        probes: only those whose name begins with one of these.
        every_null: as many seeds of the nulls as the sizes say; otherwise as many as of anything else.
        budget: which built-in probes a real model gets: all of them with `full`.

    Raises:
        BadData: no probe has such a name.
    """
    nulls = sizes.null_seeds if every_null else sizes.seeds
    if model in ("planted", "fake"):
        wanted = _matching((*CARRIED, *UNCARRIED, NULL_TEXTS, NO_PLANT), probes)
        for name in wanted:
            for seed in range(nulls if name in (NULL_TEXTS, NO_PLANT) else sizes.seeds):
                yield _planted(model, name, seed, sizes)
        return
    from moeworks.engines import load

    opened = lru_cache(1)(lambda: load(model))
    known = tuple(name for name in probe_names() if not name.startswith("null/"))
    wanted = _matching((*(known if budget == "full" or probes else QUICK_PROBES), SHUFFLED), probes)
    for name in wanted:
        for seed in range((2 * nulls if every_null else nulls) if name == SHUFFLED else sizes.seeds):
            yield _real(model, name, seed, sizes, opened)


def _matching(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    found = [name for name in names if not wanted or name.startswith(tuple(wanted))]
    if not found:
        raise BadData(f"no probe of this model begins with {' or '.join(wanted)}; there are: {', '.join(names)}.")
    return found


def _planted(model: str, name: str, seed: int, sizes: Sizes) -> Case:
    plant = {NULL_TEXTS: "single", NO_PLANT: "none"}.get(name, name)
    texts = {NULL_TEXTS: "none", NO_PLANT: "single"}.get(name, name)

    def probe_of(side: Literal["contrast", "against"]) -> Probe:
        made = plant_probe(texts, sizes.documents, seed=seed, paired=name in PAIRED, items_of=side)
        return some_items(_named(made, name), sizes.planted_items)

    neurons = TWIN_NEURONS if model == "planted" else NEURONS
    put = plant_experts(plant, layers=LAYERS, experts=EXPERTS, top_k=TOP_K, seed=seed, neurons=neurons)
    truth = Truth(put.acting, put.neurons, put.confounded)
    kind: Kind = "planted" if name in CARRIED else "uncarried"
    if name in (NULL_TEXTS, NO_PLANT):
        truth, kind = Truth((), (), ()), "null"

    @lru_cache(1)
    def opened() -> Engine:
        if model == "fake":
            return FakeEngine(plant, layers=LAYERS, experts=EXPERTS, seed=seed)
        from moeworks.engines.transformers import TransformersEngine

        made = planted_model(plant, layers=LAYERS, experts=EXPERTS, top_k=TOP_K, seed=seed)
        return TransformersEngine(made.model, made.tokenizer, name=f"planted:{plant}")

    return Case(
        model=model,
        probe=probe_of("contrast"),
        quiet=probe_of("against"),
        kind=kind,
        seed=seed,
        engine=opened,
        truth=truth,
        budget=len(truth.acting) or sizes.experts,
        neutral=tuple(neutral_examples(sizes.planted_neutral, seed=seed)),
    )


def _real(model: str, name: str, seed: int, sizes: Sizes, opened: Callable[[], Engine]) -> Case:
    probe = load_probe("null/split" if name == SHUFFLED else name)
    found = list(probe.texts("find"))
    if name == SHUFFLED:
        found, probe = _drawn(found, seed), _named(probe, name)
    chosen = some_documents(found, sizes.texts, seed=seed)
    others = [text for text in probe.all_texts if text.labels["split"] != "find"]
    probe = some_items(replace(probe, all_texts=(*chosen, *others)), sizes.items)
    return Case(
        model=model,
        probe=probe,
        quiet=probe,
        kind="null" if name == SHUFFLED else "probe",
        seed=seed,
        engine=opened,
        truth=None,
        budget=sizes.experts,
        neutral=tuple(some_of_each(neutral_texts("held_out"), sizes.neutral)),
    )


def _drawn(texts: Sequence[Example], seed: int) -> list[Example]:
    """Return the texts with their documents put on sides anew: every other one in the order of a hash."""
    names = sorted(
        {text.document for text in texts}, key=lambda name: hashlib.blake2b(f"{seed}|{name}".encode()).digest()
    )
    side = {name: ("contrast", "against")[place % 2] for place, name in enumerate(names)}
    return [text.model_copy(update={"labels": {**text.labels, "side": side[text.document]}}) for text in texts]


def _named(probe: Probe, name: str) -> Probe:
    return replace(probe, header=probe.header.model_copy(update={"name": name, "text_hash": ""}))
