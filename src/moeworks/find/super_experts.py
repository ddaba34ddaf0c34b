"""Super experts: the few whose outputs make massive activations, which a model does not survive without.

Source: arXiv 2507.23279 (ICLR 2026), equation 6 and algorithm 1 [secondary], and its released code. With
a[l, e] = the largest |output of the down projection| over all calibration tokens, an expert is a super expert iff
a > the 99.5th percentile of all a, a > the largest a / 10, and its layer is one in which massive activations form.

How the paper finds those layers is not known here [open]. Ours: massive activations are there if somewhere in the
residual stream a token's largest |h| is above 100 and 1,000 times its median |h| (arXiv 2402.17762 [recalled]); they
form in each layer that raises the largest |h| by at least a tenth of the largest reached in any layer. Where there are
none, there are no super experts. The code takes the first 75 % of layers instead (`layers="first"`), percentile and
maximum over those alone; that variant names an expert in every model, whether anything is massive or not.

Other differences from the code: it looks at the first token routed to each expert only, we at all tokens, and report
where the largest output was; it rounds the tenth down. An expert that never ran has no a and is counted. Where a family
normalises each expert's output, the normalised one is read, since that is what reaches the residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.artefact import ModelIdentity, hash_texts
from moeworks.errors import BadData
from moeworks.find.inside.observe import as_numpy, observe, residual_of, sinks
from moeworks.plan.files import plan_header
from moeworks.plan.protected import SuperExpertRecord, remember
from moeworks.plan.schema import Mask, Plan

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.examples import Example
    from moeworks.where import Requests, Rows

__all__ = ["Peak", "Sinks", "SuperExperts", "forming_layers", "select_super", "sink_diagnostics", "super_experts"]

Array = NDArray[Any]
Layers = Literal["residual", "first"]
Visit = Callable[["ExpertPass", "Rows", "Requests", Array], None]


class Peak(NamedTuple):
    """An expert's largest output, and where it was."""

    address: Address
    size: float  # a[l, e]; NaN if the expert never ran
    example: int  # place among the texts; -1 if it never ran
    position: int  # of the token in its text
    token: int  # its id


@dataclass(frozen=True, kw_only=True)
class SuperExperts:
    """What was measured; `protected` are the super experts, the strongest first."""

    model: ModelIdentity
    peaks: tuple[Peak, ...]  # of every expert, in order of address
    protected: tuple[Address, ...]
    forming: tuple[int, ...]  # layers in which massive activations form, or those that were taken instead
    largest: tuple[float, ...]  # max |h| after each layer of the model
    ratio: tuple[float, ...]  # largest max |h| / median |h| of a token, after each layer
    threshold: float  # both bounds on a together; NaN where no layer is left
    tokens: int
    settings: dict[str, Any]

    @property
    def record(self) -> SuperExpertRecord:
        """What is kept for later plans."""
        kept = {**self.settings, "tokens": self.tokens, "forming_layers": list(self.forming)}
        names = tuple(map(str, self.protected))
        return SuperExpertRecord(
            model=self.model.name, weight_hash=self.model.weight_hash, experts=names, settings=kept
        )

    def __str__(self) -> str:
        """The result in words, the largest outputs below."""
        found = ", ".join(map(str, self.protected)) or "none"
        ran = [peak for peak in self.peaks if peak.example >= 0]
        lines = [
            f"Super experts of {self.model.name}: {found} ({len(self.protected)} of {len(self.peaks)} experts, "
            f"{self.tokens:,} tokens; {len(self.peaks) - len(ran)} experts never ran).",
            f"Residual: largest |h| {max(self.largest):.4g}, largest max / median {max(self.ratio):.4g}; massive "
            f"activations form in layers {', '.join(map(str, self.forming)) or 'none'}."
            if self.settings["layers"] == "residual"
            else f"Layers {', '.join(map(str, self.forming))} were taken, whatever their residual is.",
        ]
        for peak in sorted(ran, key=lambda peak: -peak.size)[:10]:
            mark = "  super" if peak.address in self.protected else ""
            lines.append(
                f"  {peak.address!s:<9} {peak.size:.4g} at position {peak.position} of text {peak.example + 1}{mark}"
            )
        return "\n".join(lines)


def select_super(
    sizes: Array, layer: Array, forming: Sequence[int], *, quantile: float = 99.5, times: float = 10.0
) -> Array:
    """Return which experts are super, (experts,) booleans: in a forming layer, above quantile and tenth.

    Args:
        sizes: (experts,) a[l, e]; NaN where an expert never ran.
        layer: (experts,) its layer.
        forming: layers in which massive activations form.
        quantile: percentile over all a, by linear interpolation.
        times: an expert must be above the largest a / `times`.
    """
    ran = np.isfinite(sizes)
    if not ran.any():
        return np.zeros(len(sizes), bool)
    bound = max(float(np.percentile(sizes[ran], quantile)), float(sizes[ran].max()) / times)
    return np.asarray(np.isin(layer, list(forming)) & (np.where(ran, sizes, -np.inf) > bound))


def forming_layers(
    largest: Array, ratio: Array, *, massive_size: float = 100.0, massive_ratio: float = 1000.0, share: float = 0.1
) -> tuple[int, ...]:
    """Return the layers that raise the largest |h| by at least a share of its maximum, if that is massive at all.

    Args:
        largest: (layers,) max |h| after each layer.
        ratio: (layers,) largest max |h| / median |h| of a token after each layer.
        massive_size, massive_ratio: bounds on both above which activations are massive.
        share: of the largest |h| of any layer.
    """
    if not ((largest > massive_size) & (ratio > massive_ratio)).any():
        return ()
    growth = np.diff(largest, prepend=0.0)
    return tuple(int(layer) for layer in np.flatnonzero(growth >= share * largest.max()))


def super_experts(
    engine: Engine,
    examples: Sequence[Example] | None = None,
    *,
    layers: Layers = "residual",
    first_share: float = 0.75,
    quantile: float = 99.5,
    times: float = 10.0,
    massive_size: float = 100.0,
    massive_ratio: float = 1000.0,
    batch_size: int = 8,
    keep: bool = True,
    visit: Visit | None = None,
) -> SuperExperts:
    """Find a model's super experts with one pass over some texts, and keep them for the plans to come.

    Memory is one number for each expert beside a forward pass. Which texts hardly matters, so long as they are ordinary
    and there are some thousand tokens; the largest outputs sit on the first token of a text in the models of the paper.

    Args:
        engine: an engine that shows what is inside experts.
        examples: calibration texts; left out: the neutral texts that come with the package (part `dev`).
        layers: `residual`, those in which massive activations form; `first`, the code's first `first_share` of layers.
        first_share: for `first`: layers below round(share × number of layers).
        quantile, times, massive_size, massive_ratio: the rule's bounds, as in `select_super` and `forming_layers`.
        batch_size: texts a forward pass.
        keep: write the result to the user's cache folder, where `steer` finds it.
        visit: called with each pass, its rows and requests, and the largest |output| of each of its tokens, (m,).

    Raises:
        Unsupported: the engine or the family does not show what is inside experts or the residual stream.
        BadData: there is no text, or an option makes no sense.
    """
    if layers not in ("residual", "first") or not 0 < quantile < 100 or times < 1 or not 0 < first_share <= 1:
        raise BadData("layers is 'residual' or 'first', quantile between 0 and 100, times from 1, first_share up to 1.")
    if examples is None:
        from moeworks.probes import neutral_texts

        examples = neutral_texts("dev")
    model, texts = engine.identity, list(examples)
    address = [Address(shape.layer, expert) for shape in model.layers for expert in range(shape.experts)]
    column = {a: i for i, a in enumerate(address)}
    sizes = np.full(len(address), np.nan)
    places = np.full((len(address), 3), -1)  # example, position, token

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        largest = seen.outputs.detach().abs().amax(-1)  # (m,)
        if visit is not None:
            visit(seen, rows, requests, as_numpy(largest))
        at = int(largest.argmax())
        size, index = float(largest[at]), column[Address(seen.layer, seen.expert)]
        if not size <= sizes[index]:  # NaN counts as smaller than everything
            row = int(seen.rows[at])
            number: int = requests.numbers[rows.request[row]]  # type: ignore[attr-defined]
            sizes[index], places[index] = size, (number, rows.position[row], rows.token[row])

    with residual_of(engine) as residual:
        observe(engine, texts, add, batch_size=batch_size)
    if np.isinf(sizes).any():
        raise BadData("an expert's output is infinite; run the model in a wider dtype.")
    layer = np.array([a.layer for a in address])
    if layers == "residual":
        forming = forming_layers(
            residual.largest, residual.ratio, massive_size=massive_size, massive_ratio=massive_ratio
        )
        considered = sizes
    else:
        forming = tuple(range(round(first_share * residual.layers)))
        considered = np.where(np.isin(layer, forming), sizes, np.nan)
    passing = select_super(considered, layer, forming, quantile=quantile, times=times)
    ran = np.isfinite(considered)
    result = SuperExperts(
        model=model,
        peaks=tuple(Peak(a, float(s), *map(int, p)) for a, s, p in zip(address, sizes, places, strict=True)),
        protected=tuple(address[i] for i in np.argsort(-sizes, kind="stable") if passing[i]),
        forming=forming,
        largest=tuple(map(float, residual.largest)),
        ratio=tuple(map(float, residual.ratio)),
        threshold=float(max(np.percentile(considered[ran], quantile), considered[ran].max() / times))
        if ran.any()
        else float("nan"),
        tokens=residual.tokens,
        settings={
            "layers": layers,
            **({"first_share": first_share} if layers == "first" else {}),
            "quantile": quantile,
            "times": times,
            "massive_size": massive_size,
            "massive_ratio": massive_ratio,
            "texts": hash_texts(example.content() for example in texts),
        },
    )
    if keep:
        remember(result.record)
    return result


class Sinks(NamedTuple):
    """Massive activations and attention sinks with and without some experts, layer by layer of the model."""

    experts: tuple[Address, ...]  # what was taken out
    largest: tuple[Array, Array]  # (layers,) max |h|, with and without
    ratio: tuple[Array, Array]  # (layers,) largest max |h| / median |h|
    attention: tuple[Array, Array]  # (layers,) mean attention of later tokens to the first; NaN where not reported

    def __str__(self) -> str:
        """One line a layer."""
        lines = [f"With all experts → without {', '.join(map(str, self.experts))}:"]
        for layer in range(len(self.ratio[0])):
            (a, b), (c, d) = (ratio[layer] for ratio in self.ratio), self._shares(layer)
            lines.append(f"  layer {layer}: max / median |h| {a:.4g} → {b:.4g}, attention to token 0 {c} → {d}")
        return "\n".join(lines)

    def _shares(self, layer: int) -> tuple[str, str]:
        first, second = (f"{share[layer]:.1%}" if share[layer] == share[layer] else "?" for share in self.attention)
        return first, second


def sink_diagnostics(
    engine: Engine, experts: Sequence[Address], examples: Sequence[Example] | None = None, *, batch_size: int = 8
) -> Sinks:
    """Measure what becomes of massive activations and attention sinks if some experts are silent.

    The experts are taken out as in the paper: their output becomes 0, the router and all other weights stay. In the
    paper's models the sinks collapse without super experts; without as many random ones nothing happens.

    Args:
        engine: an engine that runs torch.
        experts: such as `super_experts(engine).protected`.
        examples: texts; left out: the neutral texts that come with the package (part `dev`).
        batch_size: texts a forward pass.

    Raises:
        Unsupported: the model does not show its residual stream or its attention.
        BadData: no expert is given.
    """
    if not experts:
        raise BadData("no expert is given, so that there is nothing to take out; the model may have no super expert.")
    if examples is None:
        from moeworks.probes import neutral_texts

        examples = neutral_texts("dev")
    without = Plan(header=plan_header(engine.identity), operations=(Mask(experts=tuple(experts), refill=False),))
    seen = [sinks(engine, list(examples), plan=plan, batch_size=batch_size) for plan in (None, without)]
    (largest, ratio, attention) = ((seen[0][i], seen[1][i]) for i in range(3))
    return Sinks(tuple(experts), largest, ratio, attention)
