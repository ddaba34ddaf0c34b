"""HoME's three anomalies of experts, as far as a trace can tell: experts of one domain, and domains without experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_shares, layer_batches, layers_of
from moeworks.stats.documents import FEWEST_DOCUMENTS, SAMPLE, ratio_intervals
from moeworks.stats.label_blocks import LabelBlocks, label_blocks
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["anomalies", "describe_masses"]

Array = NDArray[Any]


def anomalies(
    trace: Trace,
    *,
    label: str = "domain",
    where: Where = Where(),
    private: float = 0.8,
    times: float = 1.5,
    permutations: int = 200,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return degraded experts and mass on domain-specific ones, a row per layer and value of the label.

    Mass of an expert in a domain is its combine weights there, each token's divided by their sum, per token; domains
    count alike. A domain's share of an expert is its mass there / its mass in all domains. Two of HoME's anomalies:

    - degradation, a common expert that became one domain's own: `degraded` counts experts whose mass is at least an
      even share, 1 / E, and of which the domain has more than `private`;
    - underfitting, a domain that leans on common experts: `mass`, the domain's mass on experts of which it has at
      least `times` an even share (`specific`, how many); low for a domain that is served by what serves all.

    The third, collapse (outputs of experts of very different size, or nearly all zero), cannot be told from routing: it
    needs outputs, as `moeworks.edit` collects them (`output_norm` of each expert, share of dead neurons).

    Columns: `layer`, `value`; `degraded` and `degraded_chance`; `largest_share`, the domain's largest share of a
    common expert, `largest_share_chance`; `specific`, `mass`, its 95 % interval `low`, `high` from resampled documents
    (the experts as found), `chance` and `p`; `tokens`, `documents`. Chance exchanges the documents' values: few
    documents make specific experts by themselves.

    Source: HoME (arXiv 2408.05430) [known from summaries], a recommendation model; what they are in a language model is
    our reading, without the outputs' norms, which weights alone stand in for.

    Args:
        trace: the trace.
        label: the label; texts without it are left out.
        where: which tokens and layers count.
        private, times: see above.
        permutations: of the documents' values.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 128 random groups of a value's documents).
        seed: of all of it.
        budget_bytes: memory for sums; layers that do not fit take further passes.

    Raises:
        BadData: the label is unknown or has one value only, or the trace holds no weights.
    """
    if "weights" in trace.header.lacks:
        raise BadData("the source of this trace did not tell combine weights; mass cannot be told from ids alone.")
    if not 0 < private < 1 or times <= 1 or permutations < 1:
        raise BadData(f"private={private}, times={times}, permutations={permutations}: 0 to 1, above 1, at least 1.")
    layers, blocks = layers_of(trace, where), label_blocks(trace, where, label, sample=sample, seed=seed)
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(layers, blocks.tokens.size, budget_bytes=budget_bytes):
        for layer, mass in blocks.add(trace, where, batch, add_shares).items():
            lines += [
                {"layer": layer, **line}
                for line in describe_masses(mass, blocks, private, times, permutations, bootstrap, seed)
            ]
    return pa.Table.from_pylist(lines)


def _anomalies(mass: Array, tokens: Array, private: float, times: float) -> tuple[Array, Array, Array, Array]:
    """Return degraded experts, largest share of a common one, specific experts and mass on them, (v,) each."""
    rate = mass / np.maximum(tokens, 1)[:, None]  # (v, E) per token
    whole = rate.sum(0)
    share = rate / np.where(whole > 0, whole, 1)
    common = rate.mean(0) >= 1 / mass.shape[1]
    specific = _specific(mass, tokens, times)
    largest = np.where(common, share, 0).max(1)
    return ((share > private) & common).sum(1), largest, specific.sum(1), (rate * specific).sum(1)


def _specific(mass: Array, tokens: Array, times: float) -> Array:
    """Return of which experts a value has at least `times` an even share, (v, E)."""
    rate = mass / np.maximum(tokens, 1)[:, None]
    return np.asarray((rate > 0) & (rate >= times / len(mass) * rate.sum(0)))


def describe_masses(
    mass: Array, blocks: LabelBlocks, private: float, times: float, permutations: int, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """Return rows of `anomalies` from mass by value and block of documents, (v, b, E)."""
    tokens = blocks.tokens  # (v, b)
    joined = np.concatenate([mass, tokens[..., None]], 2)
    degraded, largest, specific, found = _anomalies(mass.sum(1), tokens.sum(1), private, times)
    null = [
        _anomalies(one[:, :-1], one[:, -1], private, times) for one in blocks.exchanged(joined, permutations, seed=seed)
    ]
    null_degraded, null_largest, _, null_mass = (np.stack(column) for column in zip(*null, strict=True))
    own = _specific(mass.sum(1), tokens.sum(1), times)  # (v, E)
    masses = np.einsum("vbe,ve->bv", mass, own)  # on the experts as found
    low, high = ratio_intervals(masses, tokens.T.astype(float), samples=bootstrap, seed=seed)
    lines = []
    for v, value in enumerate(blocks.values):
        known = min(int(blocks.documents[v]), mass.shape[1]) >= FEWEST_DOCUMENTS
        lines.append(
            {
                "value": value,
                "degraded": int(degraded[v]),
                "degraded_chance": float(null_degraded[:, v].mean()),
                "largest_share": float(largest[v]),
                "largest_share_chance": float(null_largest[:, v].mean()),
                "specific": int(specific[v]),
                "mass": float(found[v]),
                "low": float(low[v]) if known else float("nan"),
                "high": float(high[v]) if known else float("nan"),
                "chance": float(null_mass[:, v].mean()),
                "p": float((1 + (null_mass[:, v] >= found[v] - 1e-12).sum()) / (1 + permutations)),
                "tokens": int(tokens[v].sum()),
                "documents": int(blocks.documents[v]),
            }
        )
    return lines
