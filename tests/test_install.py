"""The wheel is complete: configuration inside, both commands, and a run from a folder that knows nothing of the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import rgpo

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
    for file in (ROOT / "rgpo").rglob("template/**/*"):
        assert file.is_dir() or str(file.relative_to(ROOT)) in names
    assert any("/template/" in name for name in names) and "rgpo/py.typed" in names
    entry = next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    assert "rgpo-run = rgpo.cli.run:program" in entry and "rgpo-report = rgpo.report.cli:program" in entry
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    words = ["task=cartpole", "num_iterations=2", "task.num_steps=32"]
    out = subprocess.run([sys.executable, "-m", "rgpo.cli.run", *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "no repository" in out.stdout  # it runs from the wheel, not from the checkout
    assert len(pd.read_parquet(next(tmp_path.rglob("metrics.parquet")))) == 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("archive", ["*.whl", "*.tar.gz"])
def test_an_archive_installs_and_runs_in_a_clean_environment(archive: str, built: Path, tmp_path: Path) -> None:
    """A new environment that has the dependencies of this one, but neither rgpo nor the checkout."""
    (file,) = built.glob(f"rgpo-{rgpo.__version__}{'-*' if 'whl' in archive else ''}{archive.removeprefix('*')}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean"], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    (site,) = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", file]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], env=env, check=True)
    where = subprocess.run(
        [python, "-c", "import rgpo; print(rgpo.__file__)"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert where.stdout.startswith(str(site)), where.stderr
    words = ["task=cartpole", "num_iterations=2", "task.num_steps=32"]
    for command in ([python.parent / "rgpo-run", *words], [python.parent / "rgpo-report", "figures=[kl]", "format=svg"]):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report" / "index.html").is_file()
