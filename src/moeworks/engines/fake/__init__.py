"""A tiny deterministic mixture of experts whose truth is planted: for our tests, and for those of your own tools."""

from moeworks.engines.fake.engine import FakeEngine
from moeworks.engines.fake.plants import CONFOUNDS, PLANTS
from moeworks.engines.fake.texts import (
    neutral_examples,
    null_examples,
    null_probe,
    plant_examples,
    plant_probe,
    planted_examples,
    planted_probe,
)
from moeworks.engines.fake.twin import PlantedModel, planted_model

__all__ = [
    "CONFOUNDS",
    "PLANTS",
    "FakeEngine",
    "PlantedModel",
    "neutral_examples",
    "null_examples",
    "null_probe",
    "plant_examples",
    "plant_probe",
    "planted_examples",
    "planted_model",
    "planted_probe",
]
