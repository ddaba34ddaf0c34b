"""Cuts a tiny model's checkpoint, loads it with stock transformers and compares it with the masked original."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moeworks import __version__
from moeworks.artefact import Header, ModelIdentity
from moeworks.edit.apply import apply
from moeworks.edit.checkpoint import Checkpoint, open_checkpoint
from moeworks.edit.plan import FORMAT, VERSION, EditPlan, LayerCut
from moeworks.errors import MoeworksError, Unsupported
from moeworks.families.tiny import TINY_VOCABULARY, model_class, tiny_model

__all__ = ["TOLERANCE", "check_cut", "load", "masked_run", "random_cut", "run"]

EXPERTS = 16  # four groups of four: a cut to half leaves the two that ranking groups needs
# Relative to the largest logit. Products with 8 and with 16 columns are summed in another order; a token that got
# another expert shows from 1e-2 on.
TOLERANCE = 5e-6


def check_cut(family: str, *, seed: int = 0) -> float:
    """Cut half of the experts of a family's tiny checkpoint and return the largest difference of logits.

    The reference is the original checkpoint, run by stock code with the logits of the dropped experts at -inf. The
    difference is relative to the largest logit, where that is above 1.

    Raises:
        Unsupported: it cannot be cut, does not load whole, or differs by more than `TOLERANCE`.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            return _difference(family, Path(name), seed)
        except MoeworksError as error:
            raise Unsupported(str(error).replace(str(Path(name) / "whole"), f"'{family}'")) from error


def _difference(family: str, folder: Path, seed: int) -> float:
    model = tiny_model(family, seed=seed, experts=EXPERTS)
    model.save_pretrained(folder / "whole")
    checkpoint = open_checkpoint(folder / "whole")
    plan = random_cut(checkpoint, seed=seed)
    if any(layout.table for layout in checkpoint.layouts.values()):
        point_tables(model, checkpoint, plan)
        model.save_pretrained(folder / "whole")
        checkpoint = open_checkpoint(folder / "whole")
    apply(checkpoint, plan, folder / "cut")
    dropped = {cut.layer: [e for e in range(cut.experts) if e not in cut.keep] for cut in plan.layers}
    whole = masked_run(load(family, folder / "whole"), checkpoint, dropped)
    difference = float((run(load(family, folder / "cut")) - whole).abs().max() / whole.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        raise Unsupported(f"the cut model's logits differ from the masked original's by {difference:.1e}")
    return difference


def load(family: str, folder: Path) -> Any:
    """Load a checkpoint with stock transformers, which must find every tensor and no other.

    Raises:
        Unsupported: a tensor is missing, left over, or of another shape.
    """
    model, loading = model_class(family).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: sorted(keys) for kind, keys in loading.items() if keys}
    if wrong:
        raise Unsupported(f"the checkpoint does not load whole: {str(wrong)[:200]}")
    return model.eval()


def random_cut(
    checkpoint: Checkpoint, *, share: float = 0.5, seed: int = 0, identity: ModelIdentity | None = None
) -> EditPlan:
    """Return a plan that keeps a random share of each layer's experts, as many of each group."""
    random = np.random.default_rng(seed)
    groups = checkpoint.settings.group_count
    identity = identity or checkpoint.identity()
    cuts = []
    for layer in checkpoint.layers:
        experts, whole = checkpoint.layouts[layer].experts, identity.layer(layer).experts
        size = experts // groups
        kept = [g * size + int(e) for g in range(groups) for e in random.permutation(size)[: max(1, int(size * share))]]
        cuts.append(LayerCut(layer=layer, experts=whole, keep=tuple(sorted([*kept, *range(experts, whole)]))))
    header = Header(format=FORMAT, version=VERSION, moeworks=__version__, model=identity, seed=seed)
    return EditPlan(method="random", keep=share, layers=tuple(cuts), header=header)


def run(model: Any) -> Tensor:
    """Return a model's logits, or where it has no head its last hidden states, for a fixed text: (2, 16, …)."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, TINY_VOCABULARY, (2, 16)))
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    logits: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits


def masked_run(model: Any, checkpoint: Checkpoint, dropped: Mapping[int, Sequence[int]]) -> Tensor:
    """Return the logits of a model whose routers see -inf in place of the dropped experts' logits and biases."""
    from moeworks.families import survey

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        masks: dict[int, Tensor] = {}
        for router in survey(model).routers:
            layout = checkpoint.layouts[router.layer]
            where = torch.zeros(layout.width, dtype=torch.bool)
            where[list(dropped.get(router.layer, ()))] = True
            weight = _router_weight(router.module, layout.width)
            masks[weight.data_ptr()] = where
            bias = router.arrays.bias
            if bias is not None:
                stack.callback(bias.copy_, bias.clone())
                bias.masked_fill_(where[: len(bias)], -torch.inf)
        mode = stack.enter_context(_Masked(masks))
        logits = run(model)
    if mode.seen != set(masks):
        raise Unsupported("a router does not make its logits of its weight, so that they cannot be masked")
    return logits


def point_tables(model: Any, checkpoint: Checkpoint, plan: EditPlan) -> None:
    """Make the tables of token ids name kept experts alone."""
    from moeworks.families import survey

    kept = {cut.layer: torch.tensor(cut.keep) for cut in plan.layers}
    for router in survey(model).routers:
        table = router.arrays.table
        if table is not None:
            order = torch.rand(len(table), len(kept[router.layer]), generator=torch.Generator().manual_seed(0))
            table.copy_(kept[router.layer][order.argsort(-1)[:, : table.shape[1]]])


def _router_weight(module: torch.nn.Module, rows: int) -> Tensor:
    """Return the matrix whose product with hidden states is the logits: the last one with a row for each expert."""
    found = [p for _, p in module.named_parameters() if p.ndim == 2 and len(p) == rows]
    if not found:
        raise Unsupported("its router has no matrix with a row for each expert")
    return found[-1]


class _Masked(TorchFunctionMode):
    """Sets columns of every product with one of these matrices to -inf, whatever function computes it."""

    def __init__(self, masks: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._masks = masks
        self.seen: set[int] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in (torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__):
            for tensor in args[:2]:
                where = self._masks.get(tensor.data_ptr()) if isinstance(tensor, Tensor) else None
                if where is not None:
                    self.seen.add(tensor.data_ptr())
                    output = output.masked_fill(where, -torch.inf)
        return output
