"""rgpo-report: figures, tables and a page from the results folder alone (no torch); takes Hydra-style overrides."""

from __future__ import annotations

import sys

from rgpo import interrupt
from rgpo.leaving import run_program

TYPE_CHECKING = False  # not imported from typing, which would delay interrupt.exit_at_once()
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rgpo.report.read.run import Problem
    from rgpo.report.settings import Settings

TEXTS = ("results_dir", "out", "experiment", "baseline", "claims", "ledger", "host")  # taken literally, without a grammar
PATHS = ("results_dir", "out", "claims", "ledger")
VERIFIED = ("results_dir", "experiment")  # settings of `verify`
COMPARED = ("results_dir", "experiment", "final_fraction", "confidence")  # settings of `compare`
USAGE = """rgpo-report [key=value ...]
rgpo-report compare A B [key=value ...]
rgpo-report verify [results_dir=...] [experiment=...]
rgpo-report verify RUN [at=commit|head] [record=results/repeated.json]
rgpo-report import FILE name=... source=... license=... [key=value ...]

Reads results/<experiment>/<run>/ (running experiments too) and writes report/index.html, one self-contained page, with tables
(md, tex, csv) beside it, and with format=, figures (svg, pdf or png).

  rgpo-report
  rgpo-report experiment=first_evidence baseline=ppo 'figures=[learning_curves,kl]' out=report
  rgpo-report 'figures=[kl,frontier]' format=pdf width=3.5
  rgpo-report watch=true
  rgpo-report serve=true
  rgpo-report 'figures=[]' ledger=experiments/README.md
  rgpo-report claims=mine/
  rgpo-report compare results other/results

compare lists the changes beyond noise between two results folders, or between results_dir as committed at two commits.
verify reads every file of every run and compares it with the run's manifest of digests. verify RUN, a run's folder, repeats that
run at its commit (in a temporary checkout) or with the present code, and compares all columns but those that read a clock;
record= adds an equal repetition to a file, which the ledger shows.
import writes other people's results, Open RL Benchmark's csv or exports of W&B, as results/external/NAME.yaml (docs/claims.md).
A narrower command (experiment=, figures=) writes a narrower index.html; other files in report/ are kept.

exit code: 0 all fine; 1 written, except what stderr and index.html list as left out; 2 wrong usage or no results
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if argv is None:
        interrupt.exit_at_once()
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help", "help") for word in words):
        print(_help())
        return 0
    if "--version" in words:
        from rgpo.version import __version__

        print(f"rgpo-report {__version__}")
        return 0
    from rgpo.errors import MAX_LINE, ConfigError, printable

    try:
        return _main(words)
    except (ConfigError, OSError) as error:
        file = getattr(error, "filename", None) or "a file"
        sentence = str(error) if isinstance(error, ConfigError) else f"{file}: cannot be used ({error.strerror or error})"
        print(f"rgpo-report: {printable(sentence, MAX_LINE)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rgpo-report: interrupted; every file is either complete or unchanged", file=sys.stderr)
        return 130


def _main(words: Sequence[str]) -> int:
    if words[:1] == ["compare"]:
        return _compare(words[1:])
    if words[:1] == ["verify"]:
        return _verify(words[1:])
    if words[:1] == ["import"]:
        return _import(words[1:])
    settings, defaults = parse(words)
    if settings.serve:
        from rgpo.report.page.serve import serve

        return serve(settings, lambda: _report(settings, defaults, live=True), lambda line: print(line, flush=True))
    if settings.watch:
        from rgpo.report.page.watch import watch

        return watch(settings, lambda: _report(settings, defaults))
    return _report(settings, defaults)


def _report(settings: Settings, defaults: Settings, live: bool = False) -> int:
    import warnings

    from rgpo.report.build import build

    warnings.filterwarnings("ignore", category=RuntimeWarning)  # overflows, which the tables show as infinite
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    with interrupt.Raising():
        return _print(*build(settings, defaults, live))


def _verify(words: Sequence[str]) -> int:
    from rgpo.errors import require
    from rgpo.report.read.verify import verify

    if words and "=" not in words[0]:
        return _verify_run(words)
    unread = [word for word in words if word.partition("=")[0] not in VERIFIED]
    require(not unread, "verify", " ".join(unread), f"it reads only {' and '.join(VERIFIED)}; leave it out")
    with interrupt.Raising():
        return _print(*verify(parse(words)[0]))


def _verify_run(words: Sequence[str]) -> int:
    from rgpo.errors import require
    from rgpo.report.read.rerun import COMMIT, verify_run
    from rgpo.runtime.reader import user_path

    given = dict(word.partition("=")[::2] for word in words[1:])
    unread = [word for word in words[1:] if word.partition("=")[0] not in ("at", "record")]
    require(not unread, "verify", " ".join(unread), "it reads one run's folder, at= and record=; leave it out")
    record = user_path(given["record"]) if given.get("record") else None
    with interrupt.Raising():
        return _print(*verify_run(user_path(words[0]), given.get("at", COMMIT), record))


def _compare(words: Sequence[str]) -> int:
    from rgpo.errors import require
    from rgpo.report.tables.compare import compare

    require(len(words) >= 2, "compare", " ".join(words), "give two results folders or commits")
    unread = [word for word in words[2:] if word.partition("=")[0] not in COMPARED]
    require(not unread, "compare", " ".join(unread), f"it reads only {', '.join(COMPARED)}; leave it out")
    with interrupt.Raising():
        return _print(*compare(words[0], words[1], parse(words[2:])[0]))


def _import(words: Sequence[str]) -> int:
    from rgpo.errors import require
    from rgpo.report.claims.importer import import_results, words_of
    from rgpo.runtime.reader import user_path

    require(bool(words) and "=" not in words[0], "import", " ".join(words[:1]), "give a csv or a folder of W&B first")
    return _print(import_results(user_path(words[0]), words_of(words[1:])), [])


def _print(summary: str, problems: Sequence[Problem]) -> int:
    """Print problems to stderr and the summary to stdout, and return the exit code."""
    from rgpo.errors import MAX_LINE, printable

    for problem in problems:
        print(f"rgpo-report: {printable(str(problem), MAX_LINE)}", file=sys.stderr)
    print("\n".join(printable(line, MAX_LINE) for line in summary.splitlines()), flush=True)
    return 1 if problems else 0


def parse(words: Sequence[str]) -> tuple[Settings, Settings]:
    """The settings in conf/report.yaml with overrides, and without.

    Raises: ConfigError if an override is invalid.
    """
    from dataclasses import replace

    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    from rgpo.errors import ConfigError, close_matches, require
    from rgpo.paths import conf_dir
    from rgpo.report.settings import Settings
    from rgpo.runtime.former import canonical_name
    from rgpo.runtime.reader import user_path

    config = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.load(conf_dir() / "report.yaml"))
    defaults = OmegaConf.to_object(config)
    texts: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        require(bool(equals), "argument", word, "give key=value, or --help for the keys")
        if key in TEXTS:
            require(value != "", key, value, "it is empty; leave it out, or give a value")
            texts[key] = None if value == "null" and key not in ("results_dir", "out") else value
            continue
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
    texts |= {key: str(user_path(text)) for key, text in texts.items() if key in PATHS and text}
    settings = replace(settings, **texts)
    if settings.baseline:
        algo, space, rest = settings.baseline.partition(" ")
        settings = replace(settings, baseline=f"{canonical_name('algo', algo)}{space}{rest}")
    return settings, defaults


def _help() -> str:
    from rgpo.paths import conf_dir
    from rgpo.report.settings import FIGURES

    figures = f"figures: {', '.join(FIGURES)}"
    return f"{USAGE}\n{figures}\n\n{(conf_dir() / 'report.yaml').read_text(encoding='utf-8')}".rstrip()


def program() -> None:
    """Entry point of the console script; ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
