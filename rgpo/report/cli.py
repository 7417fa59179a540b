"""rgpo-report: figures, tables and a page from the results folder alone (no torch), with Hydra-style overrides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rgpo.report.settings import Settings

USAGE = """rgpo-report [key=value ...]

Reads results/<experiment>/<run>/ (running experiments too) and writes report/index.md with figures (svg, png, pdf) and
tables (md, tex, csv).

  rgpo-report
  rgpo-report experiment=first_evidence baseline=ppo 'figures=[learning_curves,kl]' out=report

A narrower command (experiment=, figures=) writes a narrower index.md; other files in report/ stay.

exit code: 0 all fine; 1 written, but what stderr and index.md name was left out; 2 wrong usage or no results
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help", "help") for word in words):
        print(_help())
        return 0
    if "--version" in words:
        import rgpo

        print(f"rgpo-report {rgpo.__version__}")
        return 0
    from rgpo.errors import ConfigError

    try:
        settings, defaults = parse(words)
        from rgpo.report.build import build

        outcome = build(settings, defaults)
    except ConfigError as error:
        print(f"rgpo-report: {error}", file=sys.stderr)
        return 2
    for problem in outcome.problems:
        print(f"rgpo-report: {problem}", file=sys.stderr)
    print(outcome.summary)
    return 1 if outcome.problems else 0


def parse(words: Sequence[str]) -> tuple[Settings, Settings]:
    """Settings of conf/report.yaml with the overrides, and of conf/report.yaml alone. ConfigError in one sentence."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    from rgpo.errors import ConfigError, close_matches, require
    from rgpo.paths import conf_dir
    from rgpo.report.settings import Settings

    config = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.load(conf_dir() / "report.yaml"))
    defaults = OmegaConf.to_object(config)
    for word in words:
        key, equals, value = word.partition("=")
        require(bool(equals), "argument", word, "give key=value, or --help for the keys")
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([word]))
            OmegaConf.resolve(config)
        except ConfigKeyError:
            known = [str(name) for name in config]
            near = close_matches(key.lstrip("+~"), known) or f" The keys are {', '.join(known)}."
            raise ConfigError(f"{key}={value}: there is no such key.{near}") from None
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            reason = " ".join(str(error).splitlines()[0].split())
            shown = f"a list, {key}=[{value}]" if "ListConfig" in reason else f"another value ({reason})"
            raise ConfigError(f"{key}={value}: cannot be used; give {shown}, or see rgpo-report --help") from None
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings) and isinstance(defaults, Settings)
    return settings, defaults


def _help() -> str:
    from rgpo.paths import conf_dir

    return f"{USAGE}\n{(conf_dir() / 'report.yaml').read_text(encoding='utf-8')}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
