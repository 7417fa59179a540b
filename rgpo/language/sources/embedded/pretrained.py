"""The embedded scale's weights as the default recipe trained them; ``python -m experiments.embedded_weights`` wrote them.

Training takes two minutes of a core, and rounds differently on other processors; with these files it takes no time, and the
models are the same everywhere. A file's name has the digest of everything that the training sees. With another recipe, other
sentences or a tokenizer that cuts them differently there is no such file, and the models are trained.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_model
from transformers import PreTrainedModel

from rgpo.core.rollout import Array

if TYPE_CHECKING:
    from rgpo.language.sources.embedded.training import Recipe, Rows

FOLDER = Path(__file__).with_name("weights")


def digest(rows: Rows, rated_rows: Rows, rating: Array, recipe: Recipe) -> str:
    """Sha256 of token ids, ratings (N,) of the rated rows, and recipe."""
    return hashlib.sha256(json.dumps([rows, rated_rows, rating.tolist(), recipe]).encode()).hexdigest()


def file(name: str, seen: str) -> Path:
    """The weights of a model, trained on what has this digest."""
    return FOLDER / f"{name}-{seen[:16]}.safetensors"


def load(model: PreTrainedModel, name: str, seen: str) -> bool:
    """Give a model, in place, its trained weights and set it to evaluation; False if the package has none for this digest."""
    if not file(name, seen).exists():
        return False
    load_model(model, file(name, seen))
    model.eval()
    return True
