"""What each diagnostic's picture asks and how it is read, in words for somebody who has read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["HOW_TO_READ", "WORDS", "Words", "words_of"]

HOW_TO_READ = (
    "Across goes the layer of the model, first to last, unless an axis says otherwise. A line is the number, the band "
    "around it (or the bar through a dot) its 95 % interval when documents are drawn again, and dotted is the level "
    "that chance gives. What lies on its dotted line says nothing about the model. In maps, dark is large, and a map "
    "“by chance” has the colours of the map beside it, so that equal shades are equal numbers."
)


class Words(NamedTuple):
    """A question, and how the picture answers it."""

    question: str
    how: str


WORDS: Mapping[str, Words] = {
    "sanity": Words(
        "Is the trace sound?",
        "A tick where a check passes, a cross where it fails, a dash where the trace cannot tell. Numbers below are "
        "only shown because no check failed that would make them wrong.",
    ),
    "balance": Words(
        "How uneven is the load?",
        "Left: how much more than the average expert the busiest one runs; 0 is even, 1 is twice the average. "
        "Batches of neighbouring tokens are what a server sees and are always less even than all tokens together. "
        "Middle: entropy near 1 and Gini near 0 are even. Right: how much of all work the busiest 1, 5 and 10 % of "
        "experts do; dotted is that share of the experts.",
    ),
    "drops": Words(
        "What would a capacity limit drop?",
        "Simulated: share of an expert's work that falls away if each expert takes at most so many times its even "
        "share of a batch. The model itself drops nothing.",
    ),
    "confidence": Words(
        "Do routers know what they want?",
        "Left: entropy near 1 means that a router cannot tell experts apart; the probability of the chosen experts "
        "and the largest weight say how firmly it chooses. Middle: tokens whose choice hangs on so little that "
        "rounding, another batch or quantisation may turn it. Right: the size of the logits; layers far above the "
        "others drifted in training.",
    ),
    "specialisation": Words(
        "Do experts have subjects?",
        "Left: share of a value's work that goes to other experts than in general. Middle: the same when documents "
        "change their values at random; only what is darker on the left is real. Right: the number of the most "
        "specialised expert, shaded by how much more it runs there than elsewhere.",
    ),
    "vocabulary_specialisation": Words(
        "Do experts belong to single tokens?",
        "Left: how often the same token id meets the same expert; right: share of ids for which no shuffling of "
        "tokens within texts explains that. High in first layers means that the token itself, not its context, "
        "decides.",
    ),
    "token_dependence": Words(
        "Can experts be foretold from the token alone?",
        "Left: hit rate of guessing a token's experts from its id, learned on other documents. Right: how much of "
        "the uncertainty about the experts the id removes (1 is all of it).",
    ),
    "token_overlap": Words(
        "Do equal tokens go to equal experts?",
        "Overlap of the experts of two tokens with the same id, and of two with different ids. The gap between the "
        "lines is what the token decides; the rest is context.",
    ),
    "position_specialisation": Words(
        "Do experts belong to places in the text?",
        "Left: share of the work at these positions that goes to other experts than in general. Usually only the "
        "first token is special.",
    ),
    "committee": Words(
        "Is there a standing committee?",
        "Left: share of the weight that a few top experts of each value take. Right: how alike the tops of two "
        "values are; near 1, the same experts rule everywhere, and dotted is the level with labels exchanged "
        "between documents.",
    ),
    "anomalies": Words(
        "Does any value have experts of its own?",
        "Left: share of a value's weight on experts that it uses at least half as much again as an even split over "
        "values; low where a value lives on what serves all. Middle: the same with the documents' values exchanged. "
        "Right: common experts of which one value has over 80 %.",
    ),
    "coactivation": Words(
        "Which experts run together?",
        "Left: the pairs that run together most beyond what their popularity explains (lift 2: twice as often); the "
        "orange tick is chance, which is below 1, since a token's experts are different ones. The first of many "
        "pairs are large partly by luck. Right: share of all pairs that differ from chance by more than luck.",
    ),
    "divergence": Words(
        "How differently are groups routed?",
        "Left: how differently a layer routes a group and the base group (0 alike, 1 as different as can be). "
        "Middle: divided by what the entropies allow, as it is usually published. Right: the level that exchanged "
        "documents give; trust what is darker than it in both others.",
    ),
    "u_shape": Words(
        "Are first and last layers more particular than the middle?",
        "Left: mean divergence of the first quarter, the middle and the last quarter of the layers; a U says that "
        "groups meet in the middle of the model. Right: ends less middle with its interval; a U only where it is "
        "above 0 and both ends are.",
    ),
    "task_correlation": Words(
        "Do groups that are routed like the base score better?",
        "Correlation, over groups, of divergence and task score, by layer. With few groups it is wide.",
    ),
    "repetition": Words(
        "Do neighbouring tokens use the same experts?",
        "Share of experts that a token shares with the one before; what lies above the dotted line can be cached.",
    ),
    "chunk_sparsity": Words(
        "How many experts do several tokens leave alone?",
        "Left: share of the experts that m tokens together do not touch; it falls with m, and where it stays above "
        "the dotted line, neighbouring tokens share experts. Right: the same by layer for 8 tokens.",
    ),
    "reuse_distance": Words(
        "How soon is an expert used again?",
        "Left: tokens until then; middle: how many other experts run meanwhile, which is how large a cache of "
        "recently used experts has to be. Below the dotted line is better than random order.",
    ),
    "srp": Words(
        "Would one choice of experts do for a whole segment?",
        "Left: how well the best fixed choice of experts serves m tokens in a row (1 perfectly). Right: how many "
        "more experts that choice runs than the tokens did.",
    ),
    "sch_rolling": Words(
        "How often does a cache hit that sees a little ahead?",
        "Left: hit rate by the cache's size, mean over layers; right: by layer, for a cache of twice the experts of "
        "a token. m is how many tokens it sees ahead. Above the dotted line the order of tokens helps.",
    ),
    "sch_static": Words(
        "How much of a segment do its busiest experts cover?",
        "Share of the work of m tokens that the segment's own busiest experts do; not to be compared with the "
        "picture before, whose cache changes token by token.",
    ),
    "transitions": Words(
        "Do a layer's experts foretell the next layer's?",
        "Left: share of the uncertainty about the next layer's experts that this layer's choice removes. Right: "
        "hits of the likeliest experts; dotted, of always guessing the busiest.",
    ),
    "paths": Words(
        "Do tokens take few paths through the layers?",
        "Left: share of tokens on the most frequent sequences of first choices. Right: entropy of the paths; below "
        "dotted means that layers choose together.",
    ),
    "saturation": Words(
        "How much of the final routing was there before?",
        "Left: overlap of a token's experts with the final ones; right: the same above chance, 1 is all of it.",
    ),
    "drift": Words(
        "Has routing moved?",
        "Left: how far the loads moved (0 not at all); right: how many single choices stayed. One may move without "
        "the other.",
    ),
}

# Where few values of a label are drawn as curves in place of maps.
_FEW: Mapping[str, str] = {
    "anomalies": "Left: share of a value's weight on experts that it uses at least half as much again as an even split "
    "over values; low where a value lives on what serves all. Right: common experts of which one value has over 80 %. "
    "Dotted: the documents' values exchanged.",
    "divergence": "Left: how differently a layer routes a group and the base (0 alike, 1 as different as can be). "
    "Middle: divided by what the entropies allow, as it is usually published. Right: all documents of a group pooled, "
    "above the level that exchanged documents give.",
    "specialisation": "Left: share of a value's work that goes to other experts than in general; dotted, the same when "
    "documents change their values at random. Middle: how much more the most specialised expert runs there than "
    "elsewhere (natural logarithm; 0.7 is twice); the largest of many is above 0 by luck, which the dotted line knows. "
    "Right: which expert that is.",
}


def words_of(what: str, *, few: bool) -> Words:
    """Return the words of a diagnostic; `few` where it is drawn as curves because its label has few values."""
    return WORDS[what]._replace(how=_FEW[what]) if few and what in _FEW else WORDS[what]
