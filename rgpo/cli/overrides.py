"""Composition of command-line overrides with hydra, including the cells of a sweep; common parts are composed only once.

Private API of hydra 1.3.8 used here, for lack of a public one:
- hydra._internal.config_loader_impl.ConfigLoaderImpl._apply_overrides_to_config sets values on a composed configuration;
  composing each cell of a sweep from scratch takes 100 times as long.
- hydra._internal.core_plugins.basic_sweeper.BasicSweeper.split_arguments expands a sweep into its cells.
- hydra._internal.callbacks.Callbacks is a required argument of HydraContext, which every launcher plugin needs (cli.sweep).
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from rgpo.cli import explain
from rgpo.cli.config_dir import Options, check_folder, group_options
from rgpo.cli.hydra_words import refuse_hydra_words, refuse_option, without_sweeper_params
from rgpo.cli.targets import refuse_code
from rgpo.cli.words import flat, former_name, hydra_form, preset_of, quote, typed_keys, user_form
from rgpo.errors import ConfigError, close_matches, first_line
from rgpo.paths import conf_dir
from rgpo.runtime.reader import user_path
from rgpo.runtime.resources import jobs_that_fit

Choices = Mapping[str, object]  # config group -> selected option
MOST_JOBS, LONGEST_WORD = 100_000, 10_000  # most jobs in a sweep, most characters in an override


def on_language(yes: str, no: str, *, _root_: Mapping[str, object]) -> str:
    """Resolver ${on_language:yes,no} for defaults lists: yes for tasks with presets=language, which have a reference policy.

    Hydra evaluates it after it has selected all options that need no resolver, and passes it those selections.
    """
    return yes if _root_.get("presets") == "language" else no


OmegaConf.register_new_resolver("on_language", on_language, replace=True)
OmegaConf.register_new_resolver("jobs_that_fit", jobs_that_fit, replace=True)
OmegaConf.register_new_resolver("home_expanded", lambda folder: str(user_path(folder)), replace=True)
OmegaConf.register_new_resolver("gigabytes", lambda number: int(number * 1e9), replace=True)

# our launcher presets have the plugins' names on purpose, so that the plugins' types validate them; hydra deprecates this
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@contextmanager
def hydra_on(config_dir: str | None) -> Iterator[Composer]:
    """Initialize hydra with conf/ and the user's folder, if any; an enclosing hydra application is restored afterwards.

    Raises: ConfigError if config_dir cannot be used, see ``check_folder``.
    """
    check_folder(config_dir)
    state = GlobalHydra.instance()
    outer = state.hydra
    state.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield Composer(config_dir)
    finally:
        GlobalHydra.instance().hydra = outer


class Composer:
    """Composes lists of overrides as hydra does, but composes their common part only once.

    Hydra first selects files by the overrides that name a group (algo=ppo), which takes 0.1 s, then sets values (seed=3), which
    takes 0.001 s. The result of the first step is cached per distinct list of group overrides; the second step is hydra's own
    function, applied to a copy.
    """

    def __init__(self, config_dir: str | None) -> None:
        self.config_dir = config_dir
        self.search = [f"hydra.searchpath=[{quote(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []
        self._parser = OverridesParser.create(cast(ConfigLoader, Options(config_dir)))  # for glob()
        self._selected: dict[tuple[str, ...], tuple[bytes, Choices]] = {}  # pickled, because that is five times as fast as a copy
        self._parsed: dict[str, Override] = {}
        self._is_group: dict[str, bool] = {}

    def __call__(self, words: list[str]) -> tuple[DictConfig, Choices]:
        """The composed configuration, without hydra's own node, and the option selected from each group.

        Raises: ConfigError if hydra cannot compose the overrides, or if one of them sets a preset or has an old name.
        """
        self.refuse_former(words)
        parsed = self.parse(words)
        values = [item for item in parsed if self._sets_a_value(item)]
        groups = tuple(word for word, item in zip(words, parsed, strict=True) if item not in values)
        if groups not in self._selected:
            selected = self.whole(list(groups))
            options = dict(selected.hydra.runtime.choices)
            with open_dict(selected):
                del selected["hydra"]
            self._selected[groups] = (pickle.dumps(selected), options)
        pickled, choices = self._selected[groups]
        composed: DictConfig = pickle.loads(pickled)  # noqa: S301  # pickled just above, never read from a file
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        except Exception as error:  # hydra raises various errors for a value that it cannot set
            raise ConfigError(explain.composition(error, words, partial(self._similar, words))) from error
        return composed, choices

    def whole(self, words: list[str]) -> DictConfig:
        """The composed configuration including hydra's own node.

        Raises: ConfigError if hydra cannot compose the overrides, or if its own node could run other code.
        """
        self._refuse_nameless(words)
        try:
            composed: DictConfig = compose("config", [*map(hydra_form, words), *self.search], return_hydra_config=True)
        except MissingConfigException as error:
            raise ConfigError(explain.missing_option(error, self.config_dir)) from error
        except Exception as error:  # hydra raises various errors for an override or file that it cannot read
            raise ConfigError(explain.composition(error, words, partial(self._similar, words))) from error
        refuse_code(OmegaConf.to_container(composed.hydra, resolve=False), "hydra")
        return composed

    def cells(self, words: list[str]) -> list[list[str]]:
        """The cells of a sweep in hydra's order: the experiment's grid, overridden by that of the command line.

        Raises: ConfigError if an override cannot be parsed or expanded.
        """
        own = self.swept(words)
        try:
            empty = next((item for item in own if isinstance(item.value(), Glob) and not any(item.sweep_iterator())), None)
            if empty is not None:
                remedy = f"The options are {', '.join(group_options(empty.key_or_group, self.config_dir)) or 'none'}."
                raise ConfigError(f"{empty.input_line}: matches no option of the group {empty.key_or_group}. {remedy}")
            nothing = next(
                (item for item in own if isinstance(item.value(), RangeSweep) and not any(item.sweep_iterator())), None
            )
            if nothing is not None:
                raise ConfigError(f"{nothing.input_line}: has no values; exchange its ends, or give another step.")
            sizes = [sum(1 for _ in islice(item.sweep_iterator(), MOST_JOBS + 1)) for item in own if item.is_sweep_override()]
            if math.prod(sizes) > MOST_JOBS:
                raise ConfigError(f"command line {' '.join(words)}: makes over {MOST_JOBS:,} jobs; give fewer values.")
            batches = BasicSweeper.split_arguments(own, max_batch_size=None)
        except HydraException as error:
            interval = next((item.input_line for item in own if isinstance(item.value(), IntervalSweep)), None)
            if interval is not None:
                remedy = "give values, separated by commas, or add hydra/sweeper=optuna"
                raise ConfigError(f"{interval}: is an interval, which only a search has; {remedy}.") from error
            raise ConfigError(f"command line {' '.join(words)}: {first_line(error)}; separate the values by commas.") from error
        return [[user_form(item) for item in self.parse_hydra(cell)] for batch in batches for cell in batch]

    def swept(self, words: list[str]) -> list[Override]:
        """The overrides of a sweep: the experiment's grid, then the command line's, without hydra's own; raises as ``parse``."""
        parsed = self.parse(words, sweep=True)
        fixed = [word for word, item in zip(words, parsed, strict=True) if not item.is_sweep_override()]
        for item in parsed:
            if item.key_or_group == "experiment" and item.is_sweep_override() and not isinstance(item.value(), Glob):
                self._refuse_grids(str(item.input_line), [str(value) for value in item.sweep_string_iterator()], fixed)
        params = self.whole(fixed).hydra.sweeper.params or {}
        swept = [*self.parse_hydra([f"{key}={value}" for key, value in params.items()]), *parsed]
        return [item for item in swept if not item.is_hydra_override()]

    def _refuse_grids(self, word: str, names: Sequence[str], fixed: list[str]) -> None:
        """Raises: ConfigError if one of several experiments has its own grid, which a sweep over experiments would ignore."""
        for name in names:
            if self.whole([*fixed, f"experiment={name}"]).hydra.sweeper.params:
                raise ConfigError(f"{word}: {name} has a grid of its own; give one experiment at a time.")

    def unfolded(self, words: list[str]) -> list[str]:
        """The arguments with hydra.sweeper.params rewritten as ordinary sweeps; raises as ``parse``."""
        return without_sweeper_params(words, lambda word: self.parse([word])[0])

    def parse(self, words: list[str], sweep: bool = False) -> list[Override]:
        """Parse arguments with hydra's grammar.

        Raises: ConfigError if one does not have the form key=value, or could make hydra run code.
        """
        parsed = self.parse_hydra([hydra_form(word, sweep) for word in words])
        for word, item in zip(words, parsed, strict=True):
            refuse_hydra_words(word, item)
        return parsed

    def parse_hydra(self, words: list[str]) -> list[Override]:
        """Parse arguments that are already quoted for hydra.

        Raises: ConfigError if one does not have the form key=value.
        """
        for word, following in zip_longest(words, words[1:]):
            if word.startswith(("-", "=")):
                refuse_option(word, following)
            if len(word) > LONGEST_WORD:
                raise ConfigError(f"{word}: has over {LONGEST_WORD:,} characters; write long values into a yaml of your own.")
            if word not in self._parsed:
                try:
                    (item,) = self._parser.parse_overrides([word])
                    _ = item.value()  # evaluates casts
                except Exception as error:  # hydra may raise anything, such as RecursionError
                    remedy = "write key=value, and quote values with special characters: 'key=\"value\"'"
                    raise ConfigError(f"{word}: cannot be parsed ({first_line(error)}); {remedy}.") from error
                self._parsed[word] = item
        return [self._parsed[word] for word in words]

    def refuse_former(self, words: list[str]) -> None:
        """Raises: ConfigError for a preset, or for a key or option of version 0.1, with the current name."""
        for word, item in zip(words, self.parse(words), strict=True):
            key, value = item.key_or_group, word.partition("=")[2]
            key += f"@{item.package}" if item.package else ""
            former = former_name(key, value)
            if former is not None:
                raise ConfigError(f"{key}={value}: {former}")
            for name, entry in typed_keys([word], [item]).items():
                preset = preset_of(name) if "." in name else None
                if preset is not None:
                    rest = [other for other in words if preset_of(other.lstrip("+~").partition("=")[0]) is None]
                    raise ConfigError(f"{name}={entry}: {self._explain_preset(preset, entry, rest)}")

    def _explain_preset(self, preset: str, value: str, words: list[str]) -> str:
        """The rest of a message about a preset: the key that reads it under these overrides and should be set instead."""
        composed, _ = self(words)
        keys = {key: text for key, text in flat(OmegaConf.to_container(composed)).items() if not isinstance(text, Mapping)}
        names = {preset}
        for _ in range(2):  # twice, since a preset may refer to another one
            names |= {key for key, text in keys.items() if any(f"${{{name}}}" in str(text) for name in names)}
        readers = sorted(name for name in names if not name.startswith("presets."))
        if readers:
            return f"is a preset, which yaml files set; type {readers[0]}={value} instead."
        near = close_matches(preset.rpartition(".")[2], {key.rpartition(".")[2] for key in keys})
        return f"is a preset, which yaml files set, and no part of this run reads it; type the key of the part instead.{near}"

    def _sets_a_value(self, item: Override) -> bool:
        """True if an override sets a value; it selects a file if its key is a config group and its value is not a dictionary."""
        if item.is_hydra_override() or item.package is not None:
            return False
        key = item.key_or_group
        if key not in self._is_group:
            options = GlobalHydra.instance().config_loader().get_group_options(key, None, overrides=self.search)
            self._is_group[key] = bool(options)
        return not self._is_group[key] or isinstance(item.value(), dict)

    def _refuse_nameless(self, words: list[str]) -> None:
        """Raises: ConfigError for an override of a group whose value is not an option's name."""
        for word, item in zip(words, self.parse(words), strict=True):
            by_name = item.is_delete() or (isinstance(item.value(), str) and item.value())
            if not by_name and not item.is_hydra_override() and not self._sets_a_value(item):
                key = item.get_key_element().lstrip("+")
                raise ConfigError(f"{word}: must be the name of one option; ~{key} leaves the group out.")
            option, suffix = Path(str(item.value())).stem, Path(str(item.value())).suffix
            if by_name and suffix in (".yaml", ".yml") and not item.is_hydra_override() and not self._sets_a_value(item):
                raise ConfigError(f"{word}: is a file's name; write {word.partition('=')[0]}={option}.")
            if by_name and "/" in str(item.value()) and not item.is_hydra_override() and not self._sets_a_value(item):
                raise ConfigError(f"{word}: must be the name of an option, without folders; rgpo-run --help lists them.")

    def _similar(self, words: list[str], key: str, typed: str) -> str:
        """The rest of a message about an unknown key of the override ``typed``."""
        others = [word for word in words if word != typed]
        base, choices = self(
            [word for word, item in zip(others, self.parse(others), strict=True) if not self._sets_a_value(item)]
        )
        for name in (key, key.rpartition(".")[0]):
            mapping = OmegaConf.select(base, name) if name else None
            if isinstance(mapping, DictConfig) and "_target_" not in mapping:
                return f"is a new entry of {name}; write +{typed.lstrip('+')}."
        names = sorted({*flat(OmegaConf.to_container(base)), *(group for group in choices if not group.startswith("hydra/"))})
        near = close_matches(key, names)
        if not near and "." in key:
            head, _, tail = key.rpartition(".")
            near = close_matches(tail, [name.rpartition(".")[2] for name in names if name.startswith(head)])
        return f"is not a known key.{near or ' `rgpo-run --cfg job` lists the keys.'}"
