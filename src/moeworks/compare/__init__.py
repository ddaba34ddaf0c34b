"""Do these two route alike? Compares two traces of the same texts token by token."""

from moeworks.compare.alone_and_batched import stability
from moeworks.compare.comparison import Comparison, compare
from moeworks.compare.rows import Matched, match_rows
from moeworks.compare.words import in_words

__all__ = ["Comparison", "Matched", "compare", "in_words", "match_rows", "stability"]
