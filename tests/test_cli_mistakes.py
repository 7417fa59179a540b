"""Mistakes on the command line: one sentence each."""

import re
from pathlib import Path

import pytest
from cli import ended

from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError

BAD = {
    "algo=ppoo": ("algo=ppoo", "ppo"),
    "gate=sigmod": ("gate=sigmod", "sigmoid"),
    "task=hoper": ("task=hoper", "hopper"),
    "gat=log": ("gat=log", "gate"),
    "gate.sharpnes=3": ("gate.sharpnes=3", "gate.sharpness"),
    "+update.lrr=1": ("update.lrr=1", "lr"),
    "+sed=2": ("sed=2", "seed"),
    "+seed=2": ("+seed=2: is no new entry", "write seed=2"),
    "-m experiment=first_evidence,smoke": (
        "experiment=first_evidence,smoke: first_evidence has a grid",
        "one experiment at a time",
    ),
    "-m seed=range(3,1)": ("seed=range(3,1): has no values", "exchange its ends"),
    "-m update.lr=interval(1e-4,1e-2)": ("is an interval, which only a search has", "hydra/sweeper=optuna"),
    "-m hydra.sweeper.max_batch_size=2 seed=1,2": ("is read by no sweeper", "leave it out"),
    "-m hydra.sweeper.n_trials=2 seed=1,2": ("is read by hydra/sweeper=optuna only", "add hydra/sweeper=optuna"),
    "gate.sharpness=0": ("gate.sharpness=0", "positive"),
    "gate.sharpness=-3": ("gate.sharpness=-3", "positive"),
    "gate.sharpness=many": ("gate.sharpness=many", "a number"),
    "algo=ppo gate.eps_low=1.5": ("gate.eps_low=1.5", "between 0 and 1"),
    "algo=ppo gate.eps_high=0": ("gate.eps_high=0", "between 0 and 1"),
    "update.num_minibatches=7": ("update.num_minibatches=7", "batch of 512; 8 does"),
    "algo=trpo update.critic_minibatches=7": ("critic_minibatches=7", "does not divide"),
    "task=gym task.env_id=CartPol-v1": ("CartPol-v1", "CartPole-v1"),
    "task=gym": ("task.env_id=???", "command line"),
    "task=hopper task.version=v1": ("Hopper-v1", ""),
    "algo=trpo penalty=adaptive": ("natural_gradient", "penalty=none"),
    "advantage=group_relative": ("group_relative", "gae"),
    "gate=open": ("gate=open", "gate@ref_gate"),
    "gate@ref_gate=budget": ("gate@ref_gate", "open"),
    "gate_combination=geometric gate@ref_gate=budget": ("gate_combination=geometric", "open"),
    "gate=budget gate.scale=unit": ("scale=unit", "none"),
    "seed=1,2": ("seed=1,2", "-m"),
    "seed=-1": ("seed=-1", "not negative"),
    "total_env_steps=0": ("total_env_steps=0", "positive"),
    "num_threads=two": ("num_threads=two", "whole number"),
    "name=a/b": ("name=a/b", "letters"),
    "results_dir=/proc/none": ("results_dir", "another results_dir"),
    "seed": ("seed", "key=value"),
    "--sede=1": ("--sede=1", "write sede=1"),
    "--config-dir": ("--config-dir", "folder"),
    "update.lr=nan": ("update.lr=nan", "a number"),
    "algo=rgpo_signed": ("algo=rgpo_signed", "now algo=rgpo_sign_aware"),
    "total_env_steps=9 task=qwen_rlhf": ("total_env_steps=9", "num_iterations=null"),
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence(line: str, tmp_path: Path) -> None:
    code, out, err = ended(line.split(), tmp_path)
    assert code == 2, out + err
    assert out == "" and err.count("\n") == 1 and err.startswith("rgpo-run: ")
    for word in BAD[line]:
        assert word in err
    assert not list(tmp_path.rglob("*.parquet"))


WRONG = {  # in this process; the sentence must hold each text
    # names of version 0.1
    "gate=sigmoid_signed": ("is now gate=sign_aware_sigmoid.",),
    "gate@ref_gate=adaptive_signed": ("is now gate@ref_gate=adaptive_sign_aware.",),
    "dual=product": ("dual=product: is now gate_combination=product.",),
    "dual.anchor=0.3": ("is now gate_combination.anchor=0.3.",),
    "kl_spike_threshold=0.1": ("rgpo-report spike_threshold=0.1",),
    "penalty.reward_kl_coef=0.1": ("penalty=reward_kl penalty.coef=0.1",),
    "task=bandit": ("task=bandit: ", "python -m rgpo.bandit"),
    "task=bandit_gaussian": ("python -m rgpo.bandit",),
    # presets belong to yaml files
    "presets.sgd.lr=1": ("presets.sgd.lr=1: ", "type update.lr=1"),
    "+presets.sgd.lr=1": ("presets.sgd.lr=1: ", "type update.lr=1"),
    "presets={sgd: {lr: 1}}": ("presets.sgd.lr=1: ", "type update.lr=1"),
    "presets.gae.gamma=0.9 algo=awr": ("type advantage.gae.gamma=0.9",),
    "published.lr=1": ("published.lr=1: ", "type update.lr=1"),
    "published.num_minibatches=2 algo=trpo": ("type update.critic_minibatches=2",),
    "published.kl_coef=2": ("type penalty.coef=2",),
    "published.lr=1 algo=trpo": ("no part of this run reads it",),
    "published.gama=1": ("published.gama=1: ", "gamma"),
    # types, from the hints of the constructors
    "task.sampler=vllm task=qwen_rlhf": ("task.sampler=vllm: ", "_target_", "sampler@task.sampler=vllm"),
    "task.source=foo task=qwen_rlhf": ("task.source=foo: ", "scale="),
    "task.lora=5 task=qwen_rlhf scale=paper": ("task.lora=5: ", "LoRA or null"),
    "task.env_kwargs=3": ("task.env_kwargs=3: must be a mapping",),
    "+task.env_kwargs={1: 2}": ("task.env_kwargs={1:2}: must be a mapping",),
    "task.policy=foo": ("task.policy=foo: ", "_target_ of type MLP"),
    "task.policy=null": ("task.policy=null: ",),
    "task.policy.hidden_sizes=[8,a]": ("task.policy.hidden_sizes=[8,a]: must be a list of whole numbers",),
    "task.policy.hidden_sizes=8": ("task.policy.hidden_sizes=8: must be a list",),
    "advantage.gae=3 algo=awr": ("advantage.gae=3: ", "GAE"),
    "exports=tensorboard": ("exports=tensorboard: must be a list",),
    "exports=[foo]": ("exports=[foo]: ", "tensorboard"),
    "exports=[3]": ("exports=[3]: must be a list of texts",),
    "metrics=3": ("metrics=3: ", "unit"),
    "seed=[1]": ("seed=[1]: must be a whole number",),
    "seed=true": ("seed=true: must be a whole number",),
    "eval_every=1.5": ("eval_every=1.5: must be a whole number",),
    "num_iterations=1e20": ("num_iterations=1e+20: must be a whole number or null",),
    "num_iterations=99999999999999999999": ("at most 10000000.",),
    "num_threads=9999999": ("num_threads=9999999: ", "at most 4096."),
    "plan=1": ("plan=1: must be true or false",),
    "update.lr=true": ("update.lr=true: must be a number",),
    "update.lr=null": ("update.lr=null: must be a number",),
    "update.compile=3": ("update.compile=3: ",),
    "total_env_steps=1000000000000": ("total_env_steps=1000000000000: makes 1,953,125,000 iterations", "10,000,000"),
    "checkpoint_every_s=inf": ("checkpoint_every_s=inf: ", "finite"),
    "update.lr=1e-300": ("update.lr=1e-300: ", "1e-30 to 1e+30"),
    "penalty.kl_target=inf": ("penalty.kl_target=inf: ", "finite"),
    "task.num_steps=100000000": ("task.num_steps=100000000: ", "400,000,000 samples"),
    "num_iterations=1e3": ("num_iterations=1000.0: must be a whole number or null; write 1000.",),
    "gate={}": ("gate={}: sets nothing",),
    "~metrics": ("~metrics: cannot be deleted",),
    f"name={'n' * 300}": ("at most 200 letters", "n" * 100),
    "name='a\nb\x1b'": ("name='a\\nb\\x1b'", "letters"),
    "gate=${on_language:1,2}": ("gate=${on_language:1,2}",),
    f"update.lr=[{'1,' * 6000}1]": ("update.lr=[1,1,", "over 10,000 characters"),
    "exports=7": ("exports=7: must be a list",),
    "exports=[wandb,wandb]": ("exports=[wandb,wandb]: ", "at most once"),
    "+choices.task=x": ("choices", "is not a known key"),
    "results_dir=": ("results_dir=: is empty",),
    # groups
    "gate=[clip]": ("gate=[clip]: must be the name of one option",),
    "gate=[1,2]": ("gate=[1,2]: must be the name of one option",),
    "gate=3": ("gate=3: must be the name of one option",),
    "gate=": ("gate=: must be the name of one option",),
    "gate=null": ("gate=null: ", "~gate"),
    "~gate": ("gate=null: algo=rgpo needs one",),
    "~gate@ref_gate": ("gate@ref_gate=null: algo=rgpo needs one", "group gate."),
    "~task": ("~task: leaves out", "group task"),
    "~seed": ("~seed: ",),
    "~update.lr": ("update.lr: is missing", "SGD"),
    "sampler=vllm task=qwen_rlhf": ("sampler=vllm: ", "sampler@task.sampler=vllm"),
    # objects
    "gate._target_=foo": ("gate._target_=foo: cannot be imported",),
    "gate._target_=nowhere.Gate": ("gate._target_=nowhere.Gate: cannot be imported (No module named 'nowhere')",),
    "gate._target_=rgpo.gates.D": ("gate._target_=rgpo.gates.D: cannot be imported",),
    "gate._target_=rgpo.runtime.schema.AXES": ("is no class or function",),
    "~gate.scale ~gate.sharpness gate._target_=rgpo.core.kl_penalty.NoPenalty": (
        "is not a node with a _target_ of type GateLike",
        "weight_at_one",
    ),
    "task.policy={_target_: rgpo.core.surrogate.Geometric, anchor: 0.5}": ("is not a known key",),
    "algorithm=3": ("algorithm=3: needs a _target_",),
    "+algorithm.gate=3": ("algorithm.gate=3: is an axis",),
    "+algorithm.beta=3": ("algorithm.beta=3: is not a known key",),
    # keys that a combination would ignore
    "total_env_steps=9 num_iterations=3": ("total_env_steps=9: would be ignored", "num_iterations=3"),
    "num_iterations=null total_env_steps=null": ("no length",),
    "gate_combination=product": ("gate_combination=product: would be ignored", "gate@ref_gate="),
    "task.clip_reward=3": ("task.clip_reward=3: would be ignored", "task.normalize_reward=true"),
    "task.policy.policy_gain=2 task.policy.orthogonal_init=false": ("task.policy.policy_gain=2: would be ignored",),
    "task.num_eval_episodes=2 eval_every=0": ("task.num_eval_episodes=2: would be ignored", "eval_every=0"),
    "update.vf_coef=1 algo=sapo task=qwen_rlhf": ("update.vf_coef=1: would be ignored", "critic"),
    "update={vf_coef: 1} algo=sapo task=qwen_rlhf": ("update.vf_coef=1: would be ignored",),
    "task.ratio=sequence algo=dpo task=qwen_rlhf scale=smollm2 task.source.data=x": ("task.ratio=sequence: would be ignored",),
    "hydra/launcher=joblib": ("hydra/launcher=joblib: ", "add -m"),
    "hydra.verbose=true": ("hydra.verbose=true: ", "add -m"),
    # references and penalties
    "penalty=reward_kl": ("penalty", "no reference policy"),
    "presets=language": ("no reference policy",),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_one_sentence(line: str) -> None:
    words = re.findall(r"[^ {]+(?:\{.*\})?", line)
    with pytest.raises(ConfigError) as caught:
        compose_jobs(words, False, None)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and sentence.endswith((".", "?"))
    for text in WRONG[line]:
        assert text in sentence, sentence


RIGHT = (
    "total_env_steps=9 num_iterations=null task=qwen_rlhf",
    "total_env_steps=null num_iterations=3",
    "gate_combination=product gate@ref_gate=budget task=qwen_rlhf",
    "gate_combination=geometric task=qwen_rlhf algo=ppo",
    "task.clip_reward=3 task.normalize_reward=true",
    "update.vf_coef=1 algo=ppo task=qwen_rlhf",
    "penalty=reward_kl task=qwen_rlhf algo=dapo",
    "update.lr=1",
    "task.policy.hidden_sizes=[8]",
    "exports=[tensorboard]",
    "name=2024",
    "algo=grpo penalty=none task=qwen_rlhf",
    "algo=reinforce update=natural_gradient",
    "~algo",
)


@pytest.mark.parametrize("line", RIGHT)
def test_what_differs_little_from_a_mistake_is_accepted(line: str) -> None:
    assert compose_jobs(line.split(), False, None)
