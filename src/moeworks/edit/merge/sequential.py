"""Groups and merges layers in order while texts run through, so that each layer is seen behind merged ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from moeworks.address import Address
from moeworks.artefact import Header
from moeworks.edit.layer import LayerWeights
from moeworks.edit.merge.copies import as_copies
from moeworks.edit.merge.grouping import GROUPINGS, group_layer
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadPlan

__all__ = ["SequentialChange", "sequential_change"]


class SequentialChange:
    """The callback of a layer-streamed collection: (statistics, weights) → merged layer; gathers what it decided.

    Attributes:
        cuts: layer → its plan, in the order in which layers came.
    """

    def __init__(
        self,
        method: str,
        kept: int | Mapping[int, int],
        *,
        seed: int,
        protected: Collection[Address],
        layout: Literal["rows", "copies"],
        transform: str,
        transform_options: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self.method, self.kept, self.seed, self.layout = method, kept, seed, layout
        self.protected = tuple(sorted(protected))
        self.transform, self.transform_options, self.options = transform, dict(transform_options), dict(options)
        self.cuts: dict[int, LayerCut] = {}

    def __call__(self, statistics: LayerStatistics, weights: LayerWeights) -> LayerWeights:
        """Group the layer, merge it, note the grouping, and return the layer that the next ones are seen behind.

        Raises:
            BadPlan: the number of experts is not given for this layer.
            BadData: a statistic is missing.
        """
        layer = statistics.layer
        if not isinstance(self.kept, int) and layer not in self.kept:
            raise BadPlan(f"it is not said how many experts layer {layer} keeps.")
        grouping = group_layer(
            self.method,
            statistics,
            self.kept if isinstance(self.kept, int) else self.kept[layer],
            weights=weights,
            seed=self.seed,
            protected=[address.expert for address in self.protected if address.layer == layer],
            **self.options,
        )
        cut = grouping.cut(layer, weights.experts)
        merged = TRANSFORMS.get(self.transform)(weights, cut, statistics, **self.transform_options)
        self.cuts[layer] = cut
        return as_copies(weights, merged, cut) if self.layout == "copies" else merged

    def plan(self, header: Header, *, statistics: str = "") -> EditPlan:
        """Return what was decided as a plan; to write the same weights, apply it with the statistics of this very run.

        Raises:
            BadPlan: no layer came.
        """
        if not self.cuts:
            raise BadPlan("no layer was grouped yet; run the collection first.")
        cuts = [self.cuts[layer] for layer in sorted(self.cuts)]
        return EditPlan(
            method=self.method,
            options={"sequential": True, "seed": self.seed, **self.options},
            keep=sum(len(cut.keep) for cut in cuts) / sum(cut.experts for cut in cuts),
            transform=self.transform,
            transform_options=self.transform_options,
            protected=self.protected,
            layers=tuple(cuts),
            statistics=statistics,
            header=header,
        )


def sequential_change(
    method: str,
    kept: int | Mapping[int, int],
    *,
    seed: int = 0,
    protected: Collection[Address] = (),
    layout: Literal["rows", "copies"] = "rows",
    transform: str | None = None,
    transform_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> SequentialChange:
    """Return the `change` of a layer-streamed collection that merges each layer before the next one is seen.

    Args:
        method: name in `GROUPINGS`.
        kept: experts that every layer keeps, or by layer.
        seed: for methods that draw.
        protected: experts that stay by themselves.
        layout: `rows` gives the smaller layer, `copies` one in which all members have the merged weights.
        transform: name in `TRANSFORMS`; without one, the grouping's own.
        transform_options: of the transform.
        options: of the grouping.

    Source: REAM (arXiv 2604.04356), released code: layers in order, re-running the forward with merged prefixes.

    Raises:
        BadPlan: an unknown layout.
        MoeworksError: no such grouping or transform.
    """
    if layout not in ("rows", "copies"):
        raise BadPlan(f"a layer is written as 'rows' or 'copies', not '{layout}'.")
    own = GROUPINGS.get(method).__dict__.get("transform", "mean")
    chosen = own if transform is None else transform
    TRANSFORMS.get(chosen)
    return SequentialChange(
        method,
        kept,
        seed=seed,
        protected=protected,
        layout=layout,
        transform=chosen,
        transform_options=transform_options or {},
        options=options,
    )
