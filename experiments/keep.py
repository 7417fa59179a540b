"""python -m experiments.keep SOURCE EXPERIMENT...: copy finished runs from another checkout to results/.

    python -m experiments.keep ../long-runs/results matched_kl sensitivity
    python -m experiments.keep results factorial

Only config.yaml, provenance.json, state.json and the columns of metrics.parquet that the claims and the pages use are kept, about
a third of the file. The file lists the dropped columns, so that `rgpo-report verify RUN` does not compare them. Values are
unchanged. If the source is results/ itself, the runs in it are reduced in place.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from rgpo import atomic
from rgpo.report.read.rerun import LEFT_OUT
from rgpo.runtime import reader
from rgpo.runtime.parts import encode
from rgpo.runtime.reader import Unreadable
from rgpo.runtime.run_folder import RunState

RESULTS = Path("results")
BESIDE = ("config.yaml", "state.json")
UNREAD = re.compile(
    r"epoch/(weight_relative_mean|ess_ratio)|gate/.*|weight/(.*_q\d+|pos_mean|neg_mean)|.*_se|kl/(old|ref)_k\d|gradvar/.*_noise_share.*"
    r"|time/(?!iteration).*_cpu_s|grad/norm_max|advantage/.*|return/(train_std|length_mean|num_episodes)|ratio/(abs_log_max.*|min)"
    r"|loss/.*"
)
DETAIL = re.compile(r"epoch/kl_old_exact|time/(?!iteration).*_s")  # KL after every epoch, and the time that each phase takes
DETAILED = ("first_evidence", "epochs", "staleness", "language_frontier")  # experiments whose details are kept


def main(words: Sequence[str] | None = None) -> None:
    """Keep every completed run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.keep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path)
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    given = parser.parse_args(words)
    for name in given.experiments:
        folders = [folder for folder in sorted((given.source / name).iterdir()) if _completed(folder)]
        kept = sum(keep(folder, RESULTS / name / folder.name) for folder in folders)
        print(f"{name}: {len(folders)} completed runs, {kept} of them taken")


def _completed(folder: Path) -> bool:
    try:
        return reader.read_json(folder / "state.json", RunState).get("status") == "completed"
    except Unreadable:
        return False


def keep(folder: Path, target: Path) -> bool:
    """Write a run's rows without unused columns; returns False if the run was already there in this form."""
    if target != folder and target.exists():
        return False
    table = pq.read_table(folder / "metrics.parquet")
    metadata = table.schema.metadata or {}
    unread = [name for name in table.column_names if _is_unread(name, target.parent.name)]
    left_out = sorted({*json.loads(metadata.get(LEFT_OUT, b"[]")), *unread})
    table = table.drop_columns(unread).replace_schema_metadata({**metadata, LEFT_OUT: json.dumps(left_out).encode()})
    target.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if target != folder:
            shutil.copyfile(folder / name, target / name)
    facts = json.loads((folder / "provenance.json").read_text())
    atomic.write_text(target / "provenance.json", json.dumps(facts, separators=(",", ":")) + "\n")  # half the size
    atomic.write_bytes(target / "metrics.parquet", encode(table, keep_types=False))
    return bool(unread) or target != folder


def _is_unread(column: str, experiment: str) -> bool:
    return bool(UNREAD.fullmatch(column) or (experiment not in DETAILED and DETAIL.fullmatch(column)))


if __name__ == "__main__":
    main()
