"""Language-model files, from a folder or the hub, and their checks before anything is loaded.

A hub id, or id@revision, is first downloaded to a folder, without pickles and code, and then treated in the same way. A model's
files cannot run code: weights are safetensors, custom code is rejected, and chat templates are rendered in jinja's sandbox.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rgpo.errors import ConfigError, first_line, require

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
EXPERTS = ("eager", "batched_mm", "grouped_mm")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # downloaded from the hub; no pickles, no code
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CODE = {  # keys in a model's files that can load code, and their harmless values
    "auto_map": (),
    "attn_implementation": ATTENTIONS,
    "_attn_implementation": ATTENTIONS,
    "experts_implementation": EXPERTS,
    "_experts_implementation": EXPERTS,
}
REVISION = re.compile(r"\w[\w.-]*(/[\w.-]+)*")
MAX_BYTES = 16 * 2**20  # largest config.json
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find_local(key: str, text: str) -> Path | None:
    """The path of an existing file or folder, else None.

    Raises: ConfigError if the name is invalid, or if its parent folder cannot be read.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{key}={text}: cannot be read ({first_line(error)}); give another path.") from error
    return path


def check_path(key: str, path_or_id: str) -> None:
    """Check the files in a model's folder before loading; a hub id is not looked up.

    Raises: ConfigError if the folder does not exist or ``check_folder`` rejects it.
    """
    require(path_or_id not in ("", "???"), key, path_or_id, "is not set; give a folder or a hub id.")
    folder = find_local(key, path_or_id)
    if folder is not None:
        check_folder(key, folder)
    elif path_or_id.startswith(("/", ".", "~")):
        raise ConfigError(f"{key}={path_or_id}: there is no such folder; give another or a hub id.")


def check_folder(key: str, folder: Path) -> None:
    """Raises: ConfigError if config.json, tokenizer or safetensors are missing, it is an adapter, or it would run custom code."""
    require(folder.is_dir(), key, folder, "is not a folder; give the one that holds config.json.")
    require((folder / "config.json").is_file(), key, folder, "has no config.json; give a folder saved by save_pretrained.")
    require(
        any((folder / name).is_file() for name in TOKENIZERS),
        key,
        folder,
        f"has no tokenizer ({', '.join(TOKENIZERS)}); save the model's tokenizer there too.",
    )
    adapter = (folder / "adapter_config.json").exists()
    require(not adapter, key, folder, "has an adapter, whose base may be any other model; merge it and save the whole model.")
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith("config.json") and file.is_file():
            for name, value in _entries(_read_json(key, file)):
                remedy = f"{file.name} would run code of the model's authors ({name}={value}); use a model that has none."
                require(name not in CODE or not value or value in CODE[name], key, folder, remedy)
    _check_weights(key, folder)


def _entries(node: object) -> Iterator[tuple[str, object]]:
    """The entries of a mapping and of all mappings nested in it."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield str(name), value
        yield from _entries(value)


def _check_weights(key: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _read_json(key, index).get("weight_map")
        shards = sorted({str(shard) for shard in listed.values()} if isinstance(listed, dict) else ())
        foreign = [shard for shard in shards if not re.fullmatch(r"[\w.-]+\.safetensors", str(shard))]
        require(not foreign, key, folder, f"its index lists {foreign[:1]}, which is no safetensors file of the folder.")
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        require(not missing and bool(shards), key, folder, f"lacks weights listed in its index ({', '.join(missing[:3])}).")
    elif not (folder / "model.safetensors").is_file():
        pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
        if pickles:
            raise ConfigError(
                f"{key}={folder}: has only pickle weights ({sorted(pickles)[0]}), which can run code when read; "
                "convert them to model.safetensors."
            )
        raise ConfigError(f"{key}={folder}: has no model.safetensors; give a folder saved by save_pretrained.")


def _read_json(key: str, file: Path) -> dict[str, Any]:
    require(file.stat().st_size <= MAX_BYTES, key, file.parent, f"{file.name} is larger than {MAX_BYTES} bytes.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={file.parent}: {file.name} cannot be read ({first_line(error)}).") from error
    require(isinstance(found, dict), key, file.parent, f"{file.name} is not an object.")
    return dict(found)


def resolve_folder(key: str, path_or_id: str) -> Path:
    """The checked folder for a path or a hub id, downloaded to Hugging Face's cache on first use.

    Raises: ConfigError if it cannot be found or downloaded, or if ``check_folder`` rejects it.
    """
    check_path(key, path_or_id)
    folder = find_local(key, path_or_id)
    if folder is None:
        folder = fetch_from_hub(key, path_or_id, allow_patterns=FILES, ignore_patterns=["*/*"])
        check_folder(key, folder)
    return folder


def fetch_from_hub(key: str, repository: str, **options: Any) -> Path:
    """Call huggingface_hub.snapshot_download for name or name@revision; falls back to its cache if the hub cannot be reached.

    Raises: ConfigError if the revision is invalid, or if neither the hub nor the cache has the repository.
    """
    from huggingface_hub import snapshot_download

    name, at, revision = repository.partition("@")
    named = not at or (REVISION.fullmatch(revision) is not None and ".." not in revision)
    require(named, key, repository, "names no branch, tag or commit after @.")
    try:
        return Path(snapshot_download(name, revision=revision or None, **options))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}={repository}: is not a local folder and cannot be downloaded from the hub ({first_line(error)}); "
            "check the name and the network, or give the path of a local copy."
        ) from error


def commit_of(path: Path) -> str | None:
    """The commit of a file or folder downloaded from the hub; None for any other."""
    return next((place.name for place in (path, *path.parents) if place.parent.name == "snapshots"), None)


def version_of(*paths: Path) -> str:
    """The commit of a download from the hub; for other files or a model's folder, a sha256 of names and contents."""
    commit = commit_of(paths[0])
    if commit is not None:
        return commit
    digest = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted({file for pattern in FILES for file in path.glob(pattern)})
        for file in files:
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()
