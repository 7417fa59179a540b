"""Command line of the bandit: python -m rgpo.bandit [key=value ...]."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import OmegaConf

from rgpo.bandit.laws import Law
from rgpo.cli.config import make
from rgpo.cli.config_dir import group_options
from rgpo.cli.targets import make_importable
from rgpo.core.gate import GateLike
from rgpo.errors import ConfigError, close_matches, first_line, require
from rgpo.paths import conf_dir
from rgpo.runtime.reader import user_path
from rgpo.runtime.resources import available_gb

if TYPE_CHECKING:
    from pandas import DataFrame

GROUPS = {"gate": GateLike, "law": Law}
INDENT = " " * 19  # of the second column of HELP
BYTES_PER_SAMPLE = 80  # at the peak
HELP = """\
Measure a gate on probability ratios of a known law; nothing is trained.

  gate=NAME        {gates}
  law=NAME         {laws}
  gate.KEY=VALUE   a parameter of the gate, for example gate.sharpness=4
  law.KEY=VALUE    a parameter of the law: law.tail_index (pareto), law.mean and law.std (gaussian)
  num_samples=N    samples of the first row
  growth=X         factor from one row to the next
  num_sizes=N      rows
  seed=N           of the samples
  out=FILE         parquet file to write the table to

defaults: {defaults}

The table has one row per sample size: mean and variance of the weight w and of one sample's gradient w A s, each beside its
exact value (_true), which is inf where a moment diverges.
"""


@dataclass(kw_only=True)
class Settings:
    """Keys of the command line, apart from the parameters of gate and law."""

    gate: str = "sigmoid"
    law: str = "pareto"
    num_samples: int = 100
    growth: float = 10**0.25  # 17 rows from 1e2 to 1e6 samples
    num_sizes: int = 17
    seed: int = 1
    out: str | None = None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see python -m rgpo.bandit --help.")


def main(words: list[str] | None = None) -> int:
    """Print the table; exit code 0, or 2 with one sentence."""
    try:
        arguments = _parser().parse_args(words)
        settings, changes = parse(arguments.words)
        parts = {group: load(group, getattr(settings, group), changes[group], arguments.config_dir) for group in GROUPS}
        _run(settings, **parts)
    except ConfigError as error:
        print(f"rgpo.bandit: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    defaults = " ".join(f"{key}={value:.5g}" if key == "growth" else f"{key}={value}" for key, value in vars(Settings()).items())
    gates, laws = (
        textwrap.fill(" ".join(group_options(group)), 120, initial_indent=INDENT, subsequent_indent=INDENT).lstrip()
        for group in GROUPS
    )
    text = HELP.format(gates=gates, laws=laws, defaults=defaults.removesuffix(" out=None"))
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m rgpo.bandit", description=text, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--config-dir", metavar="D", help="folder of your own options D/gate and D/law")
    return parser


def parse(words: list[str]) -> tuple[Settings, dict[str, dict[str, object]]]:
    """Settings, and the changed parameters of gate and law, by dotted name.

    Raises: ConfigError for an unknown key or a value of the wrong type.
    """
    names = [field.name for field in fields(Settings)]
    config = OmegaConf.structured(Settings)
    changes: dict[str, dict[str, object]] = {group: {} for group in GROUPS}
    for word in words:
        key, equals, value = word.partition("=")
        require(bool(equals), "command line", word, "is not of the form key=value; see python -m rgpo.bandit --help.")
        head, _, rest = key.partition(".")
        try:
            if rest and head in GROUPS:
                changes[head][rest] = OmegaConf.select(OmegaConf.from_dotlist([f"value={value}"]), "value")
            elif key in names:
                config.merge_with_dotlist([word])
            else:
                near = close_matches(key, names) or f" The keys are {', '.join(names)}."
                raise ConfigError(f"{key}={value}: is not a known key.{near}")
            _ = OmegaConf.to_object(config)
        except ConfigError:
            raise
        except Exception as error:  # whatever OmegaConf and yaml raise
            raise ConfigError(f"{key}={value}: {first_line(error)}.") from None
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    return settings, changes


def load(group: str, name: str, changes: Mapping[str, object], config_dir: str | None = None) -> Any:
    """The object of conf/<group>/<name>.yaml, or of the user's folder, with some parameters changed.

    Raises: ConfigError for an unknown option or parameter, or a value that the object does not accept.
    """
    make_importable(config_dir)
    options = group_options(group, config_dir)
    near = close_matches(name, options) or f" The options are {', '.join(options)}."
    require(name in options, group, name, f"is not an option of the group {group}.{near}")
    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    file = next(f for folder in folders if (f := folder / group / f"{name}.yaml").is_file())
    try:
        node = OmegaConf.load(file)
        for key, value in changes.items():
            OmegaConf.update(node, key, value, force_add=True)
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except Exception as error:  # whatever OmegaConf and its resolvers raise
        key = getattr(error, "full_key", None) or name
        raise ConfigError(f"{group}.{key}: {first_line(error)}; give it on the command line.") from error
    return make(group, plain, GROUPS[group])


def _run(settings: Settings, gate: GateLike, law: Law) -> None:
    from rgpo.bandit.measure import growing_sizes, measure

    reads = "the batch of a gradient step" if gate.needs_batch else "old probabilities"
    needless = not (gate.needs_batch or gate.needs_logp_old)
    require(needless, "gate", settings.gate, f"reads {reads}, which a law of the ratio alone does not have; choose another gate.")
    sizes = growing_sizes(settings.num_samples, settings.growth, settings.num_sizes)
    if settings.out is not None:
        folder = user_path(settings.out).absolute().parent
        require(folder.is_dir(), "out", settings.out, f"the folder {folder} does not exist; create it first.")
    require(settings.seed >= 0, "seed", settings.seed, "must not be negative.")
    gigabytes = sizes[-1] * BYTES_PER_SAMPLE / 1e9
    remedy = (
        f"{sizes[-1]:,} samples need {gigabytes:,.1f} GB of memory, more than is free; lower num_samples, growth or num_sizes."
    )
    require(gigabytes < available_gb(), "num_samples", settings.num_samples, remedy)
    table = measure(gate, law, sizes, settings.seed)
    print(table.to_string(index=False, float_format="{:.5g}".format))
    if settings.out is not None:
        _write(table, user_path(settings.out))


def _write(table: DataFrame, out: Path) -> None:
    import pyarrow as pa

    from rgpo.runtime.parts import write_atomically

    try:
        write_atomically(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None), out)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); choose another file.") from error


if __name__ == "__main__":
    sys.exit(main())
