"""Records a corpus on many workers at once: shards of it are mapped over Ray Data and merged into one trace."""

from moeworks.engines.ray.engine import RayEngine

__all__ = ["RayEngine"]
