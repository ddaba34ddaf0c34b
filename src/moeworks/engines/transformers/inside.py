"""Looks inside routed experts while a model runs: inputs, pre-activations, keys and outputs of each expert's own rows.

A model is watched for the length of a `with` block: the forward of its experts modules is replaced and put back. As
long as nothing is changed and no gradient is wanted, the module's own output goes on, so that routing downstream is the
plain model's to the bit; what is shown is recomputed beside it, and compared with it at first use in every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeworks.engines.transformers.experts import Experts, arguments_of, open_experts, slices
from moeworks.engines.transformers.layout import Batch, Forward
from moeworks.engines.transformers.neurons import NeuronEdit, edited, touched_rows
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example
from moeworks.where import Requests, Rows, Where

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tokens import Long
    from moeworks.families.router import Router
    from moeworks.plan import Plan

__all__ = ["After", "ExpertPass", "Inside", "Observer", "PassRequests", "Watch", "observe_experts"]

COMPARED_ROWS = 64  # rows on which experts are compared with their module's own output at first use
WINDOW = 32  # batches that are sorted by length together, as in recording


class ExpertPass(NamedTuple):
    """One expert's share of one forward pass; rows of padding and rows that were not asked for do not exist.

    Slots with a weight of exactly 0 did not run and are left out. With gradients, `gate`, `up`, `key` and `outputs` lie
    on the way to the logits.
    """

    layer: int  # global layer number
    expert: int
    rows: Tensor  # (m,) index into the Rows of the pass, ascending
    slots: Tensor  # (m,) slot of the router's decision
    weights: Tensor  # (m,) combine weight
    inputs: Tensor  # (m, H)
    gate: Tensor | None  # (m, I) pre-activation of the gate
    up: Tensor  # (m, I) pre-activation
    key: Tensor  # (m, I) what the down projection reads: act(gate) * up, or the family's own rule
    outputs: Tensor  # (m, H) what the expert gives out, before it is weighted

    def take(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a column of Rows at this pass's rows, (m,): numpy takes a tensor of one element for a number."""
        return np.asarray(column[self.rows.cpu().numpy()])


@dataclass(frozen=True)
class PassRequests(Requests):
    """The requests of one batch; the document of each is a label too."""

    numbers: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))  # (m,) place among all examples


Observer = Callable[[ExpertPass, Rows, PassRequests], None]
After = Callable[[Tensor, Batch], None]


@dataclass(frozen=True)
class Watch:
    """What somebody wants to see of a session's forward passes."""

    observer: Observer
    where: Where
    gradients: bool = False


@dataclass
class Inside:
    """The experts of some routers, run by us between `attach` and `detach`.

    Attributes:
        routers: whose experts may be looked into.
        edits: layer → neuron edits with the number of their clause.
        mask: from the number of a clause to the flat rows that it takes now, None for all.
        forward: the layout of the pass that is running.
        paused: whether everything is to run as if nobody was here.
    """

    routers: Sequence[Router]
    edits: Mapping[int, Sequence[tuple[int, NeuronEdit]]]
    mask: Callable[[int, Where, torch.device], Tensor | None]
    forward: Callable[[], Forward | None]
    paused: Callable[[], bool]
    clauses: Sequence[Where] = ()
    watch: Watch | None = None
    taken: int = 0  # rows that the watch's clause took so far
    _seen: set[int] = field(default_factory=set)
    _compared: set[int] = field(default_factory=set)
    _restore: list[tuple[nn.Module, Any]] = field(default_factory=list)
    _pass: tuple[Rows, PassRequests, Tensor | None, Tensor | None] | None = None

    @property
    def layers(self) -> set[int]:
        """Layers whose experts are run by us."""
        watched = {r.layer for r in self.routers if self.watch is not None and self.watch.where.takes_layer(r.layer)}
        return watched | set(self.edits)

    def attach(self) -> None:
        """Replace the forward of the experts; `detach` puts back what was there.

        Raises:
            Unsupported: what is inside the experts of a layer cannot be told.
        """
        opened = [open_experts(router) for router in self.routers if router.layer in self.layers]
        if len({id(experts.module) for experts in opened}) < len(opened):
            raise Unsupported("two layers share one experts module, so that it cannot be said which of them runs.")
        for experts in opened:
            edits = self.edits.get(experts.router.layer, ())
            if experts.weights.gate is None and any(site == "gate" for _, edit in edits for _, site in edit.steps):
                raise Unsupported(f"the experts of layer {experts.router.layer} have no gate; change 'up' or 'key'.")
        for experts in opened:
            module = experts.module
            self._restore.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = self._forward(experts, module.forward)

    def detach(self) -> None:
        """Put back every forward that was replaced."""
        for module, before in reversed(self._restore):
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        self._restore.clear()

    def begin(self) -> None:
        """Start a new forward pass of the model."""
        self._seen.clear()
        self._pass = None

    def missing(self) -> set[int]:
        """Return the layers whose experts did not run in this pass."""
        return self.layers - self._seen

    def _forward(self, experts: Experts, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        layer = experts.router.layer
        edits = self.edits.get(layer, ())
        watched = self.watch is not None and self.watch.where.takes_layer(layer)
        gradients = self.watch is not None and self.watch.gradients

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if self.paused():
                return own(*args, **kwargs)
            if layer in self._seen:
                raise Unsupported(f"the experts of layer {layer} ran twice in one forward pass; rows are ambiguous.")
            self._seen.add(layer)
            hidden, ids, weights = arguments_of(own, args, kwargs)
            wide = hidden.reshape(-1, hidden.shape[-1])  # (n, H)
            known = self.forward()
            if known is not None and known.total != len(wide):
                raise Unsupported(f"the experts of layer {layer} got {len(wide)} rows of {known.total}; not all run.")
            active = [(edit, self.mask(index, self.clauses[index], ids.device)) for index, edit in edits]
            touched = touched_rows(active, ids, weights)  # (n,) or None where no row is
            if gradients:
                if layer not in self._compared:
                    with torch.no_grad():
                        self._compare(experts, wide, ids, weights, own(*args, **kwargs))
                total = self._run(experts, wide, ids, weights, None, watched, active)
                return total.to(hidden.dtype).reshape(hidden.shape)
            output = own(*args, **kwargs)
            if layer not in self._compared:
                self._compare(experts, wide, ids, weights, output)
            if watched or touched is not None:
                wanted = _either(self._layout(ids.device)[2], touched) if watched else touched
                total = self._run(experts, wide, ids, weights, wanted, watched, active)
                if touched is not None:
                    total = total.to(output.dtype).reshape(output.shape)
                    output = torch.where(touched.reshape(*output.shape[:-1], 1), total, output)
            return output

        return forward

    def _compare(self, experts: Experts, hidden: Tensor, ids: Tensor, weights: Tensor, output: Tensor) -> None:
        few = slice(0, COMPARED_ROWS)
        experts.compare(hidden[few], ids[few], weights[few], output.reshape(len(hidden), -1)[few])
        self._compared.add(experts.router.layer)

    def _run(
        self,
        experts: Experts,
        hidden: Tensor,
        ids: Tensor,
        weights: Tensor,
        wanted: Tensor | None,
        watched: bool,
        active: Sequence[tuple[NeuronEdit, Tensor | None]],
    ) -> Tensor:
        """Run experts on the wanted rows, show what is watched, return the weighted sum, (n, H), float32 or wider."""
        rows, requests, taken, numbers = self._layout(hidden.device) if watched else (None, None, None, None)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
        runs = weights if wanted is None else weights.masked_fill(~wanted[:, None], 0)
        for part in slices(ids, runs, experts.weights.experts, taken):
            inputs = hidden[part.rows]  # (m, H)
            gate, up = experts.project(part.expert, inputs)
            if gate is not None:
                gate = edited(active, part, "gate", gate)
            up = edited(active, part, "up", up)
            key = edited(active, part, "key", experts.rule(gate, up))
            out, weight = experts.outputs(part.expert, key), weights[part.rows, part.slots]
            if watched and part.taken:
                assert self.watch is not None
                assert rows is not None
                assert requests is not None
                place = part.rows if numbers is None else numbers[part.rows]
                self.watch.observer(
                    ExpertPass(
                        experts.router.layer, part.expert, place, part.slots, weight, inputs, gate, up, key, out
                    ),
                    rows,
                    requests,
                )
            total.index_add_(0, part.rows, (out * weight[:, None]).to(wide))
        return total + experts.passed_on(hidden, ids, weights) if experts.identity else total

    def _layout(self, device: torch.device) -> tuple[Rows, PassRequests, Tensor | None, Tensor | None]:
        """Return the rows of this pass, its requests, which flat rows are asked for, and the row of each flat row."""
        if self._pass is None:
            forward = self.forward()
            assert forward is not None
            assert self.watch is not None
            requests = _with_numbers(forward)
            selected = self.watch.where.mask(forward.rows, requests, strict=False)  # (n,)
            valid = np.arange(forward.total) if forward.valid is None else forward.valid
            flat = np.zeros(forward.total, bool)
            flat[valid] = selected
            numbers = None
            if forward.valid is not None:
                place = np.full(forward.total, -1, np.int64)
                place[valid] = np.arange(len(valid))
                numbers = torch.from_numpy(place).to(device)
            self.taken += int(selected.sum())
            taken = None if flat.all() else torch.from_numpy(flat).to(device)
            self._pass = forward.rows, requests, taken, numbers
        rows, requests, taken, numbers = self._pass
        return (
            rows,
            requests,
            None if taken is None else taken.to(device),
            None if numbers is None else numbers.to(device),
        )


def observe_experts(
    engine: TransformersEngine,
    examples: Iterable[Example],
    observer: Observer,
    *,
    where: Where = Where(),
    plan: Plan | None = None,
    batch_size: int = 8,
    gradients: bool = False,
    after: After | None = None,
    long: Long = "truncate",
) -> None:
    """Run texts through a model and show what happens inside its experts, one expert of one pass at a time.

    The observer is called once for each layer and expert that runs, in layer order within a pass; nothing is kept, so
    that memory is that of one forward pass. Texts come in windows sorted by length: `PassRequests.numbers` says which.

    Args:
        engine: an engine that runs torch.
        examples: the texts.
        observer: called with `ExpertPass`, the rows of the pass and the requests that `Rows.request` indexes.
        where: rows (and layers) that are shown.
        plan: applied while running; what is shown is what runs under it.
        batch_size: texts a forward pass.
        gradients: keep the graph, in evaluation mode, with the choice of experts held fixed. Parameters gather no
            gradient; ask for those of what was shown with `torch.autograd.grad` in `after`. Needs memory for all
            activations of a pass.
        after: called with the logits, (batch, width, vocabulary), and the batch at the end of each forward pass.
        long: what happens to texts longer than the context.

    Raises:
        Unsupported: another engine, or a family whose experts do not compute as is known of them; with the reason.
        BadData: there is no text, or `where` takes no token of any.
    """
    if not hasattr(engine, "session"):
        raise Unsupported(
            f"the {engine.engine.name} engine shows nothing inside experts; take the transformers engine."
        )
    if batch_size < 1:
        raise BadData(f"a batch of {batch_size} texts is not possible; batch_size is 1 or more.")
    requests = engine.reader.read(iter(examples), long=long)
    with ExitStack() as stack:
        stack.enter_context(_with_gradients(engine.model) if gradients else torch.inference_mode())
        tap = stack.enter_context(engine.session(plan, record=False, watch=Watch(observer, where, gradients)))
        texts = 0
        while window := list(islice(requests, WINDOW * batch_size)):
            texts += len(window)
            window = [replace(r, labels={"document": r.document, **r.labels}) for r in window]
            window.sort(key=lambda request: len(request.tokens))
            for start in range(0, len(window), batch_size):
                batch = Batch(window[start : start + batch_size])
                tap.start(batch)
                output = engine.model(**batch.tensors(engine.pad_token, engine.model.device), use_cache=False)
                if after is not None:
                    after(_logits(output), batch)
                del output
        if not texts:
            raise BadData("there is no text to look at; the examples are empty.")
        if tap.inside is not None and not tap.inside.taken:
            raise BadData(f"no token of {texts} texts is taken by '{where}'; nothing was seen.")


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise Unsupported(
            "this model is a bare text decoder without an output over the vocabulary; there are no logits."
        )
    return logits


@contextmanager
def _with_gradients(model: nn.Module) -> Iterator[None]:
    """Let gradients reach activations and no parameter, without training mode, and put every flag back."""
    flags = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    handle = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, flag in flags:
            module.training = flag


def _with_numbers(forward: Forward) -> PassRequests:
    known = forward.requests
    return PassRequests(
        prompt_tokens=known.prompt_tokens,
        labels=known.labels,
        span_request=known.span_request,
        span_name=known.span_name,
        span_start=known.span_start,
        span_stop=known.span_stop,
        numbers=forward.numbers,
    )


def _either(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the rows of both; the first is None for all rows, the second for none."""
    return first if first is None or second is None else first | second
