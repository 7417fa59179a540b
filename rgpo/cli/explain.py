"""Messages for hydra's errors: the override, its value and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, MissingConfigException

from rgpo.cli.config_dir import group_options
from rgpo.cli.hydra_words import read_by_optuna
from rgpo.cli.words import CHOOSE_WITH, former_name
from rgpo.errors import close_matches, first_line
from rgpo.paths import conf_dir


def missing_option(error: MissingConfigException, config_dir: str | None) -> str:
    """The message for an option that its group does not have."""
    match = re.search(r"[Cc]ould not find '([^']+)'", str(error))
    path = match.group(1) if match else str(error.missing_cfg_file)
    group, _, option = path.strip("/").rpartition("/")
    former = former_name(group, option)
    if former is not None:
        return f"{group}={option}: {former}"
    options = group_options(group, config_dir)
    near = close_matches(option, options) or f" The options are {', '.join(options)}."
    return f"{group}={option}: is not an option of the group {group}.{near}"


def composition(error: Exception, words: list[str], similar: Callable[[str, str], str]) -> str:
    """The message for any other composition error; similar: makes a clause about an unknown key and the override that sets it."""
    text = str(error)
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"not in struct\s+full_key: (\S+)", text)
    if match is None:
        if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
            error = error.__cause__
        text = str(error)
        if "already at" in text and (word := next((word for word in words if word.startswith("+")), None)):
            return f"{word}: is no new entry; write {word.lstrip('+')}."
        if "merge DictConfig with ListConfig" in text and (word := next((w for w in words if "={" in w), None)):
            return f"{word}: must be a list; write {_key(word)}=[{word.partition('=')[2]}]."
        return f"command line {' '.join(words)}: {first_line(error).rstrip(':')}."
    key = match.group(1)
    typed = [word for word in words if f"{key}.".startswith(f"{_key(word)}.")]
    former = former_name(key, "")
    if former is not None:
        return f"{key}: {former}"
    if not typed:
        file = re.search(r"In '([^']+)'", text)
        option = "=".join(file.group(1).rsplit("/", 1)) if file else "yaml"
        return f"{option}: overrides {key}, which no other option of this run has; choose a task that has it."
    word = max(typed, key=lambda word: len(_key(word)))  # prefer task.env_kwargs.kind=plain to task=gym
    value = word.partition("=")[2]
    if key.startswith("hydra.sweeper."):
        return f"{word}: {read_by_optuna(key)}"
    if (conf_dir() / key).is_dir():
        group = next((group for group in CHOOSE_WITH.values() if group.partition("@")[0] == key), key)
        return f"{key}={value}: is no group of this task; write {group}={value} with a language task."
    return f"{key}={value}: {similar(key, word)}"


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
