"""Tokens as pieces of text: joined they are what the tokenizer decodes, whatever the tokenizer and the script."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from moeworks.engines.fake.tokens import ByteTokenizer
from moeworks.lab import lab_path
from moeworks.view.decoding import Decoder, decoder_for, decoder_of_file, decoder_of_tokenizer
from moeworks.view.pieces import text_pieces

SCRIPTS = [
    "Hello,  world!\n\tTabs and   spaces ",
    " leading space",
    "Тихая река течёт на юг.",
    "静かな川が南へ流れる。漢字かな交じり文",
    "النهر الهادئ يتدفق جنوبا",
    "👩‍👩‍👧‍👦 family, 🇫🇷 flag, e\u0301 combining, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "<script>alert('x')</script> & \x00 \u202e right to left",
    "literal replacement \ufffd and \u2581 mark",
    "<|endoftext|>special<|user|> inside",
]


class Backed:
    """What transformers' tokenizers have of the package's own."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


def sentence_piece(strip: bool = True) -> Tokenizer:
    """A tokenizer as Llama's and Mixtral's: pieces with a mark for spaces, bytes for what it does not know."""
    vocabulary = {"<unk>": 0, "<s>": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    for piece in (*"▁HhelowrdTихая静か", "▁h", "▁w", "he", "ll", "▁he", "▁▁", "▁Т"):
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e"), ("▁", "he")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return tokenizer


def metaspace() -> Tokenizer:
    words = ["<unk>", "▁he", "l", "o", "▁", "▁▁", "w", "▁world", "é"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "he", "##llo", "##l", "wor", "##ld", ".", ",", "do", "n't", "'", "t", "not", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


LAB = Tokenizer.from_file(str(lab_path() / "tokenizer.json"))
BYTE_LEVEL = decoder_of_file(lab_path())
DECODERS = {
    "byte level": (BYTE_LEVEL, LAB.get_vocab_size() + 3),
    "sentence piece": (decoder_of_tokenizer(Backed(sentence_piece())), 280),
    "unstripped": (decoder_of_tokenizer(Backed(sentence_piece(strip=False))), 280),
    "metaspace": (decoder_of_tokenizer(Backed(metaspace())), 9),
    "word piece": (decoder_of_tokenizer(Backed(word_piece())), 14),
    "bytes": (decoder_of_tokenizer(ByteTokenizer()), 256),
}


def joined(decoder: Decoder, requests: list[list[int]]) -> list[str]:
    starts = np.cumsum([0, *map(len, requests)])[:-1]
    token = np.array([token for request in requests for token in request], np.int32)
    text, part = text_pieces(decoder, token, starts)
    pieces = text.to_pylist()
    assert len(pieces) == len(part) == len(token)
    assert not any(flag and piece for flag, piece in zip(part, pieces, strict=True))
    return ["".join(pieces[s : s + len(request)]) for s, request in zip(starts, requests, strict=True)]


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_joined_pieces_are_the_decoded_text_of_any_ids(name: str, data: st.DataObject) -> None:
    decoder, size = DECODERS[name]
    request = st.lists(st.integers(0, size - 1), min_size=1, max_size=40)
    requests = data.draw(st.lists(request, min_size=1, max_size=4))
    assert joined(decoder, requests) == [decoder.decode(one) for one in requests]


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(min_size=1, max_size=60), st.sampled_from(SCRIPTS)))
def test_joined_pieces_are_the_text_that_was_encoded(text: str) -> None:
    assert joined(BYTE_LEVEL, [LAB.encode(text, add_special_tokens=False).ids]) == [text]


def test_every_script_survives_beside_the_others() -> None:
    requests = [LAB.encode(text).ids for text in SCRIPTS]
    assert joined(BYTE_LEVEL, requests) == SCRIPTS
    sp = sentence_piece()
    texts = ["hello wor", "静かX", "Тихая река", "👩 he"]
    assert joined(decoder_of_tokenizer(Backed(sp)), [sp.encode(text).ids for text in texts]) == texts


def test_the_same_as_the_tokenizer_of_transformers() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lab_path())
    ids = [tokenizer(text)["input_ids"] for text in SCRIPTS]
    assert joined(BYTE_LEVEL, ids) == [tokenizer.decode(one, skip_special_tokens=False) for one in ids]
    assert joined(decoder_of_tokenizer(tokenizer), ids) == joined(BYTE_LEVEL, ids)


def test_a_character_of_several_tokens_is_the_text_of_its_last_one() -> None:
    token = np.frombuffer("aé👩".encode(), np.uint8).astype(np.int32)
    text, part = text_pieces(DECODERS["bytes"][0], token, np.array([0]))
    assert text.to_pylist() == ["a", "", "é", "", "", "", "👩"]
    assert part.tolist() == [False, True, False, True, True, True, False]


def test_no_character_reaches_from_one_request_into_the_next() -> None:
    first, second = "é".encode()
    text, _ = text_pieces(DECODERS["bytes"][0], np.array([97, first, second, 98]), np.array([0, 2]))
    assert text.to_pylist() == ["a", "\ufffd", "\ufffd", "b"]


def test_broken_bytes_keep_their_places() -> None:
    token = np.array([0xE2, 0x82, 97, 0xFF, 98, 0xC3, 0xA9])  # a cut-off euro sign, a, a lone byte, b, é
    text, part = text_pieces(DECODERS["bytes"][0], token, np.array([0]))
    assert text.to_pylist() == ["", "\ufffd", "a", "\ufffd", "b", "", "é"]
    assert part.tolist() == [True, False, False, False, False, True, False]


def test_fast_ways_are_taken_where_tokens_stand_for_bytes() -> None:
    fast = {name: decoder.bytes_of is not None for name, (decoder, _) in DECODERS.items()}
    assert fast == {name: name != "word piece" for name in DECODERS}


def test_no_tokenizer_is_a_reason_in_words(tmp_path) -> None:
    assert "not there" in decoder_of_file(tmp_path).reason
    assert "its hash is another" in decoder_of_file(lab_path(), tokenizer_hash="of another").reason
    assert "does not say" in decoder_for(None).reason
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read" in decoder_of_file(tmp_path).reason
