"""The command line's words as hydra composes them: the cells of a sweep, each distinct part composed once."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rgpo.errors import ConfigError, close_matches, first_line
from rgpo.paths import conf_dir
from rgpo.runtime.resources import jobs_that_fit

OmegaConf.register_new_resolver("jobs_that_fit", jobs_that_fit, replace=True)
OmegaConf.register_new_resolver("gigabytes", lambda number: int(number * 1e9), replace=True)

# a launcher's preset has the name of the plugin's own, whose types then check it; hydra calls that deprecated
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@contextmanager
def hydra_on(config_dir: str | None) -> Iterator[Composer]:
    """Hydra on conf/ and on the user's folder, if he gave one. ConfigError if that is none or hides a packaged file."""
    _refuse_shadowing(config_dir)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield Composer(config_dir)


class Composer:
    """Composes lists of words as hydra does, with what they share composed once.

    Hydra first chooses files by the words that name a group (algo=ppo), 0.1 s, then sets values (seed=3), 0.001 s. What the
    first step gives is kept for each distinct list of group words; the second is hydra's own function on a copy of it.
    """

    def __init__(self, config_dir: str | None) -> None:
        self.config_dir = config_dir
        self.search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
        self._parser = OverridesParser.create()
        self._chosen: dict[tuple[str, ...], tuple[bytes, Mapping[str, Any]]] = {}  # pickled: copied in a fifth of the time
        self._parsed: dict[str, Override] = {}
        self._is_group: dict[str, bool] = {}

    def __call__(self, words: list[str]) -> tuple[DictConfig, Mapping[str, Any]]:
        """The configuration without hydra's own node, and the option chosen of each group. ConfigError."""
        parsed = self.parse(words)
        values = [item for item in parsed if self._sets_a_value(item)]
        groups = tuple(word for word, item in zip(words, parsed, strict=True) if item not in values)
        if groups not in self._chosen:
            chosen = self.whole(list(groups))
            options = dict(chosen.hydra.runtime.choices)
            with open_dict(chosen):
                del chosen["hydra"]
            self._chosen[groups] = (pickle.dumps(chosen), options)
        pickled, choices = self._chosen[groups]
        composed: DictConfig = pickle.loads(pickled)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(self._explain(error, words)) from error
        return composed, choices

    def whole(self, words: list[str]) -> DictConfig:
        """Everything, hydra's own node included. ConfigError."""
        try:
            composed: DictConfig = compose("config", [*words, *self.search], return_hydra_config=True)
        except MissingConfigException as error:
            raise ConfigError(self._explain_missing(error)) from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # hydra's own for a number as an option
            raise ConfigError(self._explain(error, words)) from error
        return composed

    def cells(self, words: list[str]) -> list[list[str]]:
        """The cells of a sweep: the experiment's grid, overridden by the command line's, in hydra's order. ConfigError."""
        fixed = [word for word, item in zip(words, self.parse(words), strict=True) if not item.is_sweep_override()]
        params = self.whole(fixed).hydra.sweeper.params or {}
        swept = self.parse([f"{key}={value}" for key, value in params.items()] + words)
        own = [item for item in swept if not item.is_hydra_override()]
        try:
            batches = BasicSweeper.split_arguments(own, max_batch_size=None)
        except HydraException as error:
            raise ConfigError(f"command line: {first_line(error)}; give the values, separated by commas.") from error
        return [list(cell) for batch in batches for cell in batch]

    def parse(self, words: list[str]) -> list[Override]:
        """The words by hydra's grammar. ConfigError."""
        try:
            for word in words:
                if word not in self._parsed:
                    (self._parsed[word],) = self._parser.parse_overrides([word])
            return [self._parsed[word] for word in words]
        except HydraException as error:
            raise ConfigError(
                f"command line: {first_line(error)}; write key=value, quoted where the shell would split it."
            ) from error

    def _sets_a_value(self, item: Override) -> bool:
        """Hydra's own distinction: a word chooses a file if its key is a folder of options and its value no dictionary."""
        if item.is_hydra_override() or item.package is not None:
            return False
        key = item.key_or_group
        if key not in self._is_group:
            loader = GlobalHydra.instance().config_loader()
            options = [loader.get_group_options(key, kind, "config", self.search) for kind in ObjectType]
            self._is_group[key] = any(options)
        return not self._is_group[key] or isinstance(item.value(), dict)

    def _explain_missing(self, error: MissingConfigException) -> str:
        match = re.search(r"[Cc]ould not find '([^']+)'", str(error))
        path = match.group(1) if match else str(error.missing_cfg_file)
        group, _, option = path.strip("/").rpartition("/")
        options = group_options(group, self.config_dir)
        near = close_matches(option, options) or f" The options are {', '.join(options)}."
        return f"{group}={option}: is not an option of the group {group}.{near}"

    def _explain(self, error: Exception, words: list[str]) -> str:
        text = str(error)
        match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
        if match is None:
            if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
                text = str(error.__cause__)
            return f"command line {' '.join(words)}: {text.splitlines()[0].rstrip('.')}."
        key = match.group(1)
        value = next((word.split("=", 1)[1] for word in words if word.startswith(f"{key}=")), "")
        if (conf_dir() / key).is_dir():
            return f"{key}={value}: the chosen task has no group {key} (task=qwen_rlhf has the group scale)."
        others = [word for word in words if not word.startswith(f"{key}=")]
        base, choices = self(
            [word for word, item in zip(others, self.parse(others), strict=True) if not self._sets_a_value(item)]
        )
        groups = [group for group in choices if not group.startswith("hydra/")]
        names = sorted({*_flat_keys(OmegaConf.to_container(base)), *groups})
        near = close_matches(key, names)
        if not near and "." in key:
            head, _, tail = key.rpartition(".")
            near = close_matches(tail, [name.rpartition(".")[2] for name in names if name.startswith(head)])
        listing = near or " `rgpo-run --cfg job` lists the keys."
        return f"{key}={value}: is not a known key.{listing}"


def group_options(group: str, config_dir: str | None = None) -> list[str]:
    """Names of a group's options, the user's among them; names with a leading underscore are not options."""
    folders = [conf_dir() / group, *([Path(config_dir) / group] if config_dir else [])]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    return sorted(file.stem for file in files if not file.name.startswith("_"))


def _flat_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return []
    own = {key: value for key, value in node.items() if key != "_target_"}
    return [name for key, value in own.items() for name in (f"{prefix}{key}", *_flat_keys(value, f"{prefix}{key}."))]


def _refuse_shadowing(config_dir: str | None) -> None:
    if config_dir is None:
        return
    own = Path(config_dir)
    if not own.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: is not a folder, give one that holds gate/, algo/ and so on.")
    for file in own.rglob("*.yaml"):
        if (conf_dir() / file.relative_to(own)).exists():
            name = file.relative_to(own)
            raise ConfigError(
                f"--config-dir {config_dir}: {name} has the name of a packaged file and would be ignored, rename it."
            )
