"""The command line of the bandit: options, parameters, table and errors."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rgpo.bandit.__main__ import load, main
from rgpo.bandit.laws import Gaussian, Pareto
from rgpo.bandit.measure import measure, truth
from rgpo.cli.config_dir import group_options
from rgpo.core import gates
from rgpo.errors import ConfigError


@pytest.mark.parametrize("name", ["sigmoid", "clip"])
def test_yaml_names_the_laws(name: str) -> None:
    assert group_options("law") == ["gaussian", "pareto"]
    for option, law in (("pareto", Pareto(tail_index=1.5)), ("gaussian", Gaussian(mean=0.5, std=1.2))):
        assert load("law", option, {}) == law
        assert math.isfinite(truth(load("gate", name, {}), law).weight_mean)


def test_command_line_prints_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.parquet"
    words = ["gate=clip", "gate.cap=3", "law=gaussian", "law.std=1.3", "num_samples=50", "growth=2", "num_sizes=3", "seed=7"]
    assert main([*words, f"out={out}"]) == 0
    gate, law = gates.Clip(eps_low=0.2, eps_high=0.2, cap=3), Gaussian(mean=0.5, std=1.3)
    expected = measure(gate, law, [50, 100, 200], seed=7)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == list(expected) and len(printed) == 4
    assert printed[3].split()[:2] == ["200", f"{expected.weight_mean[2]:.5g}"]


def test_command_line_takes_gates_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "mine.yaml").write_text("_target_: rgpo.core.gates.Sigmoid\nscale: none\nsharpness: ???\n")
    gate = load("gate", "mine", {"sharpness": 4}, str(tmp_path))
    assert gate == gates.Sigmoid(sharpness=4)
    with pytest.raises(ConfigError, match=r"gate\.sharpness: .*give it on the command line"):
        load("gate", "mine", {}, str(tmp_path))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gate=sigmiod"], "gate=sigmiod: is not an option of the group gate. Did you mean sigmoid"),
        (["law=cauchy"], "law=cauchy: is not an option of the group law. The options are gaussian, pareto."),
        (["gate.sharpnes=3"], "gate.sharpnes=3: is not a known key and would be ignored. Did you mean sharpness?"),
        (["gate.sharpness=abc"], "gate.sharpness=abc: must be a number."),
        (["law.tail_index=1"], "law.tail_index=1: must be a finite number above 1, at most 1e6."),
        (["law.tail_index=1e20"], "law.tail_index=1e+20: must be a finite number above 1"),
        (["law=gaussian", "law.mean=100"], "law.mean=100: is over 290 nats"),
        (["law=gaussian", "law.std=1e-6"], "law.mean=0.5: is over 290 nats of log ratio away for std=1e-06"),
        (
            ["gate.sharpness=99999999999999999999"],
            "gate.sharpness=99999999999999999999: is a whole number of over 63 bits; write it as 1e+20.",
        ),
        (["gate.sharpness=&a [*a]"], "gate.sharpness=&a [*a]: "),
        (["num_samples=???"], "num_samples=???: "),
        (["seed=${x}"], "seed=${x}: Interpolation key 'x' not found"),
        (["law.std=1.3"], "law.std=1.3: is not a known key and would be ignored. The keys are tail_index."),
        (["num_sample=100"], "num_sample=100: is not a known key. Did you mean num_samples, num_sizes?"),
        (["num_samples=many"], "num_samples=many: Value 'many' of type 'str' could not be converted to Integer."),
        (["num_samples=1000000000", "num_sizes=1"], "num_samples=1000000000: 1,000,000,000 samples need 80.0 GB of memory"),
        (["growth=[1"], "growth=[1: "),
        (["seed=-1"], "seed=-1: must not be negative."),
        (["out=/nowhere/table.parquet"], "out=/nowhere/table.parquet: the folder /nowhere does not exist; create it first."),
        (["gate@ref_gate=budget"], "gate@ref_gate=budget: is not a known key."),  # the exact values hold for one gate
        (["advantage=exponential"], "advantage=exponential: is not a known key."),  # and for A = +-1
        (["sigmoid"], "command line=sigmoid: is not of the form key=value"),
        (["--gate"], "command line: unrecognized arguments: --gate"),
    ],
)
def test_command_line_refuses_in_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgpo.bandit.__main__.available_gb", lambda: 16.0)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"rgpo.bandit: {sentence}")
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_the_module_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "rgpo.bandit", "--help"], capture_output=True, text=True, check=True)
    for word in ("num_samples=N", "gaussian pareto", "sigmoid_log", "out=FILE", "seed=1"):
        assert word in done.stdout
    assert subprocess.run([sys.executable, "-m", "rgpo.bandit", "seed=x"], capture_output=True).returncode == 2
