"""GateBreaker's safety neurons, as an audit: how few neurons of how few experts differ between two kinds of prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm

from moeworks.address import Address, parse_addresses
from moeworks.errors import BadData, Unsupported, did_you_mean
from moeworks.find.artefact import NEURON_COLUMNS
from moeworks.find.inside.base import MODEL_SCORES
from moeworks.find.inside.gaps import Gaps, largest_by_group
from moeworks.find.inside.observe import as_numpy, observe
from moeworks.find.inside.tested import finished
from moeworks.find.inside.texts import NumberedRequests, Texts, texts_of
from moeworks.find.null import Null, smallest_p
from moeworks.find.sides import AGAINST, CONTRAST

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.find.artefact import Scores
    from moeworks.find.sides import Entries
    from moeworks.probes.probe import Probe, Split
    from moeworks.where import Requests, Rows

__all__ = ["concentration", "neuron_gap", "standardised"]

Array = NDArray[Any]
Site = Literal["gate", "up"]


def standardised(gap: Array) -> Array:
    """Return z-scores within each row, (…, I): the mean over the neurons of an expert off, over their deviation."""
    spread = gap.std(-1, keepdims=True)
    return np.asarray((gap - gap.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1.0))


@MODEL_SCORES.register("neuron_gap")
def neuron_gap(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    where: str = "",
    site: Site = "gate",
    experts: str = "",
    per_layer: int = 0,
    threshold: float = 2.0,
    match_lengths: bool = True,
    absent: Literal["zero", "left_out"] = "zero",
    permutations: int = 200,
    alpha: float = 0.05,
    batch_size: int = 8,
) -> Scores:
    """Score neurons by how much larger their largest activation in a prompt is on the contrast side, as a z-score.

    Source: GateBreaker (arXiv 2512.21008), equations 4 to 11, known here through a re-implementation that cites them.
    First the experts: per prompt the share of its tokens for which an expert ran, averaged over prompts of the contrast
    side; the `3 k` largest of each layer. Then their neurons: v = the elementwise maximum over the tokens of a prompt
    for which the expert ran; gap = mean of v on the contrast side − mean on the other; z = gap standardised over the
    neurons of its expert; neurons with z above 2 are the paper's safety neurons.

    Differences. The re-implementation takes one maximum over gate and up outputs together, which are two sets of
    neurons: here they are kept apart (`site`). The maximum grows with the number of tokens, so that by default prompts
    of both sides are cut to the same lengths. z above 2 is a rank within the expert and no evidence: of noise, too,
    2.3 % of the neurons are above 2, about the share that the paper reports. So a neuron passes only if, besides, its
    difference of means over its standard error is larger than the largest one in the whole model is in all but 5 % of
    arrangements in which whole documents change sides (the maximum over neurons of Westfall and Young: q is the chance
    of even one false neuron, stricter than a false discovery rate).

    Args:
        engine, probe, split, seed, command: as in `find_in_model`.
        where: tokens and layers that count, in place of the probe's own clause. Leave out template tokens:
            `role=user`, say.
        site: `gate` or `up`: which of the two projections' outputs.
        experts: addresses such as `L3.E5,L4.E1`, in place of the first step.
        per_layer: experts of each layer in the first step; 0 for 3 k.
        threshold: z above which a neuron counts.
        match_lengths: cut prompts so that both sides have the same lengths: the i-th longest of one side to the length
            of the i-th longest of the other.
        absent: what a prompt says of an expert that did not run in it: `zero`, since its neurons wrote nothing, or
            nothing (`left_out`), which shows no expert that runs on one side only.
        permutations: arrangements of documents; memory is that many × neurons × 4 bytes.
        alpha: chance of a false neuron.
        batch_size: texts a forward pass.
    """
    if site not in ("gate", "up"):
        raise BadData(f"there is no site '{site}'; {did_you_mean(site, ('gate', 'up'))}")
    if permutations < 1 or per_layer < 0 or not 0 < alpha < 1:
        raise BadData("permutations are at least 1, per_layer at least 0, and alpha lies between 0 and 1.")
    if absent not in ("zero", "left_out"):
        raise BadData(f"'{absent}' is not what an absent expert can say; {did_you_mean(absent, ('zero', 'left_out'))}")
    profile = _profile(engine, texts_of(probe, split, where=where), match_lengths)
    targets = _targets(engine, profile, parse_addresses(experts) if experts else None, per_layer)
    null = Null(profile.entries)
    drawn = np.concatenate([null.observed(), null.draw(np.random.default_rng([seed, 1]), permutations)])
    texts = texts_of(probe, split, where=where)
    gaps: list[Gaps] = []

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        if (seen.layer, seen.expert) not in targets:
            return
        values = getattr(seen, site)
        if values is None:
            raise Unsupported("the experts of this model have no gate; take site='up'.")
        if not gaps:
            gaps.append(Gaps(drawn.astype(np.float32), targets, values.shape[1], profile.held, absent))
        place = as_numpy(seen.rows)
        side = texts.sides(rows, requests)[place]
        request, count = rows.request[place], len(requests)
        number = requests.numbers[request]  # type: ignore[attr-defined]
        side = np.where(texts.rank(rows, requests)[place] < profile.limit[side, number], side, -1)
        largest, present = largest_by_group(values, np.where(side >= 0, side * count + request, -1), 2 * count)
        entry = profile.entries.of_request[present // count, requests.numbers[present % count]]  # type: ignore[attr-defined]
        gaps[0].add(seen, largest, entry)

    observe(engine, texts.examples, add, where=texts.where, batch_size=batch_size)
    return _scores(
        engine, texts, gaps[0], null, alpha=alpha, threshold=threshold, seed=seed, command=command,
        options={"site": site, "experts": experts, "per_layer": per_layer, "threshold": threshold,
                 "match_lengths": match_lengths, "absent": absent},
    )  # fmt: skip


def concentration(scores: Scores, *, threshold: float = 2.0) -> pa.Table:
    """Return, by layer, how concentrated a behaviour is in neurons: few and strong, or spread and weak.

    Columns: `layer`, `experts` (looked into), `neurons` (in them), `above` (z above the threshold), `share` (above ÷
    neurons), `by_chance` (the share of a normal distribution above it), `passing` (that pass the test as well).
    """
    layer, z, passes = (scores.column(name) for name in ("layer", "score", "passes"))
    experts = scores.column("expert")
    rows = [
        {
            "layer": int(number),
            "experts": len(np.unique(experts[layer == number])),
            "neurons": int((layer == number).sum()),
            "above": int((z[layer == number] > threshold).sum()),
            "share": float((z[layer == number] > threshold).mean()),
            "by_chance": float(norm.sf(threshold)),
            "passing": int(passes[layer == number].sum()),
        }
        for number in np.unique(layer)
    ]
    return pa.Table.from_pylist(rows)


@dataclass(frozen=True)
class _Profile:
    """What a first pass tells: which documents have tokens, how long prompts are, how often experts ran in them."""

    entries: Entries
    held: Array  # (entries,) prompts of each
    limit: Array  # (2, texts) tokens of each text that count on each side
    utility: dict[int, Array]  # layer → (E,) mean share of a contrast prompt's tokens


def _profile(engine: Engine, texts: Texts, match_lengths: bool) -> _Profile:
    """Record the routing of all texts once and read it."""
    lengths = np.zeros((2, len(texts.examples)), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        trace = engine.record(texts.examples, Path(folder) / "trace")
        requests = NumberedRequests.of(trace.request_table(), np.asarray(trace.requests["request"].to_numpy()))
        layers = {
            layer: trace.header.shape_of(layer).experts for layer in trace.layers if texts.where.takes_layer(layer)
        }
        runs = {layer: np.zeros((len(requests), experts)) for layer, experts in layers.items()}
        from moeworks.stats.counts import add_runs

        for part in trace.parts:
            rows = part.rows()
            side = texts.sides(rows, requests)
            for which in (CONTRAST, AGAINST):
                number = requests.numbers[rows.request[side == which]]
                lengths[which] += np.bincount(number, minlength=lengths.shape[1])
            entry = np.where(side == CONTRAST, rows.request, -1)
            for layer, counts in runs.items():
                add_runs(counts, entry, part.ids(layer), part.weights(layer))
        here = lengths[CONTRAST][requests.numbers]  # (requests,)
        used = here > 0
        entries = texts.entries()
        held = np.bincount(entries.of_request[lengths > 0], minlength=len(entries))
        utility = {layer: (counts[used] / here[used, None]).mean(0) for layer, counts in runs.items()}
    return _Profile(entries, held, _matched(lengths) if match_lengths else lengths, utility)


def _matched(lengths: Array) -> Array:
    """Return to which length each text is cut, (2, texts), so that both sides have the same distribution of lengths."""
    limit = lengths.copy()
    for which in (CONTRAST, AGAINST):
        mine, other = np.flatnonzero(lengths[which]), np.sort(lengths[1 - which][lengths[1 - which] > 0])
        order = mine[np.argsort(lengths[which][mine], kind="stable")]
        rank = (np.arange(len(order)) + 0.5) / len(order)
        theirs = other[np.minimum((rank * len(other)).astype(int), len(other) - 1)]
        limit[which][order] = np.minimum(lengths[which][order], theirs)
    return limit


def _targets(
    engine: Engine, profile: _Profile, experts: Sequence[Address] | None, per_layer: int
) -> dict[tuple[int, int], int]:
    """Return (layer, expert) → place."""
    if experts is not None:
        for address in experts:
            if address.layer not in profile.utility or address.expert >= len(profile.utility[address.layer]):
                raise BadData(f"{address} is not among the experts that are looked into; check layer and expert.")
        return {(a.layer, a.expert): place for place, a in enumerate(sorted(set(experts)))}
    chosen: list[tuple[int, int]] = []
    for layer, utility in profile.utility.items():
        count = min(per_layer or 3 * engine.identity.layer(layer).top_k, len(utility))
        best = np.argsort(-utility, kind="stable")[:count]
        chosen += [(layer, int(expert)) for expert in np.sort(best) if utility[expert] > 0]
    return {address: place for place, address in enumerate(chosen)}


def _scores(
    engine: Engine,
    texts: Texts,
    gaps: Gaps,
    null: Null,
    *,
    alpha: float,
    threshold: float,
    seed: int,
    command: str,
    options: dict[str, Any],
) -> Scores:
    places = [p for p in gaps.experts.values() if 0 < gaps.counts[p][0] < gaps.prompts[p]]  # ran on both sides
    if not places:
        raise BadData("none of these experts ran on both sides, so that there is nothing to compare in them.")
    names = {place: address for address, place in gaps.experts.items()}
    means = [gaps.means(place) for place in places]
    first, second = (np.stack([pair[side][0] for pair in means]) for side in (0, 1))  # (experts, I)
    t = np.abs(np.stack([gaps.studentised(place) for place in places]))  # (experts, b, I)
    largest = t.max((0, 2))  # (b,)
    bar = t[:, 0] * (1 - 1e-6)  # sums in float32
    p = (t >= bar[:, None]).mean(1)  # (experts, I), the observed arrangement counted
    q = (largest[1:, None, None] >= bar).sum(0)
    q = (q + 1) / len(largest)
    z = standardised(first - second)
    count, neurons = z.shape
    nan = np.full(z.size, np.nan)
    table = pa.table(
        [
            np.repeat([names[p][0] for p in places], neurons).astype(np.int32),
            np.repeat([names[p][1] for p in places], neurons).astype(np.int32),
            np.tile(np.arange(neurons, dtype=np.int32), count),
            z.reshape(-1),
            first.reshape(-1),
            second.reshape(-1),
            nan,
            nan,
            p.reshape(-1),
            q.reshape(-1),
            nan,
            ((q <= alpha) & (z > threshold)).reshape(-1),
        ],
        schema=NEURON_COLUMNS,
    )
    above = int((z > threshold).sum())
    return finished(
        engine, texts, table, command=command, seed=seed, method="neuron_gap", options=options, aggregate="macro",
        null=null.kind, permutations=len(largest) - 1, drawn=len(largest) - 1, exhaustive=False,
        smallest_p=max(smallest_p(null, 0, len(largest) - 1), 1 / len(largest)), alpha=alpha, bootstrap=0, top=10,
        quantity=f"largest {options['site']} output in a prompt",
        facts={"experts": count, "neurons": z.size, "above": above, "share": above / z.size},
        notes=(
            f"{above} of {z.size} neurons ({above / z.size:.1%}) of {count} experts have z above {threshold:g}, of "
            f"noise {norm.sf(threshold):.1%} would; one passes if q, the chance of any false neuron, is small as well.",
        ),
    )  # fmt: skip
