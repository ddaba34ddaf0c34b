"""Unlearning by removal: a plan that drops what the forget texts use and the retain texts do not, if that holds up."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moeworks.edit.plan import EditPlan
from moeworks.edit.planning import plan_edit
from moeworks.edit.random_cuts import random_cuts
from moeworks.edit.sides import Side, side_of, under
from moeworks.edit.token_sums import compare_texts
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.plan.evidence import Interval
from moeworks.plan.protected import Protect
from moeworks.probes import SPLITS, split_of
from moeworks.prove.resample import FEWEST_DOCUMENTS, Resamples, document_numbers
from moeworks.train.texts import Data, probe_of, side_texts

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["CONTROLS", "LIMIT", "Removal", "SideEffect", "unlearn"]

FORGET, RETAIN = "forget", "retain"
CONTROLS = 19  # a plan of no effect beats all of them once in 20
LIMIT = 0.05
Verdict = Literal["works", "breaks what is to stay", "no better than random", "both fail"]
Array = NDArray[np.float64]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class SideEffect(_Frozen):
    """What the mask does to the perplexity of one set of held-out texts."""

    texts: int
    documents: int
    tokens: int
    before: float = Field(description="perplexity of the whole model")
    after: float
    ratio: Interval = Field(description="after / before")
    random: tuple[float, ...] = Field(description="after / before under each random plan with the same counts")
    excess: Interval = Field(description="log of the ratio less its mean over the random plans, nats a token")


class Removal(_Frozen):
    """Whether dropping these experts makes a model forget one thing and keep another; the plan is there only if so."""

    forget: SideEffect
    retain: SideEffect
    score: str
    keep: float
    limit: float = Field(description="rise of the retain texts' perplexity that is accepted")
    verdict: Verdict
    reasons: tuple[str, ...]
    plan: EditPlan | None = Field(None, description="the cut, with this as its evidence; none if it was refused")

    def words(self) -> str:
        """Return it as lines for people."""
        lines = []
        for name, side in ((FORGET, self.forget), (RETAIN, self.retain)):
            random = f"{np.mean(side.random):.4g} ({min(side.random):.4g} to {max(side.random):.4g})"
            ratio = f"times {side.ratio.value:.4g} [{side.ratio.low:.4g}, {side.ratio.high:.4g}]"
            lines.append(
                f"{name} texts, held out: perplexity {side.before:.4g} -> {side.after:.4g}, {ratio}; "
                f"{len(side.random)} random cuts: times {random}"
            )
        return "\n".join([*lines, f"Verdict: {self.verdict}.", *(f"  {reason}" for reason in self.reasons)])


class _Parts(NamedTuple):
    find: list[Example]
    held_out: list[Example]


def unlearn(
    engine: Engine,
    *,
    forget: Data,
    retain: Data,
    keep: float,
    score: str = "reap",
    protect: Protect = "super",
    limit: float = LIMIT,
    controls: int = CONTROLS,
    weakens_safety: bool = False,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    command: str = "",
    progress: bool = False,
) -> Removal:
    """Plan a cut that makes a model forget some texts, try it as a mask, and return the plan only if it holds up.

    Experts are ranked by their score on the retain texts less that on the forget texts, each divided by its sum in the
    layer. Half of the documents give the statistics; on the others the mask must raise the forget texts' perplexity by
    more than every random cut of the same size does, with an interval over documents that excludes nothing, and the
    upper end of the interval for the retain texts must stay within the limit. Source: the same primitive as Monet's
    removal of knowledge (arXiv 2412.04139) on stock models: differential score, mask, retain check, then deletion;
    tests and limits are ours. Experts that are gone cannot say what they knew, but others may: what is forgotten here
    is likelihood on texts such as these.

    Args:
        engine: the model; it is left as it was.
        forget: texts to forget, or their source; of a probe, those of its contrast side, over its own splits.
        retain: texts to keep, or their source; of a probe, those of its other side.
        keep: share of the experts of each layer that stays.
        score: base score, one that tells labels apart.
        protect: as in `plan_edit`.
        limit: rise of the retain texts' perplexity that is accepted.
        controls: random cuts with the same counts.
        weakens_safety: say so if the forget texts are of a probe of a safety behaviour; it goes into the plan.
        batch_size: texts a forward pass.
        bootstrap: samples.
        seed: of the bootstrap.
        command: how this was called, for the plan's header.
        progress: show a bar on standard error.

    Raises:
        BadData: too few documents, or the probe is of a safety behaviour and nothing says that this is meant.
        BadPlan: the share breaks a rule of the model's routers.
    """
    if controls < 1:
        raise BadData("a removal is judged against random cuts; allow at least one, better 19.")
    _check_safety(forget, weakens_safety)
    plain = side_of(engine)
    forgotten, kept = _parts(engine, forget, FORGET), _parts(engine, retain, RETAIN)
    plan = _plan(plain, forgotten.find, kept.find, keep, score, protect, batch_size, seed, command, progress)
    if not any(True for _ in plan.dropped()):
        raise BadData(f"keeping {keep} takes no expert away from these layers; keep fewer.")
    sides = [under(engine, plan), *(under(engine, cut) for cut in random_cuts(plan, controls))]
    if len(sides) == 1:
        raise BadData("there is no other cut of this size to compare with; keep fewer experts.")
    effects = {
        name: _effect(plain, sides, parts.held_out, batch_size, bootstrap, seed)
        for name, parts in ((FORGET, forgotten), (RETAIN, kept))
    }
    verdict, reasons = _judge(effects[FORGET], effects[RETAIN], limit)
    told: dict[str, Any] = {
        "forget": effects[FORGET],
        "retain": effects[RETAIN],
        "score": score,
        "keep": keep,
        "limit": limit,
        "verdict": verdict,
        "reasons": reasons,
    }
    if verdict != "works":
        return Removal(**told)
    evidence = {"unlearn": json.loads(Removal(**told).model_dump_json(exclude={"plan"}))}
    note = "Made to weaken a safety behaviour. " if weakens_safety else ""
    made = {
        "evidence": evidence,
        "weakens_safety": weakens_safety,
        "description": f"{note}Unlearning by removal: drops what the forget texts use more than the retain texts. "
        f"{plan.description}",
    }
    return Removal(**told, plan=EditPlan.model_validate({**dict(plan), **made}))


def _plan(
    plain: Side,
    forget: Sequence[Example],
    retain: Sequence[Example],
    keep: float,
    score: str,
    protect: Protect,
    batch_size: int,
    seed: int,
    command: str,
    progress: bool,
) -> EditPlan:
    from moeworks.edit.collect import collect

    texts = [
        example.model_copy(update={"labels": {**example.labels, "set": name}})
        for name, examples in ((FORGET, forget), (RETAIN, retain))
        for example in examples
    ]
    with tempfile.TemporaryDirectory() as folder:
        statistics = collect(
            plain.engine, texts, Path(folder) / "stats", label="set", batch_size=batch_size, progress=progress
        )
        return plan_edit(
            statistics,
            method="difference",
            base=score,
            label=RETAIN,
            against=FORGET,
            keep=keep,
            protect=protect,
            seed=seed,
            command=command,
        )


def _parts(engine: Engine, data: Data, name: str) -> _Parts:
    """Return texts for finding and held-out ones, split by document; a probe has its own splits.

    Raises:
        BadData: a part has too few documents.
    """
    found, find, held_out = probe_of(data), list[Example](), list[Example]()
    if found is not None:
        probe, _ = found
        side: Literal["contrast", "against"] = "contrast" if name == FORGET else "against"
        for split in SPLITS:
            if any(True for _ in probe.texts(split)):
                (find if split == "find" else held_out).extend(side_texts(engine, probe, split, side))
    else:
        from moeworks.data import read_examples

        for number, example in enumerate(read_examples(data) if isinstance(data, str | Path) else data):
            document = example.document or f"{name} {number}"
            part = find if split_of(document) == "find" else held_out
            part.append(example.model_copy(update={"document": document}))
    for what, part in (("for finding", find), ("held out", held_out)):
        count = len({example.document or place for place, example in enumerate(part)})
        if count < FEWEST_DOCUMENTS:
            raise BadData(
                f"the {name} texts have {count} documents {what}, and a verdict needs {FEWEST_DOCUMENTS}; give more "
                "(half of the documents are for finding)."
            )
    return _Parts(find, held_out)


def _effect(
    plain: Side, sides: Sequence[Side], texts: Sequence[Example], batch_size: int, bootstrap: int, seed: int
) -> SideEffect:
    """Measure on some texts; the first side is the plan, the others are random."""
    requests = list(plain.engine.reader.read(iter(texts)))
    before, tokens = np.zeros(len(requests)), np.zeros(len(requests))  # (texts,) -log p, tokens
    after = np.zeros((len(sides), len(requests)))
    for number, place, found in compare_texts(plain, sides, requests, batch_size=batch_size):
        before[place], tokens[place], after[number, place] = found.before, found.tokens, found.after
    documents = document_numbers([request.document for request in requests])
    resamples = Resamples(documents, samples=bootstrap, seed=seed)
    rise = resamples.ratio(after[0] - before, tokens)
    total = tokens.sum()
    return SideEffect(
        texts=len(requests),
        documents=int(documents.max()) + 1,
        tokens=int(total),
        before=_exp(before.sum() / total),
        after=_exp(after[0].sum() / total),
        ratio=Interval(value=_exp(rise.value), low=_exp(rise.low), high=_exp(rise.high)),
        random=tuple(_exp((other - before).sum() / total) for other in after[1:]),
        excess=resamples.ratio(after[0] - after[1:].mean(0), tokens),
    )


def _judge(forget: SideEffect, retain: SideEffect, limit: float) -> tuple[Verdict, tuple[str, ...]]:
    forgets = forget.excess.low > 0 and forget.ratio.value > max(forget.random)
    keeps = retain.ratio.high <= 1 + limit
    beaten = sum(forget.ratio.value > other for other in forget.random)
    more = f"{forget.excess.value:.4g} [{forget.excess.low:.4g}, {forget.excess.high:.4g}]"
    reasons = [
        f"The forget texts' loss rises by {more} nats a token more than under random cuts, above {beaten} of "
        f"{len(forget.random)} of them.",
        f"The retain texts' perplexity rises to at most times {retain.ratio.high:.4g}, allowed is {1 + limit:.4g}.",
    ]
    verdict: Verdict = "works"
    if not forgets:
        verdict = "no better than random" if keeps else "both fail"
    elif not keeps:
        verdict = "breaks what is to stay"
    return verdict, tuple(reasons)


def _check_safety(forget: Data, weakens_safety: bool) -> None:
    """Refuse to remove a safety behaviour by accident."""
    found = None if weakens_safety else probe_of(forget)
    if found is not None and found[0].header.safety:
        raise BadData(
            f"the probe {found[0].name} is of a safety behaviour, which forgetting its texts would weaken; say so with "
            "weakens_safety (--weakens-safety) if that is meant."
        )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
