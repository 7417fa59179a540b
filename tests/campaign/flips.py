"""One flipped bit in a checkpoint or in a metrics file: named, or without any effect.

Most cases call what loads these files in the worker's own process; a few repeat the whole command.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import store
from .commands import fault, refused, rgpo_run
from .compare import columns, equal
from .corruptions import DAMAGES, the_run
from .damage import report, run_again, template
from .outcomes import HELD, REFUSED, WRONG, Case, Kind, Result

CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt")


def flip(file: Path, rng: random.Random) -> str:
    """Flip one bit; returns its place."""
    data = bytearray(file.read_bytes())
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"{file.name}, byte {place}, bit {bit}"


def copied(case: Case, half: bool) -> tuple[Path, Path]:
    """The run of the template, and a copy of it."""
    run = the_run(template(case.shared, "ppo", half) / "here" / "results")
    copy = case.folder / run.name
    shutil.copytree(run, copy)
    return run, copy


def with_words(read: Callable[[], Any]) -> tuple[Any, str]:
    """The value of `read` with everything that it printed or warned of; None with the sentence if it refuses."""
    from rgpo.errors import ConfigError, StorageError

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = read()
        except (ConfigError, StorageError) as error:
            return None, str(error)
    return found, printed.getvalue() + " ".join(str(warning.message) for warning in heard)


def judged(case: Case, what: str, read: Callable[[], str], expected: str, lesser: str = "") -> Result:
    """Held if `read` returns what is expected; refused if it gives a reason, and returns nothing or something lesser."""
    found, words = with_words(read)
    if found == expected:
        return Result(HELD, what)
    if words and found in (None, lesser):
        return Result(REFUSED, f"{what}: {words}")
    return Result(WRONG, f"{what}: {'other values' if found is not None else 'nothing'} and {words or 'no word'}")


def content(state: Any) -> str:
    """Every number of a nested state; repr distinguishes all of them."""
    import numpy as np
    import torch

    if isinstance(state, dict):
        return "{" + ",".join(f"{key!r}:{content(state[key])}" for key in state) + "}"
    if isinstance(state, list | tuple):
        return "[" + ",".join(map(content, state)) + "]"
    if isinstance(state, torch.Tensor):
        return f"{state.dtype}{tuple(state.shape)}{state.detach().contiguous().view(-1).numpy().tobytes().hex()}"
    if isinstance(state, np.ndarray):
        return f"{state.dtype}{state.shape}{state.tobytes().hex()}"
    return repr(state)


def load(run: Path) -> str:
    """The content of the checkpoint that a resumed run would continue from."""
    from rgpo.runtime import checkpoint

    return content(checkpoint.load(run, run.name.rsplit("-", 1)[1]))


@functools.cache
def checkpoints(run: Path) -> tuple[str, str]:
    """The content of the last checkpoint of an intact run, and of the one before."""
    from rgpo.runtime import checkpoint

    before = checkpoint.read(run / CHECKPOINTS[1], run.name.rsplit("-", 1)[1])
    return load(run), content(before)


def in_checkpoint(case: Case) -> Result:
    """A flip in one of the two checkpoints, loaded as for a resume."""
    run, copy = copied(case, half=True)
    what = flip(copy / CHECKPOINTS[case.number % 4 == 3], case.rng)
    last, before = checkpoints(run)
    return judged(case, what, partial(load, copy), last, before)


def table(run: Path) -> str:
    """All rows as rgpo.load returns them; the report reads them in the same way."""
    import rgpo

    frame = rgpo.load(run).metrics
    return repr({name: frame[name].tolist() for name in frame if not name.startswith(("time/", "speed/"))})


@functools.cache
def intact(run: Path) -> str:
    """All rows of an intact run."""
    found, words = with_words(partial(table, run))
    assert found is not None and not words, words
    return str(found)


def in_metrics(case: Case) -> Result:
    """A flip in metrics.parquet or in a part, read by rgpo.load; a part that is named may be left out."""
    half = case.number % 2 == 1
    run, copy = copied(case, half)
    file = case.rng.choice(sorted((copy / "metrics").glob("*.parquet"))) if half else copy / "metrics.parquet"
    what = flip(file, case.rng)
    found, words = with_words(partial(table, copy))
    if found == intact(run):
        return Result(HELD, what)
    return Result(REFUSED, f"{what}: {words}") if "parquet" in words else Result(WRONG, f"{what}: {words or 'no word'}")


def in_parts(case: Case) -> Result:
    """A flip in a part, from which a resumed run joins its rows."""
    from rgpo.runtime.metrics import MetricsWriter

    run, copy = copied(case, half=True)

    def join(folder: Path) -> str:
        writer = MetricsWriter(folder, {}, seed=1, attempt=9, metadata={})
        print(*writer.damage, *writer.lost(6, 0))
        writer.resume(6)
        return repr(columns(writer.finish()))

    whole = case.folder / "whole"
    shutil.copytree(run, whole)
    expected, complaint = with_words(partial(join, whole))
    what = flip(case.rng.choice(sorted((copy / "metrics").glob("*.parquet"))), case.rng)
    found, words = with_words(partial(join, copy))
    if found == expected and expected is not None:
        return Result(HELD, what)
    return Result(REFUSED, f"{what}: {words}") if words.strip() != complaint.strip() else Result(WRONG, f"{what}: no word")


def with_commands(case: Case) -> Result:
    """A flip in any file, then the same command or the report."""
    half, check = case.rng.random() < 0.5, case.rng.choice((run_again, report))
    made = template(case.shared, "ppo", half)
    here = case.folder / "here"
    shutil.copytree(made / "here", here, symlinks=True)
    run = the_run(here / "results")
    file = case.rng.choice([path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size])
    what = flip(file, case.rng)
    result = check(case, here, file, made, store.words(case.shared, "ppo"))
    return result._replace(detail=f"{what}: {result.detail}")


def in_compiled_code(case: Case) -> Result:
    """A flip, or another damage, in the cache of compiled code, which a second run finds."""

    def fill(folder: Path) -> None:
        (folder / "here").mkdir()
        env = {"RGPO_CACHE": str(folder / "cache")}
        ended = rgpo_run(store.words(case.shared, "compiled"), folder / "here", env=env, patience_s=300)
        assert ended.code == 0, ended

    made, here, cache = store.once(case.shared, "filled-cache", fill), case.folder / "here", case.folder / "cache"
    here.mkdir()
    shutil.copytree(made / "cache", cache)
    files = [path for path in sorted(cache.rglob("*")) if path.is_file() and path.stat().st_size]
    what = ""
    for file in case.rng.sample(files, case.rng.randint(1, min(4, len(files)))):
        if case.rng.random() < 0.7:
            what += flip(file, case.rng) + "; "
        else:
            name = case.rng.choice(("deleted", "emptied", "truncated", "garbage"))
            DAMAGES[name](file, case.rng)
            what += f"{file.name} {name}; "
    ended = rgpo_run(store.words(case.shared, "compiled"), here, env={"RGPO_CACHE": str(cache)}, patience_s=300)
    result = fault(ended) or (refused(ended) if ended.code else equal(here / "results", made / "here" / "results"))
    return result._replace(detail=f"{what}{result.detail}")


KINDS = [
    Kind("bit flip in a checkpoint", in_checkpoint, full=4400, share=150, timeout_s=60),
    Kind("bit flip in metrics, read", in_metrics, full=1200, share=60, timeout_s=60),
    Kind("bit flip in metrics, resumed", in_parts, full=400, share=20, timeout_s=60),
    Kind("bit flip in any file, whole command", with_commands, full=60, share=2),
    Kind("damage of compiled code", in_compiled_code, full=8, timeout_s=900),
]
