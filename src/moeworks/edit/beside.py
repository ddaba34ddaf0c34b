"""What lies beside the weights of a checkpoint and belongs to the edited one too, unchanged."""

from __future__ import annotations

from pathlib import Path

__all__ = ["files_beside"]

# Reports and cards of the old model are left out: they would be untrue of the new one.
_PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*processor_config.json",
    "additional_chat_templates",
    "*.py",
    "moeworks.json",
    "LICENSE*",
    "NOTICE*",
)


def files_beside(folder: Path) -> list[Path]:
    """Return the paths, relative to the folder, of tokenizer, settings, templates, custom code and licences, sorted."""
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern)}
    whole = {inner for path in found for inner in ([path] if path.is_file() else path.rglob("*"))}
    return sorted(path.relative_to(folder) for path in whole if path.is_file())
