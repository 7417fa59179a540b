"""Checks of --config-dir, the folder of a user's own options, before hydra reads it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from rgpo.errors import ConfigError, first_line
from rgpo.paths import conf_dir
from rgpo.runtime.reader import Unreadable, read_yaml


def check_folder(config_dir: str | None) -> None:
    """Check a user's folder of options; None passes.

    Raises: ConfigError if config_dir is not a folder, hydra cannot parse its path, one of its files has the name of a packaged
    file, or one cannot be read.
    """
    if config_dir is None:
        return
    own = Path(config_dir)
    if not config_dir or not own.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: is not a folder; give one that holds gate/, algo/ and so on.")
    try:
        OmegaConf.create([str(own.resolve())])
    except GrammarParseError as error:
        raise ConfigError(f"--config-dir {config_dir}: hydra cannot read this name ({first_line(error)}); rename it.") from error
    for file in conf_dir().rglob("*.yaml"):
        name = file.relative_to(conf_dir())
        if (own / name).exists():
            raise ConfigError(
                f"--config-dir {config_dir}: {name} has the name of a packaged file and would be ignored; rename it."
            )
    for group in {file.parent.relative_to(conf_dir()) for file in conf_dir().rglob("*.yaml")}:
        for file in (own / group).glob("*.yaml"):
            try:
                read_yaml(file)  # enforces limits on size and depth, which hydra's loader lacks
            except Unreadable as error:
                if "empty" not in str(error):  # an option's file may be empty
                    what = f"{group}/{error}; fix or remove it"
                    raise ConfigError(f"--config-dir {config_dir}: {what}.") from error


class Options:
    """The part of hydra's config loader that its glob() needs."""

    def __init__(self, config_dir: str | None) -> None:
        self.config_dir = config_dir

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        """Names of a group's options, including the user's."""
        return group_options(group, self.config_dir)


def group_options(group: str, config_dir: str | None = None) -> list[str]:
    """Names of a group's options, including the user's; names with a leading underscore are not options."""
    folders = [conf_dir() / group, *([Path(config_dir) / group] if config_dir else [])]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    return sorted(file.stem for file in files if not file.name.startswith("_"))
