"""Hydra's own keys and options: which ones rgpo-run accepts, and what to write instead of the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from rgpo.errors import ConfigError
from rgpo.paths import conf_dir

SWEEPERS = ("basic", "optuna")
SETTABLE = ("hydra.launcher.", "hydra.sweeper.")
GROUPS = ("hydra/launcher", "hydra/sweeper")
SWEEPER_PARAMS = "hydra.sweeper.params"
FOLDERS = "files are written to results_dir/name; set those"
INSTEAD = {  # hydra's keys that would have no effect -> what to write instead
    "hydra.run.dir": FOLDERS,
    "hydra.sweep.dir": FOLDERS,
    "hydra.sweep.subdir": FOLDERS,
    "hydra.output_subdir": "every run's folder has its config.yaml; leave it out",
    "hydra.job.chdir": "runs stay in the current directory; leave it out",
    "hydra.job.name": "set name",
    "hydra.mode": "write -m for a sweep",
    "hydra/job_logging": "runs print to stdout; leave it out",
    "hydra/hydra_logging": "runs print to stdout; leave it out",
    "hydra/output": FOLDERS,
    "hydra/sweeper/sampler": "write hydra.sweeper.sampler=tpe with hydra/sweeper=optuna",
    "hydra/help": "see rgpo-run --help",
}
FLAGS = {  # hydra's command-line options -> what to write instead
    "--cfg": "write --cfg job",
    "-c": "write --cfg job",
    "--info": "write --cfg job or plan=true",
    "--config-name": "write experiment=NAME with --config-dir D",
    "-cn": "write experiment=NAME with --config-dir D",
    "--config-path": "write --config-dir D",
    "-cp": "write --config-dir D",
    "--package": "write KEY=VALUE with the whole key",
    "-p": "write KEY=VALUE with the whole key",
    "--run": "leave it out",
    "-r": "leave it out",
    "--resolve": "write --cfg job, which resolves",
    "--hydra-help": "write --help",
    "--experimental-rerun": "repeat the command; it resumes the run",
    "--shell-completion": "leave it out",
    "-sc": "leave it out",
}


def refuse_option(word: str, following: str | None) -> None:
    """Raises: ConfigError for an argument that begins with a dash, with what to write instead."""
    name, equals, value = word.partition("=")
    key = name.lstrip("-")
    if name in FLAGS:
        remedy = FLAGS[name]
    elif key and (value if equals else following and "=" not in following):
        remedy = f"write {key}={value if equals else following}"
    else:
        remedy = "see rgpo-run --help"
    raise ConfigError(f"{word}: is neither key=value nor an option of rgpo-run; {remedy}.")


def without_sweeper_params(words: Sequence[str], parse: Callable[[str], Override]) -> list[str]:
    """Rewrite hydra.sweeper.params.KEY=VALUES and hydra.sweeper.params={KEY: VALUES} as KEY=VALUES, unless KEY is also typed.

    parse: parses an override with hydra's grammar; its errors are passed on unchanged.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key == SWEEPER_PARAMS:
            entries = parse(word).value()
            if not isinstance(entries, dict):
                raise ConfigError(f"{word}: is no mapping; give KEY: VALUES in braces, or write KEY=VALUES.")
            found |= {str(name): str(entry) for name, entry in entries.items()}
        elif key.startswith(f"{SWEEPER_PARAMS}.") and not word.startswith("~"):
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[key.removeprefix(f"{SWEEPER_PARAMS}.")] = str(parse(word).value()) if quoted else value
        else:
            rest.append(word)
    typed = {word.lstrip("+~").partition("=")[0] for word in rest}
    return [*(f"{key}={values}" for key, values in found.items() if key not in typed), *rest]


def refuse_hydra_words(word: str, item: Override) -> None:
    """Refuse overrides of hydra's own keys that could import or call code, or that would have no effect.

    Raises: ConfigError for any of hydra's own keys except those of launchers, sweepers, search paths and verbosity.
    """
    key = item.key_or_group
    if "hydra" not in (re.split("[./]", key)[0], str(item.package).partition(".")[0]):
        return
    if key in INSTEAD and item.package is None:
        raise ConfigError(f"{word}: is not read by rgpo-run; {INSTEAD[key]}.")
    if key == "hydra/sweeper" and item.value() not in SWEEPERS:
        raise ConfigError(f"{word}: is not a sweeper of rgpo-run; choose {' or '.join(SWEEPERS)}.")
    known = key in (*GROUPS, "hydra.verbose") or (key.startswith(SETTABLE) and "_target_" not in word)
    if key == "hydra.searchpath" and not item.is_delete():
        folders = item.value()
        known = isinstance(folders, list) and all(Path(str(x).removeprefix("file://")).is_dir() for x in folders)
    if not known or item.package is not None:
        remedy = "of hydra's own keys only those of hydra.launcher and hydra.sweeper can be set"
        raise ConfigError(f"{word}: is refused, because it could run other code; {remedy}.")


def read_by_optuna(key: str) -> str:
    """The rest of a message about a key of hydra.sweeper that this command's sweeper does not read."""
    if key.removeprefix("hydra.sweeper.") in OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "optuna.yaml"):
        return "is read by hydra/sweeper=optuna only; add hydra/sweeper=optuna, or leave it out."
    return "is read by no sweeper; leave it out."
