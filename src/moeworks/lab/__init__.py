"""The lab models: small mixture-of-experts language models that are part of the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from moeworks.errors import MoeworksError

__all__ = ["LAB_MODELS", "lab_path"]

LAB_MODELS = {"lab": "model", "lab-sigmoid": "sigmoid"}  # name → folder


def lab_path(name: str = "lab") -> Path:
    """Return the folder of a lab model; transformers loads it as any local checkpoint.

    `moeworks.json` in it says that every text starts with the model's beginning-of-sequence token: the models were
    trained so, and their tokenizer adds none by itself.

    Raises:
        MoeworksError: the weights are not there.
    """
    folder = Path(str(files("moeworks.lab"))) / LAB_MODELS[name]
    if not (folder / "model.safetensors").is_file():
        raise MoeworksError(
            f"the weights of {name} are missing from {folder}; install the whole package again, or make them in a "
            "checkout with: make lab."
        )
    return folder
