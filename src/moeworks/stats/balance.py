"""How evenly the experts of each layer are used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.batch_balance import batch_violation, even_loads
from moeworks.stats.counts import add_runs, layers_of
from moeworks.stats.distributions import entropy
from moeworks.stats.documents import blocks_of_documents, draw_documents, percentiles, selected_documents
from moeworks.stats.router_probabilities import router_probabilities
from moeworks.where import PHASES, Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["Balance", "balance", "balance_of", "coverage", "describe_balance", "load"]

Array = NDArray[Any]
ENOUGH = 1000  # picks an expert would have under even use; with fewer, none can be called dead
_CHUNK = 1 << 14
_WITH_INTERVAL = ("max_violation", "cv", "entropy", "gini")


@dataclass(frozen=True)
class Balance:
    """How evenly one layer's experts are used; p is an expert's share of all runs."""

    max_violation: float  # (largest load - mean load) / mean load; 0 is even
    entropy: float  # of p, divided by ln E: 1 is even; NaN with one expert
    effective_experts: float  # 1 / sum of p squared: as many equally used experts are as uneven
    busiest: float  # the largest p
    dead: int  # experts that never ran
    cv: float  # standard deviation of the loads / their mean; 0 is even
    balancedness: float  # mean load / largest load, 1 / (1 + max_violation); 1 is even
    kl: float  # of p from even use, in nats, ln E - H(p); 0 is even
    entropy_experts: float  # exp H(p), the other count of effective experts
    gini: float  # 0 is even, 1 - 1 / E all on one
    top_1: float  # share of the runs on the busiest 1 % of the experts (at least one expert)
    top_5: float
    top_10: float


def balance_of(runs: Array) -> Balance:
    """Return the balance of one layer from how often each expert ran, (E,).

    Source: MaxVio as in auxiliary-loss-free load balancing (arXiv 2408.15664).
    """
    total = float(runs.sum())
    if total <= 0:
        raise BadData("no expert of this layer ran at all; there is no balance to speak of.")
    share, count = runs / total, len(runs)  # (E,)
    spread = float(entropy(share))
    ordered = np.sort(share)
    return Balance(
        max_violation=float(share.max() * count - 1),
        entropy=spread / float(np.log(count)) if count > 1 else float("nan"),
        effective_experts=float(1 / (share**2).sum()),
        busiest=float(share.max()),
        dead=int((runs == 0).sum()),
        cv=float(share.std() * count),
        balancedness=float(1 / (share.max() * count)),
        kl=max(float(np.log(count)) - spread, 0.0),
        entropy_experts=float(np.exp(spread)),
        gini=float(((2 * np.arange(1, count + 1) - count - 1) * ordered).sum() / count),
        top_1=coverage(share, 0.01),
        top_5=coverage(share, 0.05),
        top_10=coverage(share, 0.1),
    )


def coverage(runs: Array, part: float) -> float:
    """Return the share of the runs on the busiest `part` of the experts, at least one: a point of a coverage curve."""
    count = max(1, round(part * len(runs)))
    return float(np.sort(runs)[::-1][:count].sum() / max(runs.sum(), 1e-300))


def load(trace: Trace, *, where: Where = Where()) -> pa.Table:
    """Return how much each expert is used: columns layer, expert, runs, rate, share.

    `rate` is the share of tokens that the expert ran for (a layer's rates sum to k), `share` the expert's share of all
    runs in the layer (they sum to 1).

    Raises:
        BadData: no token is selected.
    """
    tokens, by_block = _count(trace, where, 1, 0)
    runs = {layer: counts[0] for layer, counts in by_block.items()}
    return pa.table(
        {
            "layer": np.repeat(list(runs), [len(r) for r in runs.values()]).astype(np.int32),
            "expert": np.concatenate([np.arange(len(r), dtype=np.int32) for r in runs.values()]),
            "runs": np.concatenate(list(runs.values())),
            "rate": np.concatenate([r / tokens for r in runs.values()]),
            "share": np.concatenate([r / max(r.sum(), 1) for r in runs.values()]),
        }
    )


def balance(
    trace: Trace,
    *,
    where: Where = Where(),
    by: Literal["all", "phase"] = "all",
    batch_tokens: int = 4096,
    tau: float = 0.01,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how evenly each layer's experts are used: a row per layer (and phase, where that is asked for).

    Columns: `layer`, `phase` ("all", or prompt, generated, forced), `tokens`, the fields of `Balance`; `max_violation`,
    `cv`, `entropy` and `gini` with 95 % intervals `…_low`, `…_high` from resampled documents (moved so that their mean
    is the number itself: resampling makes loads look less even) and `…_chance`, what as many independent tokens give
    under even routing; `top_1_chance` and so on, the share of experts that they are.
    `starved`, experts with less than `tau` of an even share of the runs, null where even use gives an expert fewer than
    1,000 runs: not enough tokens to tell. `batch_max_violation`, the mean over batches of `batch_tokens` neighbouring
    tokens, with `batch_low`, `batch_high` from resampled batches and `batch_chance`; NaN where no batch is full
    (`batches` 0). `aux_loss`, E Σ f(e) P(e) from a trace with logits: 1 at even use (Megatron's form; some others
    count tokens in place of shares and give k).

    Source: MaxVio (arXiv 2408.15664), balancedness as vLLM logs it, the loss as in Megatron-core; tau is ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        by: phase tells prompt and generated tokens apart.
        batch_tokens: tokens of a batch, as they stand in the trace; the last one that is not full is left out.
        tau: see above.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of everything drawn.

    Raises:
        BadData: no token is selected.
    """
    if by not in ("all", "phase") or batch_tokens < 1 or not 0 < tau < 1:
        raise BadData(f"by={by}, batch_tokens={batch_tokens}, tau={tau}: all or phase, at least 1, between 0 and 1.")
    clauses: dict[str, Where] = {"all": where}
    if by == "phase":
        requests = trace.request_table()
        seen = np.unique(np.concatenate([part.rows().phase[where.mask(part.rows(), requests)] for part in trace.parts]))
        clauses = {PHASES[number]: where.model_copy(update={"phase": (PHASES[number],)}) for number in seen}
    lines = [
        {"layer": layer, "phase": phase, **line}
        for phase, clause in clauses.items()
        for layer, line in _lines(trace, clause, batch_tokens, tau, bootstrap, seed).items()
    ]
    if not lines:
        raise BadData(f"no token matches the clause '{where}'.")
    return pa.Table.from_pylist(sorted(lines, key=lambda line: line["layer"]))


def _lines(
    trace: Trace, where: Where, batch_tokens: int, tau: float, bootstrap: int, seed: int
) -> dict[int, dict[str, Any]]:
    tokens, by_block = _count(trace, where, 0, seed)
    batches = batch_violation(trace, where, list(by_block), batch_tokens, bootstrap=bootstrap, seed=seed)
    losses = _aux_losses(trace, where, {layer: runs.sum(0) for layer, runs in by_block.items()}, tokens)
    lines: dict[int, dict[str, Any]] = {}
    for layer, runs in by_block.items():
        line = describe_balance(
            runs, tokens=tokens, top_k=trace.header.shape_of(layer).top_k, tau=tau, bootstrap=bootstrap, seed=seed
        )
        lines[layer] = {**line, **batches[layer], "aux_loss": losses[layer]}
    return lines


def describe_balance(
    runs: Array, *, tokens: int, top_k: int, tau: float = 0.01, bootstrap: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Return the balance of one layer with its chance and intervals from resampled blocks, as columns of `balance`.

    Args:
        runs: (blocks, E) how often each expert ran in each block of documents.
        tokens: how many tokens these are.
        top_k: experts of a token.
        tau, bootstrap, seed: as of `balance`.
    """
    total = runs.sum(0)
    found, experts = balance_of(total), len(total)
    null = [balance_of(one) for one in even_loads(tokens, top_k, experts, seed=seed)]
    drawn = [
        balance_of(one) for weights in draw_documents(len(runs), samples=bootstrap, seed=seed) for one in weights @ runs
    ]
    line: dict[str, Any] = {"tokens": tokens, **asdict(found)}
    for name in _WITH_INTERVAL:
        samples = np.array([getattr(one, name) for one in drawn])
        low, high = percentiles(samples, len(runs), centre=getattr(found, name))
        ends = {f"{name}_low": max(float(low), 0.0), f"{name}_high": float(high)} if low == low else {}
        chance = float(np.mean([getattr(one, name) for one in null]))
        line |= {f"{name}_low": float(low), f"{name}_high": float(high), **ends, f"{name}_chance": chance}
    for name, part in (("top_1", 0.01), ("top_5", 0.05), ("top_10", 0.1)):
        line[f"{name}_chance"] = max(1, round(part * experts)) / experts
    enough = tokens * top_k / experts >= ENOUGH
    line["starved"] = int((total < tau * total.sum() / experts).sum()) if enough else None
    return line


def _count(trace: Trace, where: Where, most_blocks: int, seed: int) -> tuple[int, dict[int, Array]]:
    """Return the selected tokens and how often experts ran in each block of documents, layer → (blocks, E)."""
    layers, documents, requests = layers_of(trace, where), selected_documents(trace, where), trace.request_table()
    most = {"most": most_blocks} if most_blocks else {}
    block_of, blocks = blocks_of_documents(np.ones(len(documents), bool), seed=seed, **most)
    runs = {layer: np.zeros((blocks, experts), np.int64) for layer, experts in layers.items()}
    for part in trace.parts:
        rows = part.rows()
        entry = np.where(where.mask(rows, requests), block_of[documents.of_request[rows.request]], -1)
        for layer, counts in runs.items():
            add_runs(counts, entry, part.ids(layer), part.weights(layer))
    return int(documents.tokens.sum()), runs


def _aux_losses(trace: Trace, where: Where, runs: dict[int, Array], tokens: int) -> dict[int, float]:
    if not trace.header.logits:
        return dict.fromkeys(runs, float("nan"))
    sums = {layer: np.zeros(len(total)) for layer, total in runs.items()}
    requests = trace.request_table()
    for part in trace.parts:
        kept = np.flatnonzero(where.mask(part.rows(), requests))
        for layer, total in sums.items():
            contract, logits = trace.header.shape_of(layer).contract, part.logits(layer)
            for start in range(0, len(kept), _CHUNK):
                total += router_probabilities(logits[kept[start : start + _CHUNK]], contract).sum(0)
    return {
        layer: float(len(total) * (total / total.sum() * sums[layer] / tokens).sum()) for layer, total in runs.items()
    }
