"""Checkpoints on disk: opened from headers and config, read one layer of experts at a time."""

from moeworks.edit.checkpoint.source import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
