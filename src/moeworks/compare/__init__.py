"""Do these two route alike? Compares two traces of the same texts token by token."""

from moeworks.compare.compare import Comparison, compare
from moeworks.compare.rows import Matched, match_rows

__all__ = ["Comparison", "Matched", "compare", "match_rows"]
