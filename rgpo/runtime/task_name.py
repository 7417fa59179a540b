"""A task's name: its option in conf/task, with all differences in environment or data from that option in parentheses.

Runs are compared only within a task. Therefore its environment (env_id, version, env_kwargs, wrappers), model and data are part
of the name wherever they differ from conf/, and so is its scale: "hopper", "hopper (v5)", "gym (CartPole-v1)",
"qwen_rlhf (embedded)". The name depends only on the run, not on which other runs exist. A run folder's name has the same parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from rgpo.paths import conf_dir
from rgpo.runtime.former import flat_config
from rgpo.runtime.provenance import redact_values

ENVIRONMENT = ("task.env_id", "task.version")
KWARGS, WRAPPERS = "task.env_kwargs.", "task.wrappers"
DATA = ("task.source.model", "task.source.data")
DEFAULT_SCALE = "embedded"  # for language tasks
MAX_PART, MAX_NAME = 40, 60  # most characters of a value, and of the differences in a folder's name


def task_name(config: Mapping[str, object], scale: str) -> str:
    """The name of a run's task, given its flat configuration with current names."""
    option = str(config.get("choices.task"))
    declared = declared_options("task", option)
    parts = [_short(other_environment(config))]
    if scale != "none":
        of_scale = declared_options("scale", scale)
        parts = [scale, *(_short(config[key]) for key in DATA if config.get(key, of_scale.get(key)) != of_scale.get(key))]
    keys = sorted(key for key in {*declared, *config} if key.startswith(KWARGS))
    changed = [key for key in keys if declared.get(key) != config.get(key)]
    parts += [f"{key.removeprefix(KWARGS)}={_short(config.get(key, 'none'))}" for key in changed]
    parts += _wrappers(config.get(WRAPPERS), declared.get(WRAPPERS))
    named = [part for part in parts if part]
    return f"{option} ({', '.join(named)})" if named else option


def other_environment(config: Mapping[str, object]) -> str:
    """id-version if the environment's id differs from the option's, the version alone if only that differs, else ""."""
    declared = declared_options("task", str(config.get("choices.task")))
    env_id, version = (config.get(key) for key in ENVIRONMENT)
    if not isinstance(env_id, str):
        return ""
    if env_id != declared.get("task.env_id"):
        return f"{env_id}-{version}" if version else env_id
    return "" if version == declared.get("task.version") else str(version or "no version")


def folder_name(config: Mapping[str, object], seed: object, config_hash: str) -> str:
    """task-environment-algorithm-sSEED-HASH, as in gym-Pong-v5-ppo-s1-0f5394b8 or hopper-healthy_reward_2-ppo-s1-1c44a514.

    The second part is the text in parentheses in the task's name, without the default scale; it is often empty.
    """
    option, scale = config.get("choices.task"), str(config.get("choices.scale") or "none")
    shown = {key: redact_values(value, key) for key, value in config.items()}  # keep secrets out of file names
    _, _, inside = task_name(shown, scale).partition(" (")
    words = [word for word in inside.removesuffix(")").split(", ") if word not in ("", DEFAULT_SCALE)]
    different = "_".join(re.sub(r"[^\w.-]+", "_", word.rpartition(":")[2]).strip("-_.") for word in words)[:MAX_NAME].strip("-_.")
    parts = (option, different, config.get("choices.algo"), f"s{seed}", config_hash)
    return "-".join(str(part or "none") for part in parts if part != "")


def _wrappers(used: object, declared: object) -> list[str]:
    """Each wrapper with its settings, innermost first; [] if they are the option's."""
    if (used or []) == (declared or []):
        return []
    nodes = [node if isinstance(node, Mapping) else {"_target_": node} for node in used or []] if isinstance(used, list) else []
    named = []
    for node in nodes:
        settings = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_")
        named.append(_short(str(node.get("_target_")).rpartition(".")[2] + (f"({settings})" if settings else "")))
    return named or ["no wrappers"]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_PART else f"...{text[-MAX_PART:]}"


@cache
def declared_options(group: str, option: str) -> dict[str, object]:
    """Dotted key -> value of an option in conf/, including its defaults list; {} for a user's own option."""
    path = conf_dir() / group / f"{option}.yaml"
    if Path(option).name != option or not path.is_file():
        return {}
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(node, dict):
        return {}
    found: dict[str, object] = {}
    for entry in node.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found |= declared_options(group, entry)
    return found | flat_config(node)
