"""python -m experiments.embedded_weights: train the embedded scale's models from scratch and store the weights in the package.

Takes two minutes on one core. The last bits of the weights depend on the processor and on torch; replace the files only for a
new recipe.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rgpo.language.sources.embedded import corpus, pretrained
from rgpo.language.sources.embedded.build import build
from rgpo.language.sources.embedded.training import Recipe
from rgpo.paths import cache_dir


def main() -> None:
    """Train the models and replace the files."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        report = build(folder, corpus.read_sentences(corpus.fetch(cache_dir())), Recipe(), print, from_scratch=True)
        shutil.rmtree(pretrained.FOLDER, ignore_errors=True)
        pretrained.FOLDER.mkdir()
        for name in ("model", "reward_model"):
            target = pretrained.file(name, report["training_digest"])
            shutil.copyfile(folder / name / "model.safetensors", target)
            print(target)


if __name__ == "__main__":
    main()
