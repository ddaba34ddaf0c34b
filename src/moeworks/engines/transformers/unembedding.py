"""How a model reads its last residual: final norm, then one row of the vocabulary a token; found by what it does.

Letters in shapes: n tokens, H wide, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeworks.errors import Unsupported

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["TopTokens", "Unembedding", "unembedding_of"]

_CHUNK_BYTES = 256 << 20
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class TopTokens:
    """The tokens that some vectors point to most."""

    tokens: Tensor  # (vectors, top) token ids, the strongest first
    scores: Tensor  # (vectors, top) their logits above the mean over the vocabulary, float32


@dataclass(frozen=True, eq=False)
class Unembedding:
    """logits = factor · rows @ (gain · x · rsqrt(mean(x²) + eps) + shift); a LayerNorm takes the mean off x first.

    `capped` says that the model squashes its logits after that (Gemma); what is said here is then before the squashing.
    """

    rows: Tensor  # (V, H) float32, a copy where the model's own are not: half precision would tie the tokens
    norm: nn.Module
    gain: Tensor  # (H,) float32
    shift: Tensor  # (H,) float32, 0 in most models
    eps: float
    centred: bool  # a LayerNorm
    factor: float
    capped: bool

    def written(self, vectors: Tensor) -> Tensor:
        """Return vectors of the residual as the rows see them, but for the norm's scale: float32, (…, H)."""
        vectors = vectors.float()
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * self.gain.to(vectors.device)

    def scale(self, residual: Tensor) -> Tensor:
        """Return what the norm multiplies with at a residual, (…, H) -> (…,) float32."""
        residual = residual.float()
        if self.centred:
            residual = residual - residual.mean(-1, keepdim=True)
        return torch.rsqrt(residual.pow(2).mean(-1) + self.eps)

    def logits(self, directions: Tensor) -> Tensor:
        """Return factor · rows @ directions, (…, V) float32."""
        return self.factor * (directions.to(self.rows) @ self.rows.T).float()

    def top_tokens(self, directions: Tensor, top: int, *, sign: int = 1) -> TopTokens:
        """Return the tokens whose rows, less their mean over the vocabulary, point most along some directions.

        Args:
            directions: (vectors, H), as the rows see them: see `written`.
            top: tokens for each.
            sign: -1 for those that point most against it.
        """
        tokens, scores = [], []
        for part in torch.split(directions, max(1, _CHUNK_BYTES // (4 * len(self.rows)))):
            logits = self.logits(part)  # (part, V)
            logits -= logits.mean(-1, keepdim=True)  # the same as centring the rows
            best = (sign * logits).topk(min(top, len(self.rows)), -1)
            tokens.append(best.indices)
            scores.append(sign * best.values)
        return TopTokens(torch.cat(tokens), torch.cat(scores))


def unembedding_of(engine: TransformersEngine) -> Unembedding:
    """Return how a model reads its last residual, as seen in one short forward pass and checked in it.

    Raises:
        Unsupported: another engine, no unembedding, or something else than one norm stands before it.
    """
    model: Any = getattr(engine, "model", None)
    if model is None:
        raise Unsupported(f"the {engine.engine.name} engine has no unembedding to read; take the transformers engine.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise Unsupported("models with an encoder are not read: their decoder needs a text to answer.")
    head = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor) or getattr(head, "bias", None) is not None:
        raise Unsupported("the model's unembedding is no plain matrix, so that no direction can be read with it.")
    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower() and not list(m.children())]
    outputs: dict[int, Tensor] = {}
    seen: list[Tensor] = []
    handles = [norm.register_forward_hook(_keep(outputs, index)) for index, norm in enumerate(norms)]
    handles.append(head.register_forward_hook(lambda module, args, output: seen.extend((args[0], output))))
    tokens = torch.arange(1, 5, device=model.device)[None] % len(head.weight)
    try:
        with torch.inference_mode():
            logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise Unsupported("the model does not call its unembedding as a module.")
    given, raw = seen
    found = [index for index, output in outputs.items() if output.shape == given.shape and torch.equal(output, given)]
    if not found:
        raise Unsupported("something else than a single norm stands before the unembedding of this model.")
    gain, shift, eps, centred = _rule_of(norms[found[-1]], head.weight)
    factor, capped = _factor(raw.float(), logits.float())
    return Unembedding(head.weight.detach().float(), norms[found[-1]], gain, shift, eps, centred, factor, capped)


def _keep(outputs: dict[int, Tensor], index: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.pop(index, None)  # the latest comes last
            outputs[index] = output

    return hook


def _rule_of(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor, float, bool]:
    """Return (gain, shift, eps, centred) of a norm, read off from what it does and checked on random vectors."""
    width = like.shape[1]
    eps = next((float(getattr(norm, n)) for n in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, n)), None)
    if eps is None:
        raise Unsupported(f"the norm before the unembedding, {type(norm).__name__}, shows no epsilon.")
    signs = torch.ones(width, device=like.device)
    signs[1::2] = -1
    if width % 2:
        raise Unsupported(f"a residual of odd width {width} is not read.")
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(16, width, generator=generator).to(like) * 3 + 1
    with torch.inference_mode():
        plus, minus = (norm((s * signs).to(like)[None])[0].float() for s in (1, -1))
        shift = (plus + minus) / 2
        gain = (plus - minus) / 2 * signs * (1 + eps) ** 0.5
        own = norm(random).float()
        for centred in (False, True):
            x = random.float()
            x = x - x.mean(-1, keepdim=True) if centred else x
            ours = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain + shift
            if (ours - own).abs().max() <= _TOLERANCE.get(like.dtype, 4e-2) * own.abs().max():
                return gain.clone(), shift.clone(), eps, centred
    raise Unsupported(
        f"the norm before the unembedding, {type(norm).__name__}, is neither an RMS norm nor a layer norm."
    )


def _factor(raw: Tensor, logits: Tensor) -> tuple[float, bool]:
    """Return by which factor logits differ from what the unembedding gave, and whether they are squashed as well."""
    raw = raw[:, -logits.shape[1] :]
    factor = float((raw * logits).sum() / raw.pow(2).sum())
    close = (factor * raw - logits).abs().max() <= 1e-2 * logits.abs().max()
    return (factor, False) if close else (1.0, True)
