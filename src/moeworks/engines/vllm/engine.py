"""The vLLM engine, offline: record, steer, generate and score through a stock `vllm.LLM` with the plug-in inside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import ModelIdentity
from moeworks.engines.base import Answer, Generation, ModelSize, TokenScores
from moeworks.engines.transformers.tokens import Long, Reader
from moeworks.engines.vllm import likelihood, recording
from moeworks.engines.vllm.identity import checkpoint_identity, join, model_folder, running_engine
from moeworks.engines.vllm.info import read_info
from moeworks.engines.vllm.refusals import check_plan, check_request
from moeworks.engines.vllm.sampling import sampling_options
from moeworks.engines.vllm.spec import FIELD, Recording, make_spec
from moeworks.engines.vllm.versions import installed, wrong_version
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.examples import Example
from moeworks.plan import Plan
from moeworks.trace import Trace

__all__ = ["VllmEngine"]

SETTINGS = "moeworks.json"  # beside the weights: what transformers' own files cannot say


class VllmEngine:
    """A model loaded by vLLM; see `moeworks.engines.base.Engine`.

    `llm` is a stock `vllm.LLM`. Its requests carry plans in `SamplingParams.extra_args`, so that several engines,
    plans and plain requests do not meet anywhere but in a batch.
    """

    def __init__(self, llm: Any, *, name: str = "", add_bos: bool = False) -> None:
        """Take an `LLM` that was made while the plug-in was installed."""
        self.llm = llm
        config = llm.llm_engine.vllm_config
        self.config = config
        model = str(config.model_config.model)
        self._info = read_info(str(config.instance_id))
        if self._info.refused:
            raise Unsupported(f"the vLLM engine steers and records nothing here: {self._info.refused}.")
        self.identity: ModelIdentity = join(checkpoint_identity(model), self._info).model_copy(
            update={"name": name or model}
        )
        self.engine = running_engine(config)
        self.context = int(config.model_config.max_model_len) - 1  # vLLM always generates a token after a prompt
        self.tokenizer = llm.get_tokenizer()
        self.reader = Reader(self.tokenizer, self.context, add_bos)
        self.values = self._info.values
        self._plan: Plan | None = None
        self._plain: dict[tuple[int, ...], NDArray[Any]] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "",
        trust_remote_code: bool = False,
        enforce_eager: bool = True,
        **options: Any,
    ) -> Self:
        """Open `lab`, a folder or a Hub id; further options are those of `vllm.LLM`.

        The engine runs in this process unless VLLM_ENABLE_V1_MULTIPROCESSING says otherwise. On a CPU it takes 1 GiB
        for its cache of keys and values unless VLLM_CPU_KVCACHE_SPACE names another number.

        Raises:
            Unsupported: vLLM is not installed, is of another version, or cannot show this model's routing.
        """
        import json

        if reason := wrong_version(installed()):
            raise Unsupported(reason)
        if device not in ("", "cpu", "cuda", "auto"):
            raise BadData(f"vLLM chooses its device itself; leave out device '{device}', or start it on that one.")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM

        folder = model_folder(name)
        llm = LLM(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            enforce_eager=enforce_eager,
            **{"max_logprobs": -1, "max_num_seqs": 32, "disable_log_stats": True, **options},
        )
        file = Path(folder) / SETTINGS
        settings: Mapping[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return cls(llm, name=name, add_bos=bool(settings.get("add_bos", False)))

    # ------------------------------------------------------------------ plans

    @property
    def plan(self) -> Plan | None:
        """The plan that is applied at the moment."""
        return self._plan

    @contextmanager
    def steered(self, plan: Plan | None) -> Iterator[None]:
        """Apply a plan to everything that runs inside the `with` block; None and an empty plan do nothing.

        Raises:
            BadPlan: the plan does not fit this model, or another one is applied already.
            Unsupported: vLLM cannot do it.
        """
        before, self._plan = self._plan, self.effective(plan)
        try:
            yield
        finally:
            self._plan = before

    def effective(self, plan: Plan | None) -> Plan | None:
        """Return the plan that holds, checked: this one, or that of the block around."""
        if plan is None or plan is self._plan:
            return self._plan
        if self._plan is not None:
            raise BadPlan("a plan is applied already; leave its `with` block first, or compose the two plans.")
        check_plan(plan, self.identity)
        return plan

    def applies(self, plan: Plan, prompts: Sequence[str | Example]) -> NDArray[np.bool_]:
        """Return to which prompts a plan applies, (prompts,): all of them; a plan with a gate is refused."""
        check_plan(plan, self.identity)
        return np.ones(len(prompts), bool)

    def remembering(self) -> AbstractContextManager[None]:
        """Do nothing: vLLM's own cache of prefixes is what is kept between runs."""
        return nullcontext()

    # ------------------------------------------------------------------ running

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        plan: Plan | None,
        *,
        prompt_tokens: Sequence[int | None] | None = None,
        recordings: Sequence[Recording] | None = None,
        **sampling: Any,
    ) -> list[Any]:
        """Run token sequences in one go and return vLLM's outputs, in order.

        Args:
            prompts: token ids.
            plan: passed by `effective`.
            prompt_tokens: for each, the tokens of phase prompt where later given ones are forced.
            recordings: for each, what is kept of its decisions.
            **sampling: of `vllm.SamplingParams`.
        """
        from vllm import SamplingParams

        length = int(self.config.model_config.max_model_len)
        all_params = []
        for place, tokens in enumerate(prompts):
            own = None if prompt_tokens is None else prompt_tokens[place]
            spec = make_spec(plan, None if recordings is None else recordings[place], own)
            given = len(tokens)
            check_request(spec.operations, prompt=given if own is None else own, given=given, length=length)
            busy = spec.operations or spec.record is not None
            all_params.append(SamplingParams(extra_args={FIELD: spec} if busy else None, **sampling))
        inputs = [{"prompt_token_ids": list(tokens)} for tokens in prompts]
        return list(self.llm.generate(inputs, all_params, use_tqdm=False))

    def take(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Return what the workers kept under each key, layers of all ranks together."""
        found = list(self.llm.collective_rpc("moeworks_take", args=(list(keys),)))
        return [recording.joined([rank[place] for rank in found]) for place in range(len(keys))]

    def state(self) -> list[dict[str, int]]:
        """Return each worker's counts: requests, slots, rows that wait or were dropped."""
        return list(self.llm.collective_rpc("moeworks_state"))

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
        """Write what the routers decided, token by token, to the folder `path`; see `TransformersEngine.record`.

        `batch_size` texts are handed to vLLM at a time, which makes its own batches of them.
        """
        return recording.record(
            self,
            iter(examples),
            Path(path),
            plan=self.effective(plan),
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
        """Continue each prompt; greedy unless `do_sample=True` is given, with temperature, top_p and top_k."""
        examples = [Example(text=prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        requests = list(self.reader.read(iter(examples), room=max_new_tokens, keep_end=True))
        options = sampling_options(generation, seed)
        outputs = self.run(
            [request.tokens for request in requests],
            self.effective(plan),
            max_tokens=max_new_tokens,
            detokenize=False,
            **options,
        )
        results = []
        for request, output in zip(requests, outputs, strict=True):
            tokens = tuple(output.outputs[0].token_ids)
            shown = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
            results.append(Generation(request.content, shown, tokens))
        return results

    def answers(
        self, pairs: Sequence[tuple[str, str]], *, plan: Plan | None = None, batch_size: int = 32
    ) -> list[Answer]:
        """Return how likely each (prompt, answer) pair's answer is after its prompt."""
        return likelihood.answers(self, pairs, self.effective(plan))

    def token_scores(
        self,
        texts: Sequence[str],
        *,
        plan: Plan | None = None,
        divergence: bool = False,
        batch_size: int = 8,
    ) -> Iterator[TokenScores]:
        """Return each text's token log-probabilities under the plan and, if asked, the KL to the plain model."""
        return likelihood.token_scores(self, texts, self.effective(plan), divergence, batch_size)

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def size(self) -> ModelSize:
        """Return how many parameters the checkpoint has, from its configuration and files."""
        return likelihood.size(str(self.config.model_config.model))
