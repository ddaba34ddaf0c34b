"""Finds the tokenizer that a trace was recorded with, without torch, and says which bytes each token stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeworks.errors import BadTrace
from moeworks.view.kept import KEPT

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity

__all__ = ["Decoder", "decoder_for", "decoder_of_file", "decoder_of_tokenizer"]

_FILE = "tokenizer.json"
_SPACE = "\u2581"  # what tokenizers of the SentencePiece kind write for a space


@dataclass(frozen=True, eq=False)  # one is itself, so that it can be part of a key
class Decoder:
    """Turns token ids into text.

    Attributes:
        decode: the text of a sequence of ids, special tokens shown; this is what pieces of text must add up to.
        bytes_of: the bytes that one token stands for, where tokens stand for bytes; None where only `decode` can tell.
        strips: whether a space at the very beginning of a text is dropped.
        reason: why there is no tokenizer; then `decode` is not called, and texts are not shown.
    """

    decode: Callable[[Sequence[int]], str]
    bytes_of: Callable[[int], bytes] | None = None
    strips: bool = False
    reason: str = ""
    known: dict[int, bytes] = field(default_factory=dict)  # what bytes_of said already

    def bytes_at(self, token: int) -> bytes:
        """Return the bytes of a token, remembered."""
        found = self.known.get(token)
        if found is None:
            assert self.bytes_of is not None
            found = self.known[token] = self.bytes_of(token)
        return found


def decoder_for(model: ModelIdentity | None, *, tokenizer: Any = None) -> Decoder:
    """Return the decoder of a model's tokens; one with a `reason` where its tokenizer is not at hand.

    It is looked for in the shipped lab models, in the model's folder and in the local cache of the Hub, never in the
    network. A tokenizer whose hash is not that of the trace is not used: its texts would be others.

    Args:
        model: what the trace says of its model.
        tokenizer: one that is loaded already, for instance an engine's; used if it is the right one.
    """
    if model is None:
        return _without("the trace does not say of which model it is")
    if tokenizer is not None and _hash_of(tokenizer) == model.tokenizer_hash:
        return decoder_of_tokenizer(tokenizer)
    return KEPT.get(("decoder", model.name, model.tokenizer_hash), lambda: _find(model))


def _find(model: ModelIdentity) -> Decoder:
    if model.tokenizer_hash == "bytes":
        from moeworks.engines.fake.tokens import ByteTokenizer

        return decoder_of_tokenizer(ByteTokenizer())
    folder = _folder_of(model.name)
    if folder is None:
        return _without(f"the tokenizer of {model.name} is not on this machine; give its folder with --tokenizer")
    return decoder_of_file(folder, tokenizer_hash=model.tokenizer_hash)


def decoder_of_file(path: str | Path, *, tokenizer_hash: str = "") -> Decoder:
    """Return the decoder of a folder with a tokenizer.json, or of that file.

    Args:
        path: the folder or the file.
        tokenizer_hash: of the trace; another tokenizer gives a decoder with a reason. Empty takes any.
    """
    file = Path(path) / _FILE if Path(path).is_dir() else Path(path)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return _without("showing texts needs tokenizers; install it with: pip install 'moeworks[transformers]'")
    if not file.is_file():
        return _without(f"{file} is not there, and only tokenizers of that form are read")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        return _without(f"{file} cannot be read as a tokenizer ({error})")
    if tokenizer_hash and _hash(backend.to_str(), _template(file.parent)) != tokenizer_hash:
        return _without(f"{file} is not the tokenizer that the trace was recorded with: its hash is another")
    return _of_backend(backend)


def decoder_of_tokenizer(tokenizer: Any) -> Decoder:
    """Return the decoder of a loaded tokenizer: one of transformers, or the fake engine's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _of_backend(backend)
    if hasattr(tokenizer, "get_vocab"):
        return Decoder(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)))
    return Decoder(tokenizer.decode, _one_byte)


def _one_byte(token: int) -> bytes:
    """Return what a token of the fake engine's tokenizer stands for: its byte, or nothing for the closing one."""
    from moeworks.engines.fake.network import END

    if token == END:
        return b""
    if not 0 <= token < 256:
        raise BadTrace(f"token {token} is none of the tokenizer, whose tokens are bytes; the trace is altered.")
    return bytes([token])


def _without(reason: str) -> Decoder:
    def refuse(ids: Sequence[int]) -> str:
        raise AssertionError(f"no tokenizer for {len(ids)} tokens: {reason}")

    return Decoder(refuse, reason=reason)


def _hash(rules: str, template: Any) -> str:
    """Return the hash of a tokenizer as `hash_tokenizer` of the transformers engine makes it."""
    return hashlib.blake2b(f"{rules}\x1e{template}".encode(), digest_size=16).hexdigest()


def _hash_of(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not hasattr(tokenizer, "get_vocab"):
        return "bytes"
    rules = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return _hash(rules, tokenizer.chat_template)


def _template(folder: Path) -> str | None:
    """Return the chat template of a tokenizer's folder."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        pass
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _folder_of(name: str) -> Path | None:
    """Return where a model's tokenizer lies, without asking the network."""
    from moeworks.lab import LAB_MODELS, lab_path

    if name in LAB_MODELS:
        return lab_path(name)
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, _FILE)
    except (ImportError, ValueError):  # ValueError: not a name that the Hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def _of_backend(backend: Any) -> Decoder:
    """Return the decoder of a tokenizer of the package `tokenizers`."""
    rules = json.loads(backend.to_str()).get("decoder") or {}

    def decode(ids: Sequence[int]) -> str:
        return str(backend.decode(list(ids), skip_special_tokens=False))

    steps = rules.get("decoders", [rules]) if rules.get("type") == "Sequence" else [rules]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return Decoder(decode, lambda token: _byte_level(backend.id_to_token(token)))
    spaces = any(
        step.get("type") == "Replace" and step.get("pattern") == {"String": _SPACE} and step.get("content") == " "
        for step in steps
    )
    first = [step for step in steps if step.get("type") == "Strip" and step.get("content") == " "]
    if kinds == ["Metaspace"] and steps[0].get("replacement") == _SPACE:
        strips = steps[0].get("prepend_scheme") != "never"
        return Decoder(decode, lambda token: _sentence_piece(backend.id_to_token(token), False), strips)
    if spaces and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        fallback = "ByteFallback" in kinds
        return Decoder(decode, lambda token: _sentence_piece(backend.id_to_token(token), fallback), bool(first))
    return Decoder(decode)


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Source: `bytes_to_unicode` of GPT-2's encoder: printable bytes stand for themselves, others follow from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


_CHARACTERS = _bytes_of_characters()


def _byte_level(word: str | None) -> bytes:
    """Return the bytes of a word of a byte-level vocabulary; one with another character is text as it stands."""
    if word is None:  # an id that the vocabulary does not have is passed over
        return b""
    try:
        return bytes(_CHARACTERS[character] for character in word)
    except KeyError:
        return word.encode()


def _sentence_piece(word: str | None, fallback: bool) -> bytes:
    if word is None:
        return b""
    if fallback and len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        try:
            return bytes([int(word[3:5], 16)])
        except ValueError:
            pass
    return word.replace(_SPACE, " ").encode()
