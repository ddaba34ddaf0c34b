"""Tells whether a training set-up keeps a model's routers balanced at all: by its settings, and by trying one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from moeworks.errors import Unsupported
from moeworks.families.discover import discover

if TYPE_CHECKING:
    from moeworks.families.router import Router

__all__ = ["TrainingSetup", "training_setup"]

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_alpha", "aux_loss_coef", "moe_aux_loss_coeff")
TOKENS, TEXTS, PADDED = 48, 4, 12
SAME = 1e-5  # relative: what rounding leaves of a difference
MOVED = 1e-3  # relative: rounding of the loss is less of a term that is a hundredth of it
TINY = 1e-7  # gradients below come from the difference of two equal cross entropies


@dataclass(frozen=True)
class TrainingSetup:
    """What the model's own forward pass adds to the loss for its routers, as it is configured now.

    Attributes:
        family: model type.
        output_router_logits: the switch in its config; None where there is none.
        coefficient: of the balance loss in its config, and its name; None where there is none.
        applied: how much of the loss is a balance loss, measured on one batch; 0 if none is applied.
        with_switch: the same with `output_router_logits=True`; None where the model does not take it.
        reaches_routers: whether that term has a gradient in the routers.
        sees_padding: whether the content of padding changes the term.
        biases: layers with a selection bias.
        bias_moves: whether the model moves its selection biases by itself in a training step.
    """

    family: str
    output_router_logits: bool | None
    coefficient: tuple[str, float] | None
    applied: float
    with_switch: float | None
    reaches_routers: bool
    sees_padding: bool | None
    biases: int
    bias_moves: bool

    @property
    def balanced(self) -> bool:
        """Whether something keeps the load even: a loss that reaches the routers, or biases that move."""
        return (self.applied != 0 and self.reaches_routers) or self.bias_moves

    def __str__(self) -> str:
        lines = [f"{self.family}: training with the model's own loss"]
        if self.applied and self.reaches_routers:
            lines.append(f"  a balance loss is applied: {self.applied:.3g} of the loss on a random batch")
        elif self.with_switch:
            name, value = self.coefficient or ("its coefficient", float("nan"))
            lines.append(
                "  no balance loss is applied: config.output_router_logits is off; set it to True (or pass it to the "
                f"model) and {self.with_switch:.3g} is added ({name} = {value:g})"
            )
        elif self.coefficient is not None and self.coefficient[1] == 0:
            lines.append(f"  no balance loss is applied: {self.coefficient[0]} is 0")
        else:
            lines.append("  no balance loss is applied, and this model's forward pass has none to switch on")
        if self.biases and not self.bias_moves:
            lines.append(
                f"  {self.biases} layers have a selection bias and nothing moves it: call moeworks.watch.bias_step "
                "after each step if the load is to stay even"
            )
        if self.sees_padding:
            lines.append("  its balance loss counts padding: pass an attention mask, or pack texts without padding")
        if not self.balanced:
            lines.append("  so nothing keeps the load even; watch it with moeworks.watch.RoutingCallback")
        return "\n".join(lines)


def training_setup(model: Any, *, seed: int = 0) -> TrainingSetup:
    """Run one training step's forward and backward pass on random tokens and look at what reaches the routers.

    Parameters and gradients are not touched; buffers, the mode of the model and the random state are put back.

    Raises:
        Unsupported: it has no routers, or its forward pass takes no labels.
    """
    routers = discover(model)
    if not routers:
        raise Unsupported(f"'{model.config.model_type}' has no routers that it declares.")
    config = model.config.get_text_config()
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (TEXTS, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[:, TOKENS - PADDED :] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    switch = getattr(config, "output_router_logits", None)
    try:
        model.train()
        applied, reaches = _term(model, batch, routers, switch=None)
        moved = any(not torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
        asked = None if switch is None else _term(model, batch, routers, switch=True)[0]
        sees = None
        if asked:
            changed = ids.where(mask.bool(), torch.randint(3, vocabulary, ids.shape, generator=generator))
            other = _term(model, {**batch, "input_ids": changed}, routers, switch=True)[0]
            sees = abs(other - asked) > MOVED * abs(asked)
    finally:
        model.train(was_training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
    named = [(name, getattr(config, name, None)) for name in COEFFICIENTS]
    numbers = [(name, float(value)) for name, value in named if isinstance(value, float | int)]
    return TrainingSetup(
        family=model.config.model_type,
        output_router_logits=switch,
        coefficient=numbers[0] if numbers else None,
        applied=applied,
        with_switch=asked,
        reaches_routers=reaches,
        sees_padding=sees,
        biases=sum(router.arrays.bias is not None for router in routers),
        bias_moves=moved,
    )


def _term(
    model: Any, batch: dict[str, Tensor], routers: Sequence[Router], *, switch: bool | None
) -> tuple[float, bool]:
    """Return what a model's loss holds beside the cross entropy, and whether that has a gradient in the routers.

    The cross entropy is computed here, from the logits and the next tokens, and taken off.
    """
    options = {} if switch is None else {"output_router_logits": switch}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same dropout in every run, so that their terms compare
        output = model(**batch, use_cache=False, **options)
    if output.loss is None:
        raise Unsupported(f"'{model.config.model_type}' gives no loss for labels; nothing can be said of training it.")
    targets = batch["labels"][:, 1:].reshape(-1)
    plain = functional.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), targets, ignore_index=-100)
    term = output.loss - plain
    value = float(term.detach())
    if abs(value) <= SAME * float(plain.detach()):
        return 0.0, False
    parameters = [p for router in routers for p in router.module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(term, parameters, allow_unused=True)
    size = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    return value, size > TINY
