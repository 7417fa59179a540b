"""Merging of a LoRA adapter from an earlier fine-tuning into a model from which a run starts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rgpo.errors import ConfigError, first_line, is_out_of_memory, require
from rgpo.files import Unreadable, read_text
from rgpo.language.assets import Log
from rgpo.language.policy.model_files import find_local, version_of
from rgpo.language.policy.pretrained import quiet, require_packages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "task.source.adapter"
MERGED = "merged_adapter"  # attribute of a model whose weights differ from its files
WEIGHTS = "adapter_model.safetensors"


def check_adapter(adapter: str) -> Path:
    """Check an adapter's files without loading them and return its folder.

    Raises: ConfigError if the folder, its settings or its safetensors are missing, or if it is not a LoRA adapter.
    """
    require_packages(KEY, "peft")
    folder = find_local(KEY, adapter)
    require(folder is not None and folder.is_dir(), KEY, adapter, "is not a folder; give one saved by peft's save_pretrained.")
    assert folder is not None
    kind = _settings(folder).get("peft_type")
    require(kind == "LORA", KEY, adapter, f"is an adapter of type {kind}; give a LoRA.")
    require((folder / WEIGHTS).is_file(), KEY, adapter, f"has no {WEIGHTS}; save the adapter as safetensors.")
    return folder


def _settings(folder: Path) -> dict[str, object]:
    file = folder / "adapter_config.json"
    try:
        found = json.loads(read_text(file))
    except (Unreadable, ValueError, RecursionError) as error:
        raise ConfigError(f"{KEY}={folder}: adapter_config.json cannot be read ({first_line(error)}).") from error
    require(isinstance(found, dict), KEY, folder, "adapter_config.json is not an object.")
    return dict(found)


def merge_adapter(model: PreTrainedModel, adapter: str, base: str, log: Log) -> tuple[PreTrainedModel, str]:
    """Merge an adapter into the model; returns the merged model and the version of the adapter's files.

    Raises: ConfigError if the adapter does not fit the model.
    """
    from peft import PeftModel

    folder = check_adapter(adapter)
    trained_on = str(_settings(folder).get("base_model_name_or_path") or base)
    if Path(trained_on).name != Path(base.partition("@")[0]).name:
        log(f"{adapter}: was trained on {trained_on} and is merged into {base}")
    try:
        with quiet(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises various errors for another model's adapter
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{KEY}={adapter}: does not fit {base} ({first_line(error)}); give its own adapter.") from error
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    require(not missing, KEY, adapter, f"lacks weights of the modules that it adapts in {base}; give its own adapter.")
    log(f"merged {adapter} into {base}")
    setattr(merged, MERGED, adapter)
    return merged.eval(), version_of(folder)
