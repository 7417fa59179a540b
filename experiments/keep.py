"""python -m experiments.keep SOURCE EXPERIMENT...: copy finished runs from another checkout to results/.

    python -m experiments.keep ../long-runs/results matched_kl sensitivity
    python -m experiments.keep results factorial

Only config.yaml, provenance.json, state.json and the columns of metrics.parquet that the claims and the pages use are kept, about
a quarter of the file, and the curve of an arm's gate with seed 1 only. The file lists the dropped columns, so that
`rgpo-report verify RUN` does not compare them. Values are unchanged. If the source is results/ itself, runs that were kept before
are reduced further in place.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rgpo import atomic
from rgpo.errors import first_line
from rgpo.report.read.load import CHECKED, run_folders
from rgpo.report.read.rerun import LEFT_OUT
from rgpo.runtime import manifest, reader
from rgpo.runtime.parts import encode
from rgpo.runtime.reader import Unreadable
from rgpo.runtime.run_folder import RunState

RESULTS = Path("results")
BESIDE = ("config.yaml", "state.json")
UNREAD = re.compile(
    r"epoch/(weight_relative_mean|ess_ratio)|gate/.*|weight/(.*_q\d+|pos_mean|neg_mean)|.*_se|kl/(old|ref)_k\d|gradvar/.*_noise_share.*"
    r"|time/(?!iteration).*_cpu_s|grad/norm_max|advantage/.*|return/(train_std|length_mean|num_episodes)|ratio/(abs_log_max.*|min)"
    r"|loss/.*|grad/norm_mean|ratio/clip_fraction|value/explained_variance"
)
DETAIL = re.compile(r"epoch/kl_old_exact|time/(?!iteration).*_s|speed/.*")  # KL after every epoch, and times beside other runs
DETAILED = ("first_evidence", "epochs")  # experiments whose details are kept


def main(words: Sequence[str] | None = None) -> int:
    """Keep every completed run; returns 1 if some could not be kept, else 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.keep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path)
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    given = parser.parse_args(words)
    problems = []
    for name in given.experiments:
        try:
            folders = run_folders(given.source / name)
        except Unreadable as error:
            parser.error(f"{given.source / name}: {error}; give a results folder and the names of experiments in it")
        num_completed = num_taken = 0
        for folder in folders:
            try:
                if reader.read_json(folder / "state.json", RunState).get("status") != "completed":
                    continue
                num_completed += 1
                num_taken += keep(folder, RESULTS / name / folder.name)
            except (Unreadable, OSError) as error:
                problems.append(f"{name}/{folder.name}: {first_line(error)}; it is left out")
        print(f"{name}: {num_completed} completed runs, {num_taken} of them taken")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def keep(folder: Path, target: Path) -> bool:
    """Write a run's rows without unused columns; returns False if the run was already there in this form.

    Raises: Unreadable if a file of the run is damaged or missing, or if a run that has a manifest is to be reduced in place.
    """
    if target != folder and target.exists():
        return False
    if damaged := manifest.problems(folder, CHECKED):
        raise Unreadable("; ".join(damaged))
    if target == folder and (folder / manifest.NAME).exists():
        raise Unreadable(f"it has a {manifest.NAME}, whose digests would not fit; keep it from another results folder")
    with reader.parquet(folder / "metrics.parquet") as file:
        table, metadata = file.read(), file.schema_arrow.metadata or {}
    unread = [name for name in table.column_names if _is_unread(name, target.parent.name)]
    left_out = sorted({*json.loads(metadata.get(LEFT_OUT, b"[]")), *unread})
    table = table.drop_columns(unread).replace_schema_metadata({**metadata, LEFT_OUT: json.dumps(left_out).encode()})
    beside = {name: reader.read_text(folder / name) for name in BESIDE}
    try:
        facts = json.loads(reader.read_text(folder / "provenance.json"))
    except ValueError:
        raise Unreadable("provenance.json is not JSON") from None
    if reader.parse_yaml(folder / "config.yaml", beside["config.yaml"]).get("seed") != 1:
        facts.pop("gate_curve", None)
    short = json.dumps(facts, separators=(",", ":"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keeping-", dir=target.parent) as aside:
        new = Path(aside) / target.name if target != folder else target
        new.mkdir(exist_ok=True)
        for name, text in {**beside, "provenance.json": f"{short}\n"}.items():
            atomic.write_text(new / name, text)
        atomic.write_bytes(new / "metrics.parquet", encode(table, keep_types=False))
        if new != target:
            new.rename(target)
    return bool(unread) or target != folder


def _is_unread(column: str, experiment: str) -> bool:
    return bool(UNREAD.fullmatch(column) or (experiment not in DETAILED and DETAIL.fullmatch(column)))


if __name__ == "__main__":
    sys.exit(main())
