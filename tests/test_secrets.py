"""Secrets of a command line or a configuration: no run records them, and everything else is recorded as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli import rgpo_run, the_run
from test_security import CARTPOLE

import rgpo
from rgpo.cli.config import Job, compose_jobs
from rgpo.runtime.provenance import REDACTED, collect, redact, redact_values

TOKEN = "hf_" + "aB3" * 10
SECRETS = {
    f"rgpo-run task.source.model={TOKEN}": f"rgpo-run task.source.model={REDACTED}",
    "+task.env_kwargs.api_key=abc-1": f"+task.env_kwargs.api_key={REDACTED}",
    "'+task.env_kwargs={api_key: abc, size: 3}'": f"'+task.env_kwargs={{api_key: {REDACTED}, size: 3}}'",
    '{"accessKey": "a b c", "n": 1}': f'{{"accessKey": {REDACTED}, "n": 1}}',
    "+task.env_kwargs.password='a b' seed=3": f"+task.env_kwargs.password={REDACTED} seed=3",
    "+task.env_kwargs.secrets=[LISTSEC66] seed=3": f"+task.env_kwargs.secrets={REDACTED} seed=3",
    "{cookies: {a: [x, {b: y}]}, n: 1}": f"{{cookies: {REDACTED}, n: 1}}",
    "+task.env_kwargs.db_pass=x": f"+task.env_kwargs.db_pass={REDACTED}",
    "+task.env_kwargs.MY_SECRET=x": f"+task.env_kwargs.MY_SECRET={REDACTED}",
    "+task.env_kwargs.auth=x": f"+task.env_kwargs.auth={REDACTED}",
    "task.source.data=https://me:pa:ss@host/x.jsonl": f"task.source.data=https://{REDACTED}@host/x.jsonl",
    "git+ssh://git@host/x": f"git+ssh://{REDACTED}@host/x",
    "sk-proj-abcdefghijk0123": REDACTED,
    "Authorization: Bearer abcdefghijk": f"Authorization: Bearer {REDACTED}",
    "eyJhbGciOiJI.eyJzdWIi.SflK": REDACTED,
    "ghp_0123456789abcdef": REDACTED,
}
HARMLESS = [
    "rgpo-run task.max_new_tokens=32 task.num_kl_tokens=1024 task.source.max_prompt_tokens=96",
    "task.source.max_prompt_tokens=${task.max_new_tokens} task.reduction=token_mean task.ratio=token",
    "update.lr=1e-3 num_iterations=null monkey=banana name=keyboard_study task.source.model=Qwen/Qwen2.5-1.5B-Instruct",
    "max_tokens=1e3, tokens=None, mask=task-masked-later results_dir=/home/me/risk-averse/x@y",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_of_a_command_line_are_not_recorded(text: str) -> None:
    assert redact(text) == SECRETS[text] and redact(SECRETS[text]) == SECRETS[text]
    assert collect("run", "hash", text, 1, 1, {}, "code")["command"] == SECRETS[text]


@pytest.mark.parametrize("value", ["'two words SECOND'", "\"two 'words' SECOND\"", "[first, 'SECOND']", "{a: {b: SECOND}}"])
@pytest.mark.parametrize("key", ["passphrase", "pass", "cookie", "credentials", "secrets", "tokens.inner"])
def test_a_secret_is_redacted_before_it_is_quoted_for_the_shell(key: str, value: str) -> None:
    word = f"+task.env_kwargs.{key}={value}"
    job = Job((word, "seed=3"), {}, Path("x-1"))
    assert job.command == f"rgpo-run '+task.env_kwargs.{key}={REDACTED}' seed=3"
    assert collect("run", "hash", job.command, 1, 1, {}, "code")["command"] == job.command
    assert "SECOND" not in str(redact_values({"env_kwargs": {key: {"a": ["SECOND"]}}}))


@pytest.mark.parametrize("text", HARMLESS)
def test_counts_and_names_are_recorded_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_a_configuration_are_not_recorded_and_everything_else_is() -> None:
    (job,) = compose_jobs([*CARTPOLE], False, None)
    assert redact_values(job.config) == job.config
    (language,) = compose_jobs(["task=qwen_rlhf"], False, None)
    assert redact_values(language.config) == language.config
    kwargs = {"api_key": "abc", "tokens": 3, "urls": ["https://a:b@c"], "deep": {"password": "", "secret": ["x"]}}
    expected = {
        "api_key": REDACTED,
        "tokens": 3,
        "urls": [f"https://{REDACTED}@c"],
        "deep": {"password": "", "secret": [REDACTED]},
    }
    assert redact_values({"env_kwargs": kwargs}) == {"env_kwargs": expected}


def test_a_run_records_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the command nor a value of the configuration; the run's identity is that of the words."""
    (tmp_path / "own_env.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Own-v0', entry_point=lambda api_key, render_mode=None: CartPoleEnv(), max_episode_steps=50)\n"
    )
    words = ["algo=ppo", "task=gym", "task.env_id=own_env:Own-v0", f"+task.env_kwargs.api_key={TOKEN}", "task.num_envs=2"]
    words += ["task.num_steps=32", "num_iterations=2", "eval_every=0"]
    rgpo_run(words, tmp_path)
    run_dir = the_run(tmp_path / "results")
    files = [file for file in run_dir.rglob("*") if file.is_file()]
    assert len(files) > 4 and not any(TOKEN.encode() in file.read_bytes() for file in files)
    assert REDACTED in json.loads((run_dir / "provenance.json").read_text())["command"]
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["task"]["env_kwargs"] == {"api_key": REDACTED}
    monkeypatch.syspath_prepend(str(tmp_path))
    (job,) = compose_jobs(words, False, None)
    assert job.run_dir.name == run_dir.name and TOKEN in str(job.config)
    rgpo_run(words, tmp_path)
    assert rgpo.results(tmp_path / "results").iteration.tolist() == [1, 2]
