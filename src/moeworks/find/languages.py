"""Language experts and task experts side by side, and whether any expert is both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from moeworks.errors import BadData
from moeworks.find.artefact import Scores
from moeworks.find.by_label import find_by_label
from moeworks.find.contrast import find
from moeworks.find.scores.multilingual import TAUS
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["LanguageExperts", "find_languages", "overlap"]


@dataclass(frozen=True)
class LanguageExperts:
    """Scores of both kinds, and how many experts there are of each and of both by tau."""

    languages: Scores
    task: Scores
    counts: pa.Table  # columns of `overlap`


def find_languages(
    trace: Trace,
    *,
    label: str = "lang",
    base: str = "en",
    task: Where | str,
    where: Where | str = Where(),
    tau: float = 0.3,
    taus: tuple[float, ...] = TAUS,
    **arguments: Any,
) -> LanguageExperts:
    """Find language experts over all values of a label at once, task experts against the base, and their overlap.

    Both are Delta, the difference of mean within-text frequencies: languages against the base's texts, and the task's
    texts (which should be in the base language) against the base's. Source: arXiv 2510.04694; there no expert is both
    from tau = 0.3 on.

    Args:
        trace: the trace.
        label, base: the label of languages, and the value that is compared with.
        task: tokens of the task, as in "domain=maths lang=en"; other texts with the base value are the comparison.
        where: which tokens and layers count.
        tau, taus: the threshold for passing, and all that are counted.
        arguments: further ones of `find` (permutations, alpha, seed and so on).

    Raises:
        BadData: as `find` and `find_by_label`; or the task's clause names no label.
    """
    asked = Where.parse(task) if isinstance(task, str) else task
    rest = {name: values for name, values in asked.labels.items() if name != label}
    if not rest:
        raise BadData(f"the task '{asked}' names no label besides '{label}'; say which texts are the task's.")
    common = Where.parse(where) if isinstance(where, str) else where
    if common.exclude is not None:
        raise BadData(
            "the clause for both excludes tokens, and so do the task's texts from the languages'; slice the trace."
        )
    general = common.model_copy(update={"exclude": Where(labels=rest)})
    languages = find_by_label(trace, label=label, method="multilingual", where=general, base=base, tau=tau, **arguments)
    task_scores = find(
        trace,
        contrast=asked,
        against=Where(labels={label: (base,)}, exclude=Where(labels=rest)),
        where=common,
        aggregate="macro",
        **arguments,
    )
    return LanguageExperts(languages, task_scores, overlap(languages, task_scores, taus=tuple(sorted({*taus, tau}))))


def overlap(languages: Scores, task: Scores, *, taus: tuple[float, ...] = TAUS) -> pa.Table:
    """Return how many experts are above each tau as language experts, as task experts, and as both.

    Columns `tau`, `languages`, `task`, `both`.

    Raises:
        BadData: the two scores are of different experts.
    """
    for name in ("layer", "expert"):
        if not np.array_equal(languages.column(name), task.column(name)):
            raise BadData("the two scores are of different layers; make them with the same where clause.")
    first, second = languages.column("score"), task.column("score")
    return pa.table(
        {
            "tau": list(taus),
            "languages": [int((first > tau).sum()) for tau in taus],
            "task": [int((second > tau).sum()) for tau in taus],
            "both": [int(((first > tau) & (second > tau)).sum()) for tau in taus],
        }
    )
