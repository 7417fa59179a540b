"""Names and paths as any shell passes them, and the way there and back through hydra's grammar."""

from pathlib import Path

import pytest

from rgpo.cli.config import compose_jobs
from rgpo.cli.overrides import hydra_on
from rgpo.cli.words import former_name, hydra_form, typed_keys, user_form
from rgpo.errors import ConfigError

FOLDERS = [
    *(
        "a b,c=d",
        "a=b",
        "'a'",
        '"a"',
        "it's",
        "[a]",
        "{a: b}",
        "(x)",
        "$HOME",
        "${seed}",
        "\\${seed}",
        "\\\\${seed}",
        "${",
        "a\\",
    ),
    *("a\\'b", "???", "true", "1", "1e3", "~", "~/x", "a:b", "#x", "%20", "é ü", " a ", "*", "a;b|c", "--x", "choice(1,2)"),
    *("null", "null,null", "a\tb", "range(1,3)", "\\", "!!x", "@x", "a/b c/d", "NULL", "nan", "a\nb", "${"),
]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("multirun", [False, True])
def test_any_folder_that_a_shell_can_name_holds_results(folder: str, multirun: bool) -> None:
    (job,) = compose_jobs([f"results_dir={folder}"], multirun, None)
    assert str(job.run_dir.parents[1]) == str(Path(folder).expanduser()) and job.overrides == (f"results_dir={folder}",)
    with hydra_on(None) as composer:  # an engine's worker gets the words in hydra's form
        assert [user_form(item) for item in composer.parse_hydra([hydra_form(word) for word in job.overrides])] == [
            *job.overrides
        ]


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name not in ("~", "~/x", "a/b c/d", "${")])
def test_options_are_found_in_any_folder(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folder / "gate").mkdir(parents=True)
    (tmp_path / folder / "gate" / "steep.yaml").write_text("_target_: rgpo.gates.SigmoidLog\nscale: none\nsharpness: 40.0\n")
    monkeypatch.chdir(tmp_path)
    assert compose_jobs(["gate=steep"], False, folder)[0].config["gate"]["sharpness"] == 40.0


def test_a_tilde_is_the_home_folder_in_words_and_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nname: home\nresults_dir: ~/x\n"
    (tmp_path / "mine" / "experiment" / "home.yaml").write_text(text)
    plain = compose_jobs(["results_dir=x"], False, None)[0]
    for job in (
        compose_jobs(["results_dir=~/x"], False, None)[0],
        compose_jobs(["results_dir=~/x"], True, None)[0],
        compose_jobs(["experiment=home"], False, "~/mine")[0],
    ):
        assert job.run_dir.parents[1] == tmp_path / "x" and job.config["results_dir"] == str(tmp_path / "x")
        assert job.config_hash == plain.config_hash
    with hydra_on(None) as composer:
        assert composer.whole(["results_dir=~/x"]).hydra.sweep.dir == str(tmp_path / "x" / ".hydra")


def test_a_folder_that_hydra_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "${").mkdir()
    with pytest.raises(ConfigError, match="rename it"):
        compose_jobs([], False, str(tmp_path / "${"))


def test_commas_separate_data_sets_in_a_sweep_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["task=qwen_rlhf", "scale=smollm2", "task.source.data=one file.jsonl,two.jsonl"]
    for name in ("one file.jsonl", "two.jsonl"):
        Path(name).write_text("{}\n")

    def data(multirun: bool) -> list[str]:
        with hydra_on(None) as composer:
            cells = composer.cells(words) if multirun else [words]
            return [composer(cell)[0].task.source.data for cell in cells]

    assert data(True) == ["one file.jsonl", "two.jsonl"] and data(False) == ["one file.jsonl,two.jsonl"]
    Path("one file.jsonl,two.jsonl").write_text("{}\n")
    assert data(True) == ["one file.jsonl,two.jsonl"]


def test_names_are_texts_and_may_be_swept() -> None:
    assert compose_jobs(["name=2024"], False, None)[0].config["name"] == "2024"
    assert [job.config["name"] for job in compose_jobs(["name=a,1e3"], True, None)] == ["a", "1e3"]


def test_a_command_repeats_its_run() -> None:
    import shlex

    words = ["results_dir=a b,c=d", "+task.env_kwargs.x={a: 'b c'}", "seed=3"]
    with hydra_on(None) as composer:
        (cell,) = composer.cells(words)
        again = shlex.split(shlex.join(cell))
        assert composer(again)[0] == composer(words)[0]


def test_typed_keys_are_flattened() -> None:
    words = ["seed=3", "+update={lr: 1, x: {y: 2}}", "~gate.scale", "gate@ref_gate=open", "task.policy={}", "results_dir=a b"]
    with hydra_on(None) as composer:
        found = typed_keys(words, composer.parse(words))
    assert found == {
        **{"seed": "3", "update.lr": "1", "update.x.y": "2", "gate.scale": "", "gate@ref_gate": "open", "task.policy": "{}"},
        "results_dir": "a b",
    }


@pytest.mark.parametrize(("key", "value"), [("gate", "sigmoid"), ("task", "cartpole"), ("penalty.coef", "1"), ("algo", "rgpo")])
def test_present_names_are_not_former_ones(key: str, value: str) -> None:
    assert former_name(key, value) is None


def folders(words: list[str], multirun: bool = True) -> list[str]:
    return [job.run_dir.name for job in compose_jobs(words, multirun, None)]


def test_glob_selects_options_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "sigh.yaml").write_text("_target_: rgpo.gates.Sigmoid\nscale: none\nsharpness: 4.0\n")
    packaged = ["sigmoid", "sigmoid_log", "sigmoid_matched"]
    assert folders(["gate=glob(sig*,exclude=[sign*,*matched])"]) == folders(["gate=sigmoid,sigmoid_log"])
    jobs = compose_jobs(["gate=glob([sigh,sigm*])"], True, str(tmp_path))
    assert [job.overrides for job in jobs] == [(f"gate={name}",) for name in ("sigh", *packaged)]
    with pytest.raises(ConfigError, match=r"gate=glob\(zz\*\): matches no option of the group gate\. The options are .*sigmoid"):
        folders(["gate=glob(zz*)"])


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.sweeper.params.seed=1,2"],
        ["+hydra.sweeper.params.seed='1,2'"],
        ['hydra.sweeper.params={seed: "1,2"}'],
        ["hydra.sweeper.params.seed=5,6", "seed=1,2"],  # the key itself has precedence, as in hydra
    ],
)
def test_ranges_may_be_given_as_hydra_has_them(words: list[str]) -> None:
    assert folders(words) == folders(["seed=1,2"])
    with pytest.raises(ConfigError, match="add -m"):
        folders(words, multirun=False)


REFUSED = [  # words, and what to write instead
    (["hydra.run.dir=/x"], "set those"),
    (["hydra.sweep.dir=/x"], "results_dir/name"),
    (["hydra.job.chdir=true"], "leave it out"),
    (["hydra/sweeper=ax"], "choose basic or optuna"),
    (["hydra/sweeper=nevergrad"], "hydra/sweeper=nevergrad: is not a sweeper"),
    (["hydra.sweeper.max_batch_size=2"], "is read by no sweeper; leave it out"),
    (["hydra.sweeper.n_trials=2"], "add hydra/sweeper=optuna"),
    (["hydra.sweeper.params=3"], "give KEY: VALUES"),
    (["algo=ppo.yaml"], "write algo=ppo."),
    (["gate=sigmoid,erf.yaml"], "write gate=erf."),
    (["~gate"], "choose an option of the group gate"),
    (["--seed", "1"], "write seed=1."),
    (["--seed=1"], "write seed=1."),
    (["--info"], "write --cfg job"),
    (["--config-name=x"], "experiment=NAME"),
    (["total_env_steps=1e6"], "write 1000000."),
]


@pytest.mark.parametrize(("words", "remedy"), REFUSED)
def test_words_that_are_not_read_name_those_that_are(words: list[str], remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        folders(words)
    assert remedy in str(error.value) and "\n" not in str(error.value)
