"""Odd command lines of rgpo-run, seeded, and an independent judgment of the ones that are accepted.

for words in cases(seed=0, n=2000):
    outcome = judge(words)          # "refused", "accepted", or the reason why it is neither proper
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from rgpo.cli.config import build, compose_jobs, jobs_of
from rgpo.cli.config_dir import group_options
from rgpo.cli.overrides import Composer, hydra_on
from rgpo.errors import ConfigError

split = str.split
LANGUAGE = ["task=qwen_rlhf", "algo=ppo"]
LANGUAGE_ALGOS = ("dapo", "dpo", "dppo", "dr_grpo", "dro", "gmpo", "grpo", "gspo", "gspo_token", "luspo", "rloo", "vespo")
LONGEST_SENTENCE = 2000  # characters

NUMBERS = split("""
nan inf -inf .nan 0 -0.0 -1 -7.5 0.5 1.5 1e3 -1e3 1e20 1e-300 1e300 1e-40 1e-12 1e12 1e31 1e39 9223372036854775807
9223372036854775808 99999999999999999999 1_000 0x10 0o17 1000000000000 2147483648 ٣ １ 1e400 0.9999999999999999
1.0000000000000002
""")
WORDS = split("""
true false null yes on off NO none auto text - é os.path ../x .hidden a/b a=b ~ ~/x %s{} *
""")
WORDS += ["", "' '", "'\\t'", '""', "x" * 300, "'\x1b]0;t\x07'", "\x1b[31m", "'a\nb'", "'it'", "\u202eabc", "\\"]
WORDS += ["'"]
NODES = split("""
[] [1,2] [a,b] [-3] [null] [nan] [[1]] [8,0] [64,true] [1e20] {} {a:1} {1:2} {a:{b:[1]}} {_target_:os.system}
{_target_:rgpo.gates.Log} {_target_:null} {_target_:[1]} {_target_:3,a:1} {scale:3}
[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]
""")
NODES += ["[" + "1," * 3000 + "1]"]
GRAMMAR = split("""
??? ${seed} ${gate} ${presets.sgd.lr} ${presets} ${nothing.here} ${oc.env:HOME} ${oc.env:NOT_SET_X} ${oc.env:NOT_SET_X,3}
${.seed} ${ ${} $ ${on_language:1,2} ${gigabytes:x} ${jobs_that_fit:1,1} ${hydra:runtime.cwd} 1,2 range(0,3) choice(1,2)
interval(0,1) glob(*) int(3.5) float(nan) str(3) bool(1) sort(3,2,1) shuffle(1) extend_list(1) json_str({a:1}) tag(a,1) 1/0 [
}
""")
GRAMMAR += ["${oc.decode:'1'}"]
ODD = [*NUMBERS, *WORDS, *NODES, *GRAMMAR]
ODD_WORDS = split("""
~eval_every ~gate.sharpness ~task ~gate ~gate@ref_gate ~update.lr ~seed ~task.policy ~algorithm penalty=[-3] gate=[a,b]
gate={scale:unit} gate={} task={} algo={} gate@ref_gate={a:1} gate@x=clip gate@penalty=clip +gate@new=clip gate@=clip
@gate=clip gate@ref_gate:gate=clip penalty._target_=os.path exports=7 exports={a:1} exports=[tensorboard,tensorboard]
exports=[wandb,null] metrics=[1] metrics={a/b:1} name=../x name=.hidden name=é name= name=null results_dir= results_dir=???
results_dir=~/x results_dir=a=b results_dir=[x] = == + ~ ~~seed +++seed=1 a a.b . ..=1 seed.=1 .seed=1 seed..x=1 [0]=1
task.policy.hidden_sizes[0]=3 task.policy.hidden_sizes.0=3 ключ=1 SEED=1 __class__=1 seed.x=1 +seed=1 ++seed=1 ++new=1
+new.deep.key=1 +task.new=1 ++gate.sharpness=3 +gate.sharpnes=3 choices=1 +choices.task=x hydra.run.dir=/tmp/x hydra=null
~hydra hydra/launcher=basic hydra.searchpath=[pkg://os] hydra.searchpath=[file:///nowhere] hydra.searchpath=3
hydra.launcher._target_=os.system defaults=[] _target_=x presets=x presets={} presets=control ~presets law=gaussian
experiment=[smoke] experiment=smoke +experiment=smoke scale=paper sampler=own +law=gaussian +hydra/x=y
""")
ODD_WORDS += ["+metrics.x={unit: 1}", f"name={'n' * 300}", "name=a\nb", "name= ", "results_dir=a b"]
ODD_WORDS += ["results_dir=\x00", "seed=1 seed=2", "seed =1", "hydra.job.env_set={A: b}", "+defaults=[gate: clip]"]


@functools.cache
def contexts() -> list[list[str]]:
    """Words under which every option of every group is selected once."""
    found = [[f"algo={name}", *(["task=qwen_rlhf"] if name in LANGUAGE_ALGOS else [])] for name in group_options("algo")]
    found += [[f"task={name}", *(["task.env_id=CartPole-v1"] if name == "gym" else [])] for name in group_options("task")]
    for group in ("gate", "penalty"):
        found += [["algo=ppo", f"{group}={name}"] for name in group_options(group) if name not in ("open", "reward_kl")]
    found += [[*LANGUAGE, f"advantage={name}"] for name in group_options("advantage")]
    found += [["algo=ppo", f"update={name}"] for name in group_options("update")]
    found += [[*LANGUAGE, f"gate@ref_gate={name}"] for name in ("budget", "clip")]
    found += [[*LANGUAGE, f"gate_combination={name}"] for name in group_options("gate_combination")]
    found += [
        [*LANGUAGE, "penalty=reward_kl"],
        [*LANGUAGE, "sampler@task.sampler=vllm"],
        [*LANGUAGE, "scale=paper", "task.source.data=x"],
    ]
    return [*found, [*LANGUAGE, "scale=smollm2", "task.source.data=x"]]


@functools.cache
def keys_of(context: tuple[str, ...]) -> dict[str, Any]:
    """Every key of the configuration under a context with its value, nodes and _target_ included, presets excluded."""
    with hydra_on(None) as composer:
        config = OmegaConf.to_container(composer(list(context))[0])
    assert isinstance(config, dict)
    config.pop("presets")
    return dict(_keys(config, ""))


def _keys(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")


def every_case() -> Iterator[list[str]]:
    """Each odd word, and each odd value of one key of each context in turn: some hundred command lines."""
    yield from ([*word.split(" ")] if word == "seed=1 seed=2" else [word] for word in ODD_WORDS)
    keys = dict.fromkeys((key, tuple(context)) for context in contexts() for key in keys_of(tuple(context)))
    seen: dict[str, tuple[str, ...]] = {}
    for key, context in keys:
        seen.setdefault(key, context)
    for i, (key, context) in enumerate(seen.items()):
        for k in range(4):  # four values of each key; cases() takes any
            yield [*context, f"{key}={ODD[(7 * i + 29 * k) % len(ODD)]}"]


def cases(seed: int, n: int) -> Iterator[list[str]]:
    """n random command lines of rgpo-run: a valid context and one to three odd words."""
    rng = random.Random(seed)
    for _ in range(n):
        context = rng.choice(contexts())
        words = [_odd_word(rng, keys_of(tuple(context))) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        yield [*context, *words]


def _odd_word(rng: random.Random, keys: dict[str, Any]) -> str:
    if rng.random() < 0.1:
        return rng.choice(ODD_WORDS).partition(" seed=2")[0]
    key, value = rng.choice(list(keys.items()))
    if not isinstance(value, Mapping) and rng.random() < 0.4:
        return f"{key}={_plausible(rng, value)}"
    if rng.random() < 0.08:
        key = rng.choice(
            (f"{key}x", key[:-1], f"{key}.x", key.upper(), f"{key}@x", f"{key}[0]", f" {key}", key.replace(".", "/"))
        )
    form = rng.choice(("", "", "", "", "", "", "+", "++", "~"))
    return f"~{key}" if form == "~" and rng.random() < 0.7 else f"{form}{key}={_odd_value(rng)}"


def _plausible(rng: random.Random, value: Any) -> str:
    """A value of the type of another one, near it or at the other end of its type."""
    if isinstance(value, bool) or value is None:
        return rng.choice(("true", "false", "null", "1", "2.5"))
    if isinstance(value, int):
        return str(rng.choice((0, 1, 2, 3, 7, value + 1, -value, value * 10 ** rng.randint(1, 24))))
    if isinstance(value, float):
        return repr(rng.choice((1, 1, 1, -1)) * (value or 1.0) * 10.0 ** rng.randint(-45, 45))
    if isinstance(value, list):
        return rng.choice(
            ("[]", "[1]", "[64,64]", f"[{10 ** rng.randint(1, 12)}]", "[a]", "[q_proj]", "[tensorboard]", "[8,8,8,8,8]")
        )
    return rng.choice(
        ("none", "auto", "batch", "unit", "v5", "relu", "sequence", "fsdp", "gymnasium", "float16", "cuda", f"{value}x")
    )


def _odd_value(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(ODD)
    if kind < 0.75:
        return repr(rng.choice((1, -1)) * rng.uniform(1, 10) * 10.0 ** rng.randint(-320, 300))
    if kind < 0.9:
        return str(rng.randint(-(2**70), 2**70) >> rng.randint(0, 70))
    return "".join(rng.choice(" ab,.:=[]{}()$'\"\\/~@+-_09é\x00\x07\x1b\n\u2028😀") for _ in range(rng.randint(1, 12)))


def judge(words: list[str], composer: Composer | None = None) -> str:
    """ "refused" or "accepted" if the outcome is proper, else what is wrong with it."""
    try:
        (job,) = compose_jobs(words, False, None) if composer is None else jobs_of(composer, words, False)
    except ConfigError as error:
        return wrong_sentence(str(error), words) or "refused"
    except Exception as error:
        return f"{type(error).__name__} instead of a sentence: {error}"
    return "; ".join(nonsense(job.config)) or "accepted"


def wrong_sentence(sentence: str, words: list[str]) -> str:
    """The fault of a sentence of refusal; "" if there is none."""
    if not sentence.isprintable():
        return f"a sentence with control characters: {sentence!r}"
    if len(sentence) > LONGEST_SENTENCE or not sentence.endswith((".", "?")):
        return f"a sentence that is too long or has no end: {sentence[:300]} ... {sentence[-60:]}"
    leaves = [re.split(r"[=@\[:]", word.strip("+~ \n"))[0].rpartition(".")[2].strip() for word in words]
    named = any(leaf in sentence for leaf in leaves) or re.match(r"[\w.@/]+[=:]", sentence)  # or another key that does not fit
    return "" if named else f"a sentence that names none of {leaves}: {sentence}"


CAPS: dict[str, tuple[float, float]] = {  # last part of a key -> what a run could hold
    **dict.fromkeys(("gamma", "lam", "rms_alpha"), (0, 1)),
    **dict.fromkeys(("eps_low", "eps_high", "line_search_shrink", "heldout_share", "anchor"), (1e-9, 1)),
    **dict.fromkeys(("num_envs", "num_steps", "num_prompts", "num_epochs", "critic_epochs", "group_size"), (1, 1e8)),
    **dict.fromkeys(("max_new_tokens", "micro_batch_size", "num_kl_tokens", "num_eval_prompts", "num_eval_episodes"), (1, 1e8)),
    **dict.fromkeys(
        ("lr", "sharpness", "coef", "kl_target", "kl_max", "cg_damping", "critic_lr", "adam_eps", "beta"), (1e-30, 1e30)
    ),
    **dict.fromkeys(("seed", "eval_every", "gradvar_every", "split_seed"), (0, 2**63 - 1)),
    **dict.fromkeys(("vf_coef", "ent_coef", "checkpoint_every_s"), (0, 1e30)),
    **dict.fromkeys(("clip_observation", "clip_reward", "temperature", "alpha", "cap", "tolerance", "factor"), (1e-30, 1e30)),
    **dict.fromkeys(("policy_gain", "value_gain"), (0, 1e30)),
    **dict.fromkeys(("rank", "cg_iterations", "line_search_tries"), (1, 1e6)),
    "num_iterations": (1, 1e9),
    "total_env_steps": (1, 1e15),
    "log_std_init": (-50, 50),
    "num_threads": (1, 4096),
}
TYPES = {
    "name": str,
    "seed": int,
    "results_dir": str,
    "num_threads": int,
    "eval_every": int,
    "exports": list,
    "metrics": dict,
    "task": dict,
}
TYPES |= {"plan": bool, "force": bool, "memory_gb": int, "gradvar_every": int, "algorithm": dict}
FREE = ("task.env_kwargs", "metrics")  # whose values belong to the user


def nonsense(config: Mapping[str, Any]) -> list[str]:
    """Why an accepted configuration makes no sense; nothing of it is read from rgpo's own ranges."""
    found = [f"{key}={config.get(key)!r}" for key, kind in TYPES.items() if type(config.get(key)) is not kind]
    for key, value in _leaves(config, ""):
        if isinstance(value, str) and ("${" in value or value == "???") and key not in ("name", "results_dir"):
            found.append(f"{key}={value!r} is not resolved")
        if isinstance(value, bool) or not isinstance(value, int | float) or key.startswith(FREE):
            continue
        low, high = CAPS.get(re.sub(r"\[\d+\]$", "", key).rpartition(".")[2], (-1e30, 1e30))
        tiny = isinstance(value, float) and 0 < abs(value) < 1e-30
        if not low <= value <= high or tiny:
            found.append(f"{key}={value} was accepted")
    try:
        task, algorithm = build(config)
        steps = config["num_iterations"] or task.plan_iterations(config["total_env_steps"])
        if not (0 < task.batch_size <= 1e8 and 0 < steps <= 1e9 and algorithm.describe()):
            found.append(f"{steps} iterations of {task.batch_size} samples were accepted")
    except Exception as error:
        found.append(f"building it again raises {type(error).__name__}: {error}")
    return found


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}[{i}]")
    else:
        yield key, node
