"""python -m experiments.theory [name ...]: run the experiments named, or all; then judge, draw and write docs/theory.md.

`page` as a name only judges, draws and writes, from the tables in the results folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyarrow as pa
import torch

from experiments.theory import page
from experiments.theory.common import Verdict
from rgpo.report.claims.theory import MADE, theory_digests
from rgpo.report.figures import style
from rgpo.runtime.parts import write_atomically

NAMES = ("heavy_tail", "weights", "bias", "improvement", "drift", "cost", "gradient_variance", "sharpness")
DPI = 160


def main(words: list[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.theory", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, "page", []], help="experiments; none means all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs; the numbers mean nothing")
    parser.add_argument("--results", type=Path, default=Path("results/theory"), help="folder of the tables")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of theory.md and figures/")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    for name in given.names or NAMES:
        if name != "page":
            start = time.monotonic()
            _save(name, experiment(name).measure(given.smoke), given.results)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    _record(given.results, given.names, given.smoke)
    publish(given.results, given.docs)


def _record(folder: Path, names: list[str], smoke: bool) -> None:
    """Record the code of a whole set; a part of it that is made by other code leaves no record."""
    here = folder / MADE
    made: dict[str, str] = {}
    if not names or set(names) >= {*NAMES}:
        commit = None if smoke else _commit()
        made = dict(zip(("commit", "code", "cost_code"), (commit, *theory_digests()), strict=True)) if commit else {}
    elif here.exists():
        made = json.loads(here.read_text())
        made = made if names == ["page"] or (made.get("code"), made.get("cost_code")) == theory_digests() else {}
    here.unlink(missing_ok=True)
    if made:
        here.write_text(json.dumps(made) + "\n")


def _commit() -> str | None:
    """The commit; None where there are uncommitted changes or no repository."""
    changes = _git("status", "--porcelain", "--untracked-files=no", "rgpo", "conf", "experiments/theory")
    return _git("rev-parse", "HEAD") if changes == "" else None


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parents[2])  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else None


def experiment(name: str) -> ModuleType:
    """The module of one experiment."""
    return import_module(f"experiments.theory.{name}")


def _save(name: str, tables: dict[str, pd.DataFrame], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key, frame in tables.items():
        write_atomically(_compact(frame), folder / f"{name}_{key}.parquet")


def _compact(frame: pd.DataFrame) -> pa.Table:
    """Floats as 32 bits, text as a dictionary."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    text = pa.dictionary(pa.int32(), pa.string())
    types = {pa.float64(): pa.float32(), pa.string(): text, pa.large_string(): text}
    fields = [pa.field(f.name, text if pa.types.is_dictionary(f.type) else types.get(f.type, f.type)) for f in table.schema]
    return table.cast(pa.schema(fields))


def load_tables(name: str, folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of one experiment.

    Raises: SystemExit, with the command that makes them, if there are none.
    """
    files = sorted(folder.glob(f"{name}_*.parquet"))
    if not files:
        raise SystemExit(f"{folder} has no tables of {name}; make them with `python -m experiments.theory {name}`")
    return {file.stem.removeprefix(f"{name}_"): _read(file) for file in files}


def _read(file: Path) -> pd.DataFrame:
    frame = pd.read_parquet(file)
    words = frame.select_dtypes("category").columns
    floats = frame.select_dtypes("float32").columns
    return frame.astype(dict.fromkeys(words, "object") | dict.fromkeys(floats, "float64"))


def publish(results: Path, docs: Path) -> None:
    """Verdicts, figures and the page, from the tables alone."""
    tables = {name: load_tables(name, results) for name in NAMES}
    rows = [row for name in NAMES for row in experiment(name).verdicts(tables[name])]
    verdicts = pd.DataFrame(rows, columns=Verdict._fields)
    write_atomically(
        pa.Table.from_pandas(verdicts, preserve_index=False).replace_schema_metadata(None), results / "verdicts.parquet"
    )
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        with style.context():
            figure = experiment(name).draw(tables[name])
            for kind, content in style.save(figure, f"theory_{name}", ("svg", "png"), DPI).items():
                (docs / "figures" / f"theory_{name}.{kind}").write_bytes(content)
    (docs / "theory.md").write_text(page.render({name: experiment(name).numbers(tables[name]) for name in NAMES}, verdicts))
    print(f"{docs / 'theory.md'}: {len(verdicts)} verdicts, {len(NAMES)} figures")


if __name__ == "__main__":
    main()
