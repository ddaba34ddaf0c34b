"""Tunes the routers of an edited model, and nothing else, on text: towards the original, or on the next token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from moeworks import __version__
from moeworks.artefact import ModelIdentity, hash_texts
from moeworks.edit.compare import compare_requests
from moeworks.edit.comparison import ALL, Comparison
from moeworks.edit.sides import Side, side_of
from moeworks.engines.transformers.loading import hash_weights
from moeworks.errors import BadData, Unsupported
from moeworks.train.batches import TrainingBatch, in_order, read_requests, split_documents, training_batch
from moeworks.train.engine import opened
from moeworks.train.loop import Optimisation, fit
from moeworks.train.losses import next_token_loss, token_log_probabilities
from moeworks.train.measure import language_logits
from moeworks.train.memory import announce as on_standard_error
from moeworks.train.memory import estimate
from moeworks.train.save import check_output, save_model, whole_folder
from moeworks.train.slices import Part, Trained, router_parts
from moeworks.train.state import State, load_state, save_state, state_path
from moeworks.train.texts import Data, examples_of

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tokens import Prepared

__all__ = ["REPORT", "RepairReport", "distillation_loss", "repair"]

REPORT = "repair.json"
_BEST = "best."


class RepairReport(BaseModel):
    """What the tuning did, on texts that neither trained nor stopped it."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format: Literal["moeworks.repair"] = "moeworks.repair"
    version: Literal[1] = 1
    moeworks: str
    model: ModelIdentity = Field(description="the edited model, before")
    teacher: ModelIdentity | None = None
    command: str = ""
    seed: int
    text_hash: str
    settings: dict[str, Any]
    trained: tuple[str, ...] = Field(description="parameters that were tuned")
    numbers: int = Field(description="how many numbers these are")
    steps: int = Field(description="steps that were done")
    best_step: int = Field(description="step whose loss on dev texts was lowest; 0: none was better than the start")
    dev: dict[int, float] = Field(description="loss on dev texts after so many steps")
    held_out: Comparison = Field(description="the repaired model against the edited one")
    to_teacher: tuple[Comparison, Comparison] | None = Field(
        None, description="the edited and the repaired model against the original"
    )
    history: tuple[dict[str, float], ...] = ()
    weight_hash: str = Field("", description="of the repaired model")

    def words(self) -> str:
        """Return it as lines for people."""
        total = self.held_out.perplexity[ALL]
        if not self.best_step:
            return (
                f"After {self.steps} steps none was better on dev texts than the model as it was; it stays as it was."
            )
        lines = [
            f"Routers tuned for {self.best_step} of {self.steps} steps, {self.numbers} numbers; dev chose the step.",
            f"  held-out perplexity {total.before:.4g} -> {total.after:.4g}, times {total.ratio.value:.4g} "
            f"[{total.ratio.low:.4g}, {total.ratio.high:.4g}]",
        ]
        if self.to_teacher is not None:
            edited, repaired = self.to_teacher
            original = edited.perplexity[ALL]
            lines += [
                f"  KL to the original {edited.divergence.value:.4g} -> {repaired.divergence.value:.4g} nats a token",
                f"  perplexity of the original {original.before:.4g}",
            ]
        return "\n".join(lines)


def repair(
    model: str | Engine,
    data: Data,
    *,
    output: str | Path | None = None,
    teacher: str | Engine | None = None,
    steps: int = 200,
    learning_rate: float = 1e-3,
    batch_size: int = 4,
    max_tokens: int | None = None,
    check_every: int = 20,
    patience: int = 3,
    dev: float = 0.15,
    held_out: float = 0.2,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    announce: Callable[[str], None] = on_standard_error,
    command: str = "",
) -> RepairReport:
    """Tune all routers of an edited model by AdamW until dev texts stop improving; no other number moves.

    With a teacher, the original, the loss is the mean KL(original || edited) over tokens, else that of the next token.
    Selection biases take no gradient and stay. The step with the lowest loss on dev texts is kept, and what is reported
    is measured on held-out texts; documents are never shared between the three. Deterministic given the seed, on one
    machine with one number of threads. Router-only tuning after a cut is common practice, its settings here are ours.

    Args:
        model: the edited model: a folder, or an engine, which keeps what was learnt.
        data: texts, or their source (see `read_examples`); of a probe, those of its contrast side.
        output: folder for the repaired model; it is only written if some step was better than the start.
        teacher: the original.
        steps: at most so many.
        learning_rate: of AdamW, constant.
        batch_size: texts a step.
        max_tokens: texts are cut to so many.
        check_every: steps between two looks at the dev texts, and between two checkpoints beside the output.
        patience: so many looks without a better loss end it.
        dev, held_out: shares of the documents.
        seed: of the splits and of the order of texts.
        resume: go on with an unfinished run of the same options.
        overwrite: replace an earlier output.
        progress: show a bar on standard error.
        announce: gets the sentence on memory before training starts.
        command: how this was called, for the report.

    Raises:
        BadData: texts, teacher or options that cannot be used.
        Unsupported: no router has a parameter that could be trained.
        RunFailed: the loss is not finite any more.
    """
    if check_every < 1 or patience < 1 or batch_size < 1:
        raise BadData("steps between looks, patience and batch size must be at least 1.")
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output(folder, mark=REPORT, overwrite=overwrite)
    source = Path(model).expanduser() if isinstance(model, str) and Path(model).expanduser().is_dir() else None
    engine = opened(model, "repairing routers")
    original = None if teacher is None else opened(teacher, "a teacher")
    if original is not None and original.identity.tokenizer_hash != engine.identity.tokenizer_hash:
        raise BadData("teacher and edited model have different tokenizers; give the model that the edit was made from.")
    examples = list(examples_of(engine, data, "contrast"))
    requests = read_requests(engine, examples, name="repair", max_tokens=max_tokens)
    rest, measured = _split(requests, held_out, seed)
    training, watched = _split(rest, dev, seed + 1)
    trained = Trained(engine.model, _router_parts(engine))
    optimisation = Optimisation(steps=steps, learning_rate=learning_rate)
    options = {
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_tokens": max_tokens,
        "check_every": check_every,
        "patience": patience,
        "dev": dev,
        "held_out": held_out,
        "loss": "next_token" if original is None else "distillation",
    }
    text_hash = hash_texts(request.content for request in requests)
    taught = "" if original is None else original.identity.weight_hash
    settings = _hash([options, engine.identity.weight_hash, taught, text_hash, seed])
    state = None if folder is None else state_path(folder)
    resumed = load_state(state, settings) if resume and state is not None else None
    if state is not None and state.is_file() and not (resume or overwrite):
        raise BadData(f"an unfinished run lies in {state}; go on with resume (--resume), or remove it.")
    longest = max(len(request.tokens) for request in training)
    memory = estimate(
        engine, trained, tokens=batch_size * longest, width=longest, memories=optimisation.memories, from_layer=0
    )
    announce(memory.words("Tuning the routers"))
    watch = _Watch(engine, original, trained, watched, batch_size, check_every, patience)
    if resumed is not None:
        watch.fill(resumed)

    def step(number: int) -> dict[str, float]:
        if number % check_every == 0:
            watch.look(number)
        batch = training_batch(engine, in_order(training, number, batch_size, seed=seed))
        loss = _loss(engine, original, batch)
        trained.accumulate(loss)
        return {"loss": float(loss.detach())}

    def save(done: int, history: list[dict[str, float]], tensors: dict[str, Tensor]) -> None:
        watch.history = list(history)
        if state is not None:
            save_state(state, State(settings, "repair", done, history, watch.carried(), tensors | watch.tensors()))

    history: Sequence[dict[str, float]] = []
    kept = False
    try:
        with engine.session(None, record=False, plain=True):
            try:
                history = fit(
                    trained,
                    step,
                    optimisation,
                    what="tuning routers",
                    resumed=None if resumed is None else resumed._replace(tensors=_own(resumed.tensors)),
                    save=save,
                    save_every=check_every,
                    progress=progress,
                )
                watch.look(steps)
            except _Enough:
                history = watch.history
        watch.keep_best()
        report = RepairReport(
            moeworks=__version__,
            model=engine.identity,
            teacher=None if original is None else original.identity,
            command=command,
            seed=seed,
            text_hash=text_hash,
            settings=options,
            trained=tuple(part.name for part in trained.parts),
            numbers=trained.numbers,
            steps=max(watch.losses),
            best_step=watch.best_step,
            dev=watch.losses,
            history=tuple(history),
            weight_hash=hash_weights(engine.model),
            **_measured(engine, original, trained, measured, batch_size, seed),
        )
        if folder is not None and report.best_step:
            with whole_folder(folder) as temporary:
                save_model(engine, temporary)
                if source is not None:
                    _take_along(source, temporary)
                (temporary / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        kept = True
    finally:
        if not kept:
            trained.restore()
    if state is not None:
        state.unlink(missing_ok=True)
    return report


def distillation_loss(teacher: Tensor, student: Tensor, counted: Tensor) -> Tensor:
    """Return the mean KL(teacher || student) over the counted tokens, for logits (b, w, V), counted (b, w - 1)."""
    log_p = teacher[:, :-1][counted].float().log_softmax(-1)  # (n, V)
    log_q = student[:, :-1][counted].float().log_softmax(-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()


class _Enough(Exception):
    """Ends the loop when dev texts have not improved for long enough."""


class _Watch:
    """Looks at the dev texts now and then, and keeps the router that was best on them."""

    def __init__(
        self,
        engine: TransformersEngine,
        teacher: TransformersEngine | None,
        trained: Trained,
        requests: Sequence[Prepared],
        batch_size: int,
        every: int,
        patience: int,
    ) -> None:
        self._engine, self._teacher, self._trained = engine, teacher, trained
        self._requests, self._batch_size = requests, batch_size
        self._every, self._patience = every, patience
        self.losses: dict[int, float] = {}  # steps done → loss
        self.history: list[dict[str, float]] = []
        self._best: list[Tensor] = []

    @property
    def best_step(self) -> int:
        """Steps after which the loss was lowest; the earliest of equals."""
        return min(self.losses, key=lambda step: (self.losses[step], step))

    def look(self, done: int) -> None:
        """Measure after so many steps; stop the training if it has not got better for too long."""
        if done in self.losses:
            return
        total = tokens = 0.0
        with torch.no_grad():
            for start in range(0, len(self._requests), self._batch_size):
                batch = training_batch(self._engine, self._requests[start : start + self._batch_size])
                count = int(batch.counted.sum())
                total += float(_loss(self._engine, self._teacher, batch)) * count
                tokens += count
        self.losses[done] = total / tokens
        if self.best_step == done:
            self._best = [leaf.detach().clone() for leaf in self._trained.leaves]
        elif done - self.best_step >= self._patience * self._every:
            raise _Enough

    @torch.no_grad()
    def keep_best(self) -> None:
        """Put the best router into the model; the original values, to the bit, if nothing was better."""
        for leaf, best in zip(self._trained.leaves, self._best, strict=True):
            leaf.copy_(best)
        if self.best_step:
            self._trained.write()
        else:
            self._trained.restore()

    def carried(self) -> dict[str, Any]:
        return {"losses": {str(step): loss for step, loss in self.losses.items()}}

    def tensors(self) -> dict[str, Tensor]:
        return {f"{_BEST}{place}": best for place, best in enumerate(self._best)}

    def fill(self, state: State) -> None:
        """Take up what a state holds."""
        self.losses = {int(step): loss for step, loss in state.carried["losses"].items()}
        self.history = list(state.history)
        names = [f"{_BEST}{place}" for place in range(len(self._trained.leaves))]
        self._best = [
            state.tensors[name].to(leaf.device) for name, leaf in zip(names, self._trained.leaves, strict=True)
        ]


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the loop itself has kept."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_BEST)}


def _loss(engine: TransformersEngine, teacher: TransformersEngine | None, batch: TrainingBatch) -> Tensor:
    logits = language_logits(engine, batch)
    if teacher is None:
        return next_token_loss(token_log_probabilities(logits, batch.inputs["input_ids"]), batch.counted)
    with torch.no_grad():
        inputs = {name: tensor.to(teacher.model.device) for name, tensor in batch.inputs.items()}
        given = language_logits(teacher, batch._replace(inputs=inputs)).to(logits.device)
    if given.shape != logits.shape:
        raise BadData(f"the teacher has {given.shape[-1]} tokens, the edited model {logits.shape[-1]}.")
    return distillation_loss(given, logits, batch.counted)


def _router_parts(engine: TransformersEngine) -> list[Part]:
    parts, reasons = list[Part](), list[str]()
    for router in engine.routers:
        try:
            parts += router_parts(router)
        except Unsupported as error:  # a layer that routes by token id has nothing to tune
            reasons.append(str(error))
    if not parts:
        raise Unsupported(f"no router of this model can be tuned: {reasons[0]}")
    return parts


def _split(requests: Sequence[Prepared], share: float, seed: int) -> tuple[list[Prepared], list[Prepared]]:
    texts = split_documents(requests, share=share, seed=seed, name="repair")
    return texts.training, texts.held_out


def _measured(
    engine: TransformersEngine,
    teacher: TransformersEngine | None,
    trained: Trained,
    requests: Sequence[Prepared],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Compare on held-out texts: with the model before, and both with the teacher."""
    before, after = Side(engine, "the edited model", trained.undone), Side(engine, "the repaired model")
    (held_out,) = compare_requests(before, [after], requests, batch_size=batch_size, seed=seed)
    if teacher is None:
        return {"held_out": held_out}
    pair = compare_requests(side_of(teacher), [before, after], requests, batch_size=batch_size, seed=seed)
    return {"held_out": held_out, "to_teacher": tuple(pair)}


def _take_along(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer and cards of the edited folder as they are: only weights have changed.

    What transformers writes of a configuration may lack keys that older versions read.
    """
    import shutil

    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name != REPORT:
            shutil.copyfile(path, target / path.name)


def _hash(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
