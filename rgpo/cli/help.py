"""Help texts of rgpo-run: a short introduction, the overview, and the options of one group."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rgpo.cli.config_dir import group_options
from rgpo.errors import close_matches
from rgpo.paths import conf_dir

SHORT = """\
rgpo-run [-m] key=value ...

  rgpo-run algo=ppo task=cartpole                     train for half a minute; the same command again resumes it
  rgpo-run -m algo=ppo,rgpo task=hopper seed=1,2,3    run every combination; then rgpo-report draws them
  rgpo-run --help gate                                the gates, a line for each; rgpo-run --help names everything
"""
HELP = """\
rgpo-run [-m] [key=value ...]     run one experiment, or with -m a sweep over comma-separated values

  rgpo-run algo=rgpo task=hopper
  rgpo-run -m algo=rgpo gate=sigmoid,sigmoid_log seed=1,2,3
  rgpo-run -m experiment=first_evidence

  algo=              {algo}
  task=              {task}
  scale=             {scale} (of task=qwen_rlhf)
  gate=              {gate}
  gate@ref_gate=     a second gate, on the ratio to the reference policy (language tasks)
  gate_combination=  {gate_combination}
  advantage=         {advantage}
  penalty=           {penalty}
  update=            {update}
  experiment=        {experiment} (run with -m)

  hydra/launcher=    joblib ray submitit_slurm (with -m: several runs at once)
  hydra/sweeper=     optuna (with -m: search ranges of values)

  seed num_iterations total_env_steps results_dir name num_threads memory_gb
  resume_from=RUN    continue a finished run for longer: give a greater total_env_steps or num_iterations
  save_model=false   write neither policy/ nor model/ at the end; rgpo-export does it later
  on_failure=stop    with -m: start no further run once one has failed
  plan=true          list runs and cells, what is done, expected CPU-hours and parts without starting any
  force=true         move existing run folders aside and start again
  --config-dir D     add options from your own folder D/gate, D/algo, ...
  --cfg job          print the whole configuration; --version; -h, --help; --help gate, one line for each gate

Classes of your own, named by _target_ in yaml, are imported from the current directory, --config-dir or PYTHONPATH.
The same command again resumes interrupted runs and skips completed ones.
"""
GROUPS = ("algo", "task", "scale", "gate", "gate_combination", "advantage", "penalty", "update", "experiment")
WIDTH = 130


def show(words: Sequence[str]) -> int:
    """Print the requested help text and return the exit code, which is 2 if a group does not exist."""
    wanted = [word for word in words if not word.startswith("-") and "=" not in word]
    if not words:
        print(SHORT, end="")
    elif not wanted:
        print(overview(), end="")
    for group in wanted:
        if group not in GROUPS:
            near = close_matches(group, GROUPS) or f" There are {', '.join(GROUPS)}."
            print(f"rgpo-run: --help {group}: is not a group of options.{near}", file=sys.stderr)
            return 2
        print(describe(group), end="")
    return 0


def overview() -> str:
    """Every group with the names of its options, and the remaining arguments."""
    indent = " " * len(HELP[: HELP.index("{algo}")].rpartition("\n")[2])
    options = {
        group: textwrap.fill(" ".join(group_options(group)), WIDTH, initial_indent=indent, subsequent_indent=indent).lstrip()
        for group in GROUPS
    }
    return HELP.format(**options)


def describe(group: str) -> str:
    """The name and meaning of each option of a group."""
    names = group_options(group)
    indent = " " * (max(map(len, names)) + 4)
    lines = (f"  {name:{len(indent) - 4}}  {meaning(conf_dir() / group / f'{name}.yaml')}" for name in names)
    return "".join(textwrap.fill(line, WIDTH, subsequent_indent=indent) + "\n" for line in lines)


def meaning(path: Path) -> str:
    """The comment at the top of an option's file, or else the first line of its class's docstring, or else its environment."""
    import yaml

    from rgpo.cli.targets import find_target

    text = path.read_text(encoding="utf-8")
    comment: list[str] = []
    for line in text.splitlines():
        if line.startswith("# @"):
            continue
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    if comment:
        return " ".join(comment)
    node = yaml.safe_load(text)
    target = node.get("_target_")
    if isinstance(target, str):
        return (find_target(path.stem, target).__doc__ or target).partition("\n")[0].rstrip(".")
    env_id = (node.get("task") or {}).get("env_id")
    return f"gymnasium's {env_id}" if env_id else ""
