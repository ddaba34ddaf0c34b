"""The transformers engine: record, steer, generate and score with stock models, through hooks on their routers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from moeworks.artefact import EngineIdentity, ModelIdentity
from moeworks.engines.base import Answer, Generation, ModelSize, TokenScores
from moeworks.engines.gating import ungated
from moeworks.engines.transformers import gating, likelihood, text
from moeworks.engines.transformers.inside import Watch
from moeworks.engines.transformers.loading import identify, load_pretrained
from moeworks.engines.transformers.recording import record
from moeworks.engines.transformers.replay import Replayer
from moeworks.engines.transformers.tap import Tap
from moeworks.engines.transformers.tokens import Long, Reader
from moeworks.errors import BadData, BadPlan, MoeworksError, Unsupported
from moeworks.examples import Example
from moeworks.families import Router, discover
from moeworks.plan.compiled import CompiledEdit, compile_plan
from moeworks.plan.guards import check
from moeworks.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from moeworks.plan import Plan

__all__ = ["TransformersEngine"]


class TransformersEngine:
    """A loaded model whose routing can be recorded and steered; see `moeworks.engines.base.Engine`.

    `model` and `tokenizer` are stock transformers objects and may be used directly: inside `with steered(plan)`,
    whatever runs on `model` runs under the plan, and outside it the model carries no hook of ours.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a model that is loaded already; its routers are found and their contracts proved here."""
        import transformers

        self.model = model.eval()
        self.routers: list[Router] = discover(model)
        self.identity: ModelIdentity = identify(name or model.config.model_type, model, tokenizer, self.routers)
        self.engine = EngineIdentity(
            name="transformers",
            version=f"{transformers.__version__} (torch {torch.__version__})",
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
        )
        config = model.config.get_text_config()
        limits = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
        self.context = min((limit for limit in limits if limit), default=2**31)
        self._tokenizer = tokenizer
        self._add_bos = bool((settings or {}).get("add_bos", False))
        self._steering: list[Tap | gating.Refusal] = []
        self._plan: Plan | None = None
        self._inner: Plan | None = None  # the plan that is applied, without its gate
        self.plain: likelihood.Remembered | None = None

    @classmethod
    def load(cls, name: str, **options: Any) -> Self:
        """Open `lab`, a folder or a Hub id; options are those of `load_pretrained`."""
        model, tokenizer, settings = load_pretrained(name, **options)
        return cls(model, tokenizer, name=name, settings=settings)

    @property
    def plan(self) -> Plan | None:
        """The plan that is applied at the moment."""
        return self._plan

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        if self._tokenizer is None:
            raise BadData("this engine was made without a tokenizer; pass one to work with texts.")
        return self._tokenizer

    @property
    def reader(self) -> Reader:
        """Turns examples into token ids."""
        return Reader(self.tokenizer, self.context, self._add_bos)

    @property
    def pad_token(self) -> int:
        """The id that fills up short texts; masked, so any will do."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def size(self) -> ModelSize:
        """Return how many parameters the model has, how many of them in routed experts, and their bytes."""
        parameters = list(self.model.parameters())  # tied ones once
        modules = [router.experts_module for router in self.routers if router.experts_module is not None]
        experts = sum(parameter.numel() for module in modules for parameter in module.parameters())
        return ModelSize(sum(p.numel() for p in parameters), experts, sum(p.nbytes for p in parameters))

    # ------------------------------------------------------------------ steering

    @contextmanager
    def steered(self, plan: Plan | None) -> Iterator[None]:
        """Apply a plan to everything that runs inside the `with` block; None and an empty plan do nothing.

        Raises:
            BadPlan: the plan does not fit this model, or another one is applied already.
            Unsupported: the plan has a gate and `model` is called directly, where nothing decides request by request.
        """
        gated = plan is not None and plan.gate is not None
        with gating.closed(self, plan) if gated and plan is not None else self.session(plan, record=False):
            yield

    def applies(self, plan: Plan, prompts: Sequence[str | Example]) -> NDArray[np.bool_]:
        """Return to which prompts a plan applies, (prompts,): where its gate opens, or all of them."""
        examples = [Example(text=prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        if plan.gate is None:
            return np.ones(len(examples), bool)
        check(plan, self.identity)
        return gating.opened(self, plan.gate, list(self.reader.read(iter(examples))))

    def without_gate(self, plan: Plan) -> Plan:
        """Return what a plan does to the requests that its gate opens for."""
        return self._inner if plan is self._plan and self._inner is not None else ungated(plan)

    def enter_gated(self, plan: Plan, inner: Plan, refusal: gating.Refusal) -> None:
        """Let a plan with a gate hold from now on; see `gating.closed`."""
        self._plan, self._inner = plan, inner
        self._steering.append(refusal)

    def leave_gated(self) -> None:
        """Undo `enter_gated`."""
        self._plan = self._inner = None
        self._steering.pop()

    @contextmanager
    def session(
        self,
        plan: Plan | None,
        *,
        record: bool,
        logits: bool = False,
        plain: bool = False,
        watch: Watch | None = None,
    ) -> Iterator[Tap]:
        """Yield the tap that records and steers the forward passes inside the `with` block.

        Inside `steered(plan)`, a session without a plan of its own runs under that plan, unless it is to be `plain`.
        """
        outer = self._plan
        if plan is not None and outer is not None and plan is not outer and plan is not self._inner:
            raise BadPlan("a plan is applied already; leave its `with` block first, or compose the two plans.")
        plan = None if plain else plan or outer
        if plan is not None and plan.gate is not None:
            raise Unsupported(
                "a plan with a gate decides request by request, which this call does not; take the gate out."
            )
        edits, replayers = self._prepare(plan)
        with ExitStack() as stack:
            if self._steering:
                stack.callback(setattr, self._steering[-1], "paused", self._steering[-1].paused)
                self._steering[-1].paused = True
            # Compiled graphs do not see hooks that come and go; eager mode is exact.
            stack.enter_context(_eager_if_compiled(self.model))
            tap = stack.enter_context(
                Tap(
                    self.model,
                    self.routers,
                    edits=edits,
                    replayers=replayers,
                    record=record,
                    logits=logits,
                    watch=watch,
                )
            )
            self._steering.append(tap)
            stack.callback(self._steering.pop)
            stack.callback(setattr, self, "_plan", outer)
            self._plan = plan
            yield tap

    def _prepare(self, plan: Plan | None) -> tuple[Sequence[CompiledEdit], dict[str, Replayer]]:
        if plan is None or not plan.operations:
            return (), {}
        check(plan, self.identity)
        edits = compile_plan(plan, self.identity)
        names = {layer.replay.trace for edit in edits for layer in edit.layers.values() if layer.replay is not None}
        return edits, {name: Replayer(Trace.open(name)) for name in names}

    # ------------------------------------------------------------------ running

    def record(
        self,
        examples: Iterable[Example],
        path: str | Path,
        *,
        plan: Plan | None = None,
        logits: bool = False,
        generate: int = 0,
        batch_size: int = 8,
        long: Long = "truncate",
        sample: float | None = None,
        seed: int = 0,
        resume: bool = False,
        overwrite: bool = False,
        keep_text: bool = False,
        progress: bool = False,
        total: int | None = None,
        command: str = "",
        **generation: Any,
    ) -> Trace:
        """Run the examples and write what the routers decided, token by token, to the folder `path`.

        Args:
            examples: texts or chats; they are taken one window at a time, so that memory stays bounded.
            path: the trace's folder.
            plan: a plan to record under.
            logits: whether to keep the raw router logits too.
            generate: tokens to generate after each prompt and record as phase `generated`.
            batch_size: texts a forward pass.
            long: what happens to texts longer than the context; what was cut is counted in the header.
            sample: share of rows to keep; the others are counted as dropped.
            seed: seeds sampling of rows and of generated tokens.
            resume: go on with an unfinished trace.
            overwrite: replace a trace that is there.
            keep_text: store the texts themselves (a trace without them is still as private as the text).
            progress: show a bar on standard error.
            total: how many texts there are, for the time left; a sequence's own length is taken.
            command: how this was called, for the header.
            **generation: options of transformers' `generate`, such as `do_sample=True` or `num_beams=4`.
        """
        return record(
            self,
            iter(examples),
            Path(path),
            plan=plan,
            logits=logits,
            generate=generate,
            batch_size=batch_size,
            long=long,
            sample=sample,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            keep_text=keep_text,
            progress=progress,
            total=len(examples) if isinstance(examples, Sequence) else total,
            command=command,
            generation=generation,
        )

    def generate(
        self,
        prompts: Sequence[str | Example],
        *,
        plan: Plan | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        seed: int = 0,
        **generation: Any,
    ) -> list[Generation]:
        """Continue each prompt; greedy unless `do_sample=True` is given.

        Args:
            prompts: texts, or examples with messages, labels and spans that the plan's where clauses can use.
            plan: applied while generating.
            max_new_tokens: at most so many tokens each; room for them is kept in the context.
            batch_size: prompts a batch.
            seed: seeds the sampling, if there is any.
            **generation: options of transformers' `generate`.
        """
        return text.generate(self, prompts, plan, max_new_tokens, batch_size, seed, generation)

    def answers(
        self, pairs: Sequence[tuple[str, str]], *, plan: Plan | None = None, batch_size: int = 32
    ) -> list[Answer]:
        """Return how likely each (prompt, answer) pair's answer is after its prompt."""
        return likelihood.answers(self, pairs, plan, batch_size)

    def token_scores(
        self,
        texts: Sequence[str],
        *,
        plan: Plan | None = None,
        divergence: bool = False,
        batch_size: int = 8,
    ) -> Iterator[TokenScores]:
        """Return each text's token log-probabilities under the plan and, if asked, the KL to the plain model."""
        return likelihood.token_scores(self, texts, plan, divergence, batch_size)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep the plain model's predictions inside this block, so that many plans are compared with one plain pass.

        The weights must not be changed inside it. At most `likelihood.REMEMBERED_BYTES` are kept.
        """
        outer, self.plain = self.plain, self.plain or likelihood.Remembered()
        try:
            yield
        finally:
            self.plain = outer


@contextmanager
def _eager_if_compiled(model: torch.nn.Module) -> Iterator[None]:
    compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
    if not compiled:
        yield
        return
    if not hasattr(torch.compiler, "set_stance"):
        raise MoeworksError("this torch cannot leave compiled mode for a while; load the model without torch.compile.")
    with torch.compiler.set_stance("force_eager"):
        yield
