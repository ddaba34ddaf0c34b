"""Makes traces of what other engines write down of their routing; each importer says what its source lacks."""

from moeworks.trace.importers.answers import FORMATS, import_answers
from moeworks.trace.importers.recorder import import_recorder
from moeworks.trace.importers.table import import_table

__all__ = ["FORMATS", "import_answers", "import_recorder", "import_table"]
