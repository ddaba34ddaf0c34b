"""The fake engine: a tiny deterministic mixture of experts with planted ones, behind the calls of a real engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.address import Address, NeuronAddress
from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity, hash_texts
from moeworks.contract import Contract
from moeworks.engines.base import Answer, Generation, ModelSize, TokenScores
from moeworks.engines.fake.gating import opened, widened_pass
from moeworks.engines.fake.network import NEURONS, build_network, layer_values
from moeworks.engines.fake.plants import plant_experts
from moeworks.engines.fake.record import write_batch
from moeworks.engines.fake.run import Model, generate_tokens
from moeworks.engines.fake.tokens import ByteTokenizer
from moeworks.engines.progress import Progress
from moeworks.engines.transformers.tokens import Long, Prepared, Reader
from moeworks.errors import BadData, BadPlan
from moeworks.examples import Example
from moeworks.plan import Plan
from moeworks.plan.compiled import CompiledEdit, compile_plan, widened
from moeworks.plan.files import plan_hash
from moeworks.plan.gate import Gate
from moeworks.plan.guards import check
from moeworks.trace import RouterValues, Trace, TraceHeader, TraceWriter

__all__ = ["FakeEngine"]

Array = NDArray[Any]


class FakeEngine:
    """A model without torch whose truth is known: which experts carry the behaviour, and that no other does.

    The behaviour is shouting: where the last letters are capitals, planted experts are called, and they make capitals
    more likely. Capitals and small letters are the same to everything else in the model.

    Args:
        plant: one of `PLANTS`: `single` (one expert), `spread` (over five), `pair` (two that must act together),
            `neurons` (inside an expert that runs on both sides alike), `routing` (only which expert runs differs),
            `residual` (no expert at all), `topic`, `length` and `token` (no expert either, and routing follows
            something else that the texts of `plant_probe` have in common with the behaviour), or `none`.
        contract: the rule of all routers; by default softmax, the top 2, renormalised.
        layers: number of layers.
        experts: number of experts a layer, where no contract is given.
        seed: of all parameters and of the places of the plant; models that differ in the plant only share the rest.
        context: longest text in bytes.

    Attributes:
        planted: the experts that carry the behaviour: turning them down turns it down.
        planted_neurons: the neurons of theirs that write it.
        acting: those of the planted that write it where it is on.
        rising: those of the planted that run more where the behaviour is on, which a score of routing can find.
        confounded: experts that run more on the contrast side of the plant's probe and carry nothing.
    """

    def __init__(
        self,
        plant: str = "single",
        *,
        contract: Contract | None = None,
        layers: int = 4,
        experts: int = 16,
        seed: int = 0,
        context: int = 1024,
    ) -> None:
        rule = contract or Contract(experts=experts, top_k=2, renormalise=True)
        planted = plant_experts(plant, layers=layers, experts=rule.experts, top_k=rule.top_k, seed=seed)
        self.planted: tuple[Address, ...] = planted.experts
        self.planted_neurons: tuple[NeuronAddress, ...] = planted.neurons
        self.acting: tuple[Address, ...] = planted.acting
        self.rising: tuple[Address, ...] = planted.rising
        self.confounded: tuple[Address, ...] = planted.confounded
        self.context = context
        self.tokenizer = ByteTokenizer()
        self._model = Model(build_network(planted, rule, layers=layers, seed=seed), rule)
        self._reader = Reader(self.tokenizer, context, add_bos=False)
        self._steering: Plan | None = None
        self._edits: list[CompiledEdit] = []
        self.engine = EngineIdentity(name="fake", version=__version__, dtype="float64")
        self.identity = ModelIdentity(
            name=f"fake:{plant}",
            family="fake",
            weight_hash=_weight_hash(self._model),
            tokenizer_hash="bytes",
            layers=tuple(
                LayerShape(layer=layer, experts=rule.experts, top_k=rule.top_k, contract=rule, neurons=NEURONS)
                for layer in range(layers)
            ),
        )

    def _router_values(self) -> Iterator[RouterValues | None]:
        for shape in self.identity.layers:
            held = layer_values(self._model.network, self._model.contract, shape.layer)
            yield RouterValues.of(shape.layer, held["bias"], held["expert_scale"])

    def tokens(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def remembering(self) -> AbstractContextManager[None]:
        """Do nothing: predictions cost so little here that none are kept."""
        return nullcontext()

    def size(self) -> ModelSize:
        """Return how many parameters the model has, how many of them in experts, and their bytes."""
        arrays = self._model.network.arrays()
        experts = arrays["up"].size + arrays["down"].size
        return ModelSize(sum(a.size for a in arrays.values()), experts, sum(a.nbytes for a in arrays.values()))

    @contextmanager
    def steered(self, plan: Plan | None) -> Iterator[None]:
        """Apply a plan to everything that runs inside the `with` block; None and an empty plan do nothing.

        Raises:
            BadPlan: the plan does not fit this model, or another one is applied already.
        """
        before = self._steering, self._edits
        self._edits = self._edits_with(plan)
        self._steering = plan or self._steering
        try:
            yield
        finally:
            self._steering, self._edits = before

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
        """Write what the routers decided, token by token, to the folder `path`; see `TransformersEngine.record`."""
        applied = plan or self._steering
        edits, gate = self._with_gate(plan)
        temperature = _temperature(generation)
        slots = {shape.layer: shape.top_k for shape in widened(self.identity, edits).layers}
        settings = {"long": long, "generate": generate, "plan": plan_hash(applied) if applied else "", **generation}
        header = TraceHeader(
            moeworks=__version__,
            model=widened(self.identity, edits),
            engine=self.engine,
            command=command,
            seed=seed,
            settings=settings,
            values=tuple(v for v in self._router_values() if v is not None),
        )
        prepared = self._reader.read(iter(examples), long=long, room=generate, keep_end=generate > 0)
        with (
            TraceWriter(path, header, logits=logits, sample=sample, resume=resume, overwrite=overwrite) as writer,
            Progress("recording", "texts", total=total, rated="tokens", show=progress) as bar,
        ):
            new = (request for request in prepared if not writer.skip(request.number, hash_texts([request.content])))
            for batch in in_batches(new, batch_size):
                for applied_edits, part in self._runs(edits, gate, batch):
                    passes = (
                        generate_tokens(
                            self._model,
                            part,
                            applied_edits,
                            max_new_tokens=generate,
                            temperature=temperature,
                            seed=seed,
                        )[1]
                        if generate
                        else [self._model.read(part, applied_edits)]
                    )
                    passes = [widened_pass(one, slots) for one in passes]
                    tokens = write_batch(writer, part, passes, logits=logits, keep_text=keep_text)
                    bar.advance(len(part), rated=tokens)
        return Trace.open(path)

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
        """Continue each prompt; greedy unless `do_sample=True` is given, which takes a `temperature`."""
        examples = [Example(text=prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        prepared = self._reader.read(iter(examples), room=max_new_tokens, keep_end=True)
        results: dict[int, Generation] = {}
        (whole, gate), temperature = self._with_gate(plan), _temperature(generation)
        for batch in in_batches(prepared, batch_size):
            for edits, part in self._runs(whole, gate, batch):
                new, _ = generate_tokens(
                    self._model, part, edits, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
                )
                for request, tokens in zip(part, new, strict=True):
                    prompt = self.tokenizer.decode(request.tokens)
                    results[request.number] = Generation(prompt, self.tokenizer.decode(tokens), tuple(tokens))
        return [results[number] for number in sorted(results)]

    def answers(
        self, pairs: Sequence[tuple[str, str]], *, plan: Plan | None = None, batch_size: int = 32
    ) -> list[Answer]:
        """Return how likely each (prompt, answer) pair's answer is after its prompt.

        An answer is exact if greedy decoding gives it and then goes on with neither a letter nor a digit.

        Raises:
            BadData: a prompt or an answer is empty, or a pair is longer than the context.
        """
        for number, (prompt, answer) in enumerate(pairs, 1):
            if not prompt or not answer:
                raise BadData(f"pair {number} has an empty {'answer' if prompt else 'prompt'}; both are needed.")
        examples = (Example(text=prompt, answer=answer) for prompt, answer in pairs)
        results: dict[int, Answer] = {}
        whole, gate = self._with_gate(plan)
        for batch in in_batches(self._reader.read(examples, long="error"), batch_size):
            for edits, part in self._runs(whole, gate, batch):
                predictions = self._model.read(part, edits).log_probabilities
                for request, rows in zip(part, _split(predictions, part), strict=True):
                    expected = np.asarray(request.tokens[request.prompt_tokens :])
                    before = rows[request.prompt_tokens - 1 : -1]  # (answer, V)
                    likely = before[np.arange(len(expected)), expected]
                    exact = bool((before.argmax(-1) == expected).all()) and not _goes_on(int(rows[-1].argmax()))
                    results[request.number] = Answer(float(likely.sum()), len(expected), exact)
        return [results[number] for number in sorted(results)]

    def token_scores(
        self,
        texts: Sequence[str],
        *,
        plan: Plan | None = None,
        divergence: bool = False,
        batch_size: int = 8,
    ) -> Iterator[TokenScores]:
        """Yield each text's token log-probabilities and, if asked, the KL to the model without any plan.

        Texts longer than the context are cut.

        Raises:
            BadData: a text is shorter than two tokens.
        """
        for number, text in enumerate(texts, 1):
            if len(text.encode()) < 2:
                raise BadData(f"text {number} has fewer than two tokens, so that none can be scored.")
        return self._scores(texts, *self._with_gate(plan), divergence, batch_size)

    def _scores(
        self,
        texts: Sequence[str],
        whole: Sequence[CompiledEdit],
        gate: Gate | None,
        divergence: bool,
        batch_size: int,
    ) -> Iterator[TokenScores]:
        read = self._reader.read(Example(text=text) for text in texts)
        for batch in in_batches(read, batch_size):
            found = {
                request.number: scores
                for edits, part in self._runs(whole, gate, batch)
                for request, scores in self._scores_of(part, edits, divergence)
            }
            yield from (found[request.number] for request in batch)

    def _scores_of(
        self, batch: Sequence[Prepared], edits: Sequence[CompiledEdit], divergence: bool
    ) -> Iterator[tuple[Prepared, TokenScores]]:
        steered = self._model.read(batch, edits).log_probabilities
        plain = self._model.read(batch, ()).log_probabilities if divergence else steered
        kl = (np.exp(plain) * (plain - steered)).sum(-1)  # (n,)
        for request, rows, distances in zip(batch, _split(steered, batch), _split(kl, batch), strict=True):
            following = np.asarray(request.tokens[1:])
            likely = rows[np.arange(len(following)), following]
            yield request, TokenScores(likely, distances[:-1] if divergence else None)

    def applies(self, plan: Plan, prompts: Sequence[str | Example]) -> NDArray[np.bool_]:
        """Return to which prompts a plan applies, (prompts,): where its gate opens, or all of them."""
        examples = [Example(text=prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        if plan.gate is None:
            return np.ones(len(examples), bool)
        check(plan, self.identity)
        return opened(self._model, plan.gate, list(self._reader.read(iter(examples))))

    def _with_gate(self, plan: Plan | None) -> tuple[list[CompiledEdit], Gate | None]:
        """Return the edits of this plan, or else of the `with` block around, and the gate that stands before them."""
        applied = plan or self._steering
        return self._edits_with(plan), None if applied is None else applied.gate

    def _runs(
        self, edits: Sequence[CompiledEdit], gate: Gate | None, batch: Sequence[Prepared]
    ) -> Iterator[tuple[Sequence[CompiledEdit], Sequence[Prepared]]]:
        """Yield the parts of a batch that run alike, each with its edits: a gate parts it in two.

        Arithmetic is exact here, so that no request knows what else is in its batch.
        """
        if gate is None:
            yield edits, batch
            return
        taken = opened(self._model, gate, batch)
        for mine, where in ((edits, taken), ((), ~taken)):
            part = [request for request, inside in zip(batch, where, strict=True) if inside]
            if part:
                yield mine, part

    def _edits_with(self, plan: Plan | None) -> list[CompiledEdit]:
        """Return the edits of this plan, or else of the `with` block around."""
        if plan is None or plan is self._steering:
            return self._edits
        if self._steering is not None:
            raise BadPlan("a plan is applied already; leave its `with` block first, or compose the two plans.")
        check(plan, self.identity)
        return compile_plan(plan, self.identity)


def in_batches(prepared: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield lists of `size` requests, the last perhaps shorter."""
    if size < 1:
        raise BadData(f"a batch of {size} texts is not possible; batch_size is 1 or more.")
    while batch := list(islice(prepared, size)):
        yield batch


def _split(rows: Array, batch: Sequence[Prepared]) -> list[Array]:
    return np.split(rows, np.cumsum([len(request.tokens) for request in batch])[:-1])


def _temperature(generation: dict[str, Any]) -> float:
    unknown = generation.keys() - {"do_sample", "temperature"}
    if unknown:
        raise BadData(f"the fake engine generates with do_sample and temperature, not {', '.join(sorted(unknown))}.")
    return float(generation.get("temperature", 1.0)) if generation.get("do_sample", False) else 0.0


def _goes_on(token: int) -> bool:
    return token < 128 and chr(token).isalnum()


def _weight_hash(model: Model) -> str:
    digest = hashlib.blake2b(repr(sorted(asdict(model.contract).items())).encode(), digest_size=16)
    for name, array in sorted(model.network.arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
