"""resume_from: a finished run is continued for longer by a new one, which has all rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from cli import rgpo_run, start, the_run
from test_language_cli import parts as parts
from test_language_cli import words as language_words
from test_resume import wait_for_iteration

import rgpo
from rgpo.cli.config import compose_jobs
from rgpo.runtime import continuation, former, manifest, schema

TINY = ("algo=ppo", "task=cartpole", "task.num_envs=2", "task.num_steps=32", "task.num_eval_episodes=2", "eval_every=2")
TINY += ("gradvar_every=0", "update.num_minibatches=4", "task.normalize_observation=true", "update.compile=false")


def measured(run: rgpo.Run) -> pd.DataFrame:
    frame = run.metrics
    return frame[[name for name in frame if not str(name).startswith(schema.CLOCK_PREFIXES) and name != "attempt"]]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> rgpo.Run:
    return rgpo.run(*TINY, "num_iterations=4", "update.anneal_lr=false", f"results_dir={tmp_path_factory.mktemp('short')}")


def test_without_annealing_it_is_the_longer_run_bit_for_bit(
    short: rgpo.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*TINY, "update.anneal_lr=false", "num_iterations=8", f"results_dir={tmp_path}")
    capsys.readouterr()
    longer = rgpo.run(*words, f"resume_from={short.folder}")
    text = capsys.readouterr().out
    assert f"continues {short.folder.name} after iteration 4\n" in text and "resumes after iteration 4 of 8" in text
    pd.testing.assert_frame_equal(measured(longer), measured(rgpo.run(*words)))
    assert longer.metrics.iteration.tolist() == list(range(1, 9))
    assert longer.evaluate()["return/eval_mean"] == pytest.approx(longer.metrics["return/eval_mean"].iloc[-1])
    stored = pd.read_parquet(longer.folder / "metrics.parquet")
    assert set(stored.run_id) == {longer.folder.name} and len(set(stored.config_hash)) == 1
    assert manifest.problems(longer.folder) == [] and manifest.problems(short.folder) == []
    assert longer.config["resume_from"] == str(short.folder) and (longer.folder / "policy").is_dir()


def test_the_annealed_learning_rate_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = rgpo.run(*TINY, "num_iterations=4", f"results_dir={tmp_path}")
    capsys.readouterr()
    rgpo.run(*TINY, "total_env_steps=1024", f"resume_from={run.folder}", f"results_dir={tmp_path}")
    sentence = "its learning rate was annealed to 0 over 4 iterations and continues at 0.75 of its initial value, "
    sentence += "to reach 0 at iteration 16"
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["trpo", "rgpo", "a2c"])
def test_other_algorithms_continue(algo: str, tmp_path: Path) -> None:
    words = [w for w in TINY if not w.startswith(("algo", "update") if algo != "rgpo" else "algo")]
    run = rgpo.run(f"algo={algo}", *words, "num_iterations=2", f"results_dir={tmp_path}")
    longer = rgpo.run(f"algo={algo}", *words, "num_iterations=3", f"resume_from={run.folder}", f"results_dir={tmp_path}")
    assert len(longer.metrics) == 3
    same = [name for name in measured(run) if not name.startswith("epoch/")]
    pd.testing.assert_frame_equal(measured(longer)[same][:2], measured(run)[same])


def test_language_continues_with_its_samples(parts: Path, tmp_path: Path) -> None:
    words = [w for w in language_words(parts, "algo=grpo", "task.lora.rank=2") if not w.startswith("num_iterations")]
    run = rgpo.run(*words, "num_iterations=2", f"results_dir={tmp_path}")
    longer = rgpo.run(*words, "num_iterations=4", f"resume_from={run.folder}", f"results_dir={tmp_path}")
    assert longer.metrics.iteration.tolist() == [1, 2, 3, 4] and sorted(set(longer.samples.iteration)) == [0, 2, 4]
    assert (longer.folder / "model" / "adapter_model.safetensors").exists()
    assert set(longer.samples.run_id) == {longer.folder.name}


def test_a_killed_continuation_resumes(short: rgpo.Run, tmp_path: Path) -> None:
    words = [*TINY, "update.anneal_lr=false", "num_iterations=100", "checkpoint_every_s=0", f"resume_from={short.folder}"]
    process = start(words, tmp_path)
    wait_for_iteration(tmp_path / "results", 20, process)
    process.kill()
    process.wait()
    text = rgpo_run(words, tmp_path)
    assert "attempt 2 resumes after iteration" in text and "continues" not in text
    whole = rgpo.run(*TINY, "update.anneal_lr=false", "num_iterations=100", f"results_dir={tmp_path / 'whole'}")
    pd.testing.assert_frame_equal(measured(rgpo.load(the_run(tmp_path / "results"))), measured(whole))


def test_a_chain_and_a_moved_results_folder(short: rgpo.Run, tmp_path: Path) -> None:
    words = (*TINY, "update.anneal_lr=false", f"results_dir={tmp_path}")
    second = rgpo.run(*words, "num_iterations=5", f"resume_from={short.folder}")
    third = rgpo.run(*words, "num_iterations=6", f"resume_from={second.folder}")
    assert len(third.metrics) == 6
    moved = shutil.copytree(short.folder, tmp_path / "elsewhere" / short.folder.name)
    assert rgpo.run(*words, "num_iterations=5", f"resume_from={moved}").folder == second.folder


def test_the_key_leaves_all_other_hashes_as_they_were() -> None:
    (job,) = compose_jobs([*TINY, "num_iterations=4"], False, None)
    (other,) = compose_jobs([*TINY, "num_iterations=4", "resume_from=null", "save_model=false"], False, None)
    assert job.run_dir == other.run_dir and job.config["resume_from"] is None and job.config["save_model"] is True
    without = {key: value for key, value in job.config.items() if key not in ("resume_from", "save_model")}
    assert former.canonical_config(without)["resume_from"] is None and former.canonical_config(without)["save_model"] is False


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["num_iterations=4"], "the run has 4 iterations already, and this one would have 4; give a greater total_env_steps"),
        (["total_env_steps=64"], "and this one would have 1"),
        (["num_iterations=9", "update.lr=0.1"], "the run has update.lr=0.0005 and not 0.1; only its length can be changed"),
        (["num_iterations=9", "seed=2"], "the run has seed=1 and not 2"),
        (["num_iterations=9", "update.anneal_lr=true"], "the run has update.anneal_lr=false and not true"),
    ],
)
def test_an_unfit_length_or_configuration_is_refused(words: list[str], why: str, short: rgpo.Run, tmp_path: Path) -> None:
    given = [w for w in ("update.anneal_lr=false",) if w.split("=")[0] not in " ".join(words)]
    with pytest.raises(rgpo.ConfigError, match="resume_from=") as error:
        rgpo.run(*TINY, *given, *words, f"resume_from={short.folder}", f"results_dir={tmp_path}")
    assert why in str(error.value) and not list(tmp_path.iterdir())


def test_an_unfit_run_is_refused(short: rgpo.Run, here: Path) -> None:
    def refused(folder: str) -> str:
        words = [*TINY, "update.anneal_lr=false", "num_iterations=9", f"resume_from={folder}"]
        with pytest.raises(rgpo.ConfigError) as error:
            rgpo.run(*words)
        assert not (here / "results").exists()
        return str(error.value)

    assert "resume_from=nowhere: config.yaml is missing; give the folder of a finished run" in refused("nowhere")
    assert "is empty or not a path" in refused("''") or "resume_from" in refused("''")
    copy = shutil.copytree(short.folder, here / short.folder.name)
    data = bytearray((copy / "checkpoint.pt").read_bytes())
    data[-100] ^= 1
    (copy / "checkpoint.pt").write_bytes(data)
    assert "checkpoint.pt is damaged (checksum); restore the files" in refused(str(copy))
    shutil.copy(short.folder / "checkpoint.pt", copy)
    (copy / "manifest.json").unlink()
    text = (copy / "state.json").read_text()
    (copy / "state.json").write_text(text.replace('"completed"', '"interrupted"'))
    assert "the run is not complete (interrupted); repeat its own command to finish it" in refused(str(copy))


def test_what_differs_is_found_at_any_depth() -> None:
    one = {"a": {"b": [1, 2], "c": None}, "name": "x", "num_iterations": 3, "task": {"source": {"model": "m"}}}
    other = {"a": {"b": [1, 3], "c": None}, "name": "y", "num_iterations": 4, "task": {"source": {}}}
    assert [key for key, *_ in continuation._differences(one, other)] == ["a.b", "task.source.model"]
    assert not list(continuation._differences(one, one | {"name": "z"}))
