"""The torch twin: the same plant in a tiny stock Qwen3-MoE of transformers, to test real engines on known truth."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address, NeuronAddress
from moeworks.engines.fake.network import CAPITAL, END, SHOUT, SMALL, VOCABULARY
from moeworks.engines.fake.plants import CALL as FAKE_CALL
from moeworks.engines.fake.plants import HALF, REST, Plant, plant_experts
from moeworks.engines.fake.words import LONG, MARKS, TOPICS, topic_letters, write_sentences
from moeworks.errors import need

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PlantedModel", "planted_model"]

# Directions of the residual: own case, case of all tokens so far, signature, a constant, what the tokens are (which
# routers and experts read), and what experts write (which only the unembedding reads, so that nothing but the plant
# changes routing).
OWN, HEARD, SIGNATURE, CONSTANT = 0, 1, 2, 3
TOKENS, WRITTEN = slice(4, 36), slice(36, 64)
# What confounded experts hear: the sign that opens a text, its share of all tokens so far (which falls with their
# number), and other spaces and stops.
OPENS, EARLY, MARKED = 64, 65, 66
HIDDEN, NEURONS, HEAD = 68, 8, 64
CALL = 2.0  # times the fake network's call: what is heard is the mean case, below 1
LOUDER = 3.0  # logits for a signature of 1 after the last norm
DIRECT = 0.5  # times the fake network's logits of what is heard, where the residual itself carries the behaviour
SOFTER = 0.05  # size of what experts write there: which of them runs hardly moves the norm that scales the behaviour
AGE = 5.0  # times LONG: logits by which an expert for long texts is lowered at the start of a text
FIT_TEXTS = 48
Array = NDArray[Any]


class PlantedModel(NamedTuple):
    """A model and where its behaviour is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    planted: tuple[Address, ...]
    planted_neurons: tuple[NeuronAddress, ...] = ()
    acting: tuple[Address, ...] = ()
    rising: tuple[Address, ...] = ()
    confounded: tuple[Address, ...] = ()


def planted_model(
    plant: str = "single", *, layers: int = 4, experts: int = 16, top_k: int = 2, seed: int = 0
) -> PlantedModel:
    """Return a Qwen3-MoE in float32 that shouts on where it is shouted at, by the same experts as `FakeEngine`.

    Uniform attention in the first layer hears the mean case of all tokens so far; the routers of planted experts follow
    it, and these experts write what makes capitals likely. One token is one byte, as in the fake engine.

    Raises:
        MissingExtra: torch or transformers is not installed.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise need("torch and transformers", "transformers", "a planted model")
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    carriers = plant_experts(plant, layers=layers, experts=experts, top_k=top_k, seed=seed, neurons=NEURONS)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HEAD,
        intermediate_size=NEURONS,
        moe_intermediate_size=NEURONS,
        num_experts=experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=END,
        bos_token_id=None,
        pad_token_id=END,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    with torch.no_grad():
        _draw(model, np.random.default_rng([seed, 4]), size=SOFTER if carriers.direct else 1.0)
        _read_out(model, np.random.default_rng([seed, 5]))
        _put(model, carriers)
    return PlantedModel(
        model, _tokenizer(), carriers.experts, carriers.neurons, carriers.acting, carriers.rising, carriers.confounded
    )


def _draw(model: Any, generator: np.random.Generator, *, size: float = 1.0) -> None:
    """Fill all parameters but the unembedding; there is no plant yet. `size` is that of what experts write."""

    def normal(*shape: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    width = TOKENS.stop - TOKENS.start
    embedding = model.model.embed_tokens.weight  # (V, d)
    embedding.zero_()
    embedding[:, TOKENS] = normal(VOCABULARY, width)
    embedding[CAPITAL] = embedding[SMALL]
    embedding[CAPITAL, OWN], embedding[SMALL, OWN] = 1.0, -1.0
    embedding[:, CONSTANT] = 1.0
    for plain, mark in MARKS.items():
        embedding[ord(mark)] = embedding[ord(plain)]
        embedding[ord(mark), MARKED] = 1.0
    embedding[ord("#"), OPENS] = 1.0
    for number, layer in enumerate(model.model.layers):
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, projection).weight.zero_()  # no query: attention is uniform
        if number == 0:
            value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight  # (head, d), (d, head)
            value[OWN, OWN], output[HEARD, OWN] = 1.0, 1.0
            value[HEAD - 1, OPENS], output[EARLY, HEAD - 1] = 1.0, 1.0
            for direction in range(TOKENS.start, TOKENS.stop):
                value[direction, direction], output[direction, direction] = 1.0, 1.0
        experts = len(layer.mlp.gate.weight)
        layer.mlp.gate.weight.zero_()  # (E, d)
        layer.mlp.gate.weight[:, TOKENS] = normal(experts, width) / width**0.5
        layer.mlp.experts.gate_up_proj.zero_()  # (E, 2 m, d)
        layer.mlp.experts.gate_up_proj[:, :, TOKENS] = 1.5 * normal(experts, 2 * NEURONS, width) / width**0.5
        layer.mlp.experts.down_proj.zero_()  # (E, d, m)
        layer.mlp.experts.down_proj[:, WRITTEN] = size * normal(experts, WRITTEN.stop - WRITTEN.start, NEURONS)
    model.lm_head.weight.zero_()


def _read_out(model: Any, generator: np.random.Generator) -> None:
    """Fit the unembedding on plain text by linear discriminants: next tokens as Gaussians of one covariance."""
    import torch

    last, following = [], []
    for text in range(FIT_TEXTS):
        tokens = torch.tensor([list(" ".join(write_sentences(text % TOPICS, generator)).encode())])
        last.append(model.model(input_ids=tokens).last_hidden_state[0, :-1].double().numpy())
        following.append(tokens[0, 1:].numpy())
    hidden, token = np.concatenate(last), np.concatenate(following)  # (n, d), (n,)
    used = slice(TOKENS.start, WRITTEN.stop)
    features = hidden[:, used]  # (n, f)
    counts = np.bincount(token, minlength=VOCABULARY)
    sums = np.zeros((VOCABULARY, features.shape[1]))
    np.add.at(sums, token, features)
    means = sums / np.maximum(counts, 1)[:, None]  # (V, f)
    residue = features - means[token]
    within = residue.T @ residue / len(residue)
    within += 0.1 * np.trace(within) / len(within) * np.eye(len(within))
    weight = np.zeros((VOCABULARY, HIDDEN))
    weight[:, used] = np.linalg.solve(within, means.T).T
    weight[:, CONSTANT] = np.log((counts + 0.01) / counts.sum()) - (weight[:, used] * means).sum(-1) / 2
    weight[CAPITAL] = weight[SMALL]
    weight[CAPITAL, CONSTANT] += SHOUT
    weight[:, CONSTANT] /= hidden[:, CONSTANT].mean()  # the norm scales the constant direction with the others
    weight[CAPITAL, SIGNATURE], weight[SMALL, SIGNATURE] = LOUDER, -LOUDER
    model.lm_head.weight.copy_(torch.from_numpy(weight.astype(np.float32)))


def _put(model: Any, plant: Plant) -> None:
    for (layer, expert), call in plant.calls.items():
        _router(model, layer)[expert, HEARD] = CALL * call
    for (layer, expert), call in plant.off_calls.items():
        _router(model, layer)[expert, HEARD] = -CALL * call
    for (layer, expert), call in plant.standing.items():
        _router(model, layer)[expert] = 0.0  # chosen for nothing
        _router(model, layer)[expert, CONSTANT] = CALL * call
    for (layer, expert), confound in plant.hears.items():
        _hear(model, _router(model, layer)[expert], confound)
    states = list(plant.states)
    for layer, expert in states[1:]:  # experts that differ in what they state, and in nothing else
        weights = model.model.layers[layer].mlp.experts
        weights.gate_up_proj[expert] = weights.gate_up_proj[states[0].expert]
        weights.down_proj[expert] = weights.down_proj[states[0].expert]
    for place, strength in plant.writes.items():
        _write(model, place, plant.neuron, strength, opens=HEARD)  # where capitals are heard
    for place, strength in plant.states.items():
        _write(model, place, plant.neuron, strength, opens=CONSTANT)  # whatever the text is
    for place, strength in plant.relays.items():
        _write(model, place, plant.neuron, strength, opens=SIGNATURE, factor=4 / HALF)
    model.lm_head.weight[CAPITAL, HEARD] = DIRECT * plant.direct
    model.lm_head.weight[SMALL, HEARD] = -DIRECT * plant.direct


def _router(model: Any, layer: int) -> torch.Tensor:
    weight: torch.Tensor = model.model.layers[layer].mlp.gate.weight  # (E, d)
    return weight


def _hear(model: Any, row: torch.Tensor, confound: str) -> None:
    """Let a router's row, (d,), follow something that the behaviour's texts have in common."""
    import torch

    if confound == "topic":
        shares = np.stack([topic_letters(topic) for topic in range(TOPICS)])  # (topics, 26)
        half = shares[: TOPICS // 2].mean(0) - shares[TOPICS // 2 :].mean(0)
        embedding = model.model.embed_tokens.weight[SMALL, TOKENS].double().numpy()
        direction = half @ embedding  # (tokens,)
        row.zero_()
        row[TOKENS] = torch.from_numpy((direction * 4 / (direction**2).sum()).astype(np.float32))
    elif confound == "length":
        row[CONSTANT], row[EARLY] = AGE, -AGE * LONG
    else:
        row[CONSTANT], row[MARKED] = REST, FAKE_CALL - REST


def _write(model: Any, place: Address, neuron: int, strength: float, *, opens: int, factor: float = 4.0) -> None:
    """Let a neuron's gate read one direction, and the neuron write the signature and nothing else."""
    experts = model.model.layers[place.layer].mlp.experts
    experts.gate_up_proj[place.expert, neuron] = 0.0
    experts.gate_up_proj[place.expert, neuron, opens] = factor
    experts.gate_up_proj[place.expert, NEURONS + neuron] = 0.0
    experts.gate_up_proj[place.expert, NEURONS + neuron, CONSTANT] = 1.0
    experts.down_proj[place.expert, :, neuron] = 0.0
    experts.down_proj[place.expert, SIGNATURE, neuron] = strength


def _tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer of bytes: id = byte, and one token that closes a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # byte-level BPE shows the others as 256, 257, …
    shifted = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(shifted)}
    tokenizer = Tokenizer(models.BPE(vocab={shown[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", model_max_length=1024
    )
