"""The embedded scale's weights for the default recipe, written by ``python -m experiments.embedded_weights``.

Training takes two minutes on one core and rounds differently on different processors; these files save that time and make the
models identical everywhere. A file's name contains a digest of all training inputs. With another recipe, other sentences or a
tokenizer that splits them differently, there is no matching file, and the models are trained.
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
    """Digest of token ids, ratings (N,) of the rated rows, and recipe."""
    return hashlib.sha256(json.dumps([rows, rated_rows, rating.tolist(), recipe]).encode()).hexdigest()


def file(name: str, seen: str) -> Path:
    """The file with a model's weights for the training inputs with digest ``seen``."""
    return FOLDER / f"{name}-{seen[:16]}.safetensors"


def load(model: PreTrainedModel, name: str, seen: str) -> bool:
    """Load a model's trained weights in place and set it to eval mode; False if the package has none for this digest."""
    if not file(name, seen).exists():
        return False
    load_model(model, file(name, seen))
    model.eval()
    return True
