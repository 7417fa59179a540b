"""The wheel is complete: configuration inside, both commands, and a run from a folder that knows nothing of the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def test_the_wheel_runs_by_itself(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("rgpo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for file in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "claims").rglob("*.yaml")]:
        assert f"rgpo/{file.relative_to(ROOT)}" in names
    for file in (ROOT / "rgpo").rglob("template/*"):
        assert str(file.relative_to(ROOT)) in names
    assert any("/template/" in name for name in names) and "rgpo/py.typed" in names
    entry = next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    assert "rgpo-run = rgpo.cli.run:main" in entry and "rgpo-report = rgpo.report.cli:main" in entry
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    words = ["task=cartpole", "num_iterations=2", "task.num_steps=32"]
    out = subprocess.run([sys.executable, "-m", "rgpo.cli.run", *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "no repository" in out.stdout  # it runs from the wheel, not from the checkout
    assert len(pd.read_parquet(next(tmp_path.rglob("metrics.parquet")))) == 2
