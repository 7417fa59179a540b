"""Control: rollouts of gymnasium environments under an actor-critic, and deterministic evaluation episodes.

Known deviations from CleanRL's PPO, each by choice: all environments share one normalizer; time limits bootstrap
(advantage.bootstrap_truncated); the reward normalizer's discounted return restarts at the end of every episode.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from rgpo.control import finite
from rgpo.control.actions import Rescale, heads
from rgpo.control.advice import advice, refuse_unserved
from rgpo.control.cnn import NatureCNN, OwnNetwork
from rgpo.control.envs import check, facts, registration
from rgpo.control.envs.described import observation_shape
from rgpo.control.envs.make_env import make_vector_env
from rgpo.control.envs.vector_env import SavedEnvs, Step, VectorEnv
from rgpo.control.episodes import OpenEpisodes, evaluated, mode_returns
from rgpo.control.late import Wrapper
from rgpo.control.mlp import MLP
from rgpo.control.normalize import ObservationMoments, ObservationNormalizer, RewardMoments, RewardNormalizer
from rgpo.control.spaces import describe
from rgpo.core.ranges import MANY, POSITIVE, accept, check_fields, count, one_of, or_null
from rgpo.core.rollout import Array
from rgpo.distributed import refuse_many
from rgpo.errors import EnvironmentFault, require
from rgpo.learning.export import Facts
from rgpo.learning.types import Policy, Requirements, State

if TYPE_CHECKING:
    from rgpo.control.actor import Actor
    from rgpo.control.policy import ControlPolicy, ControlRollout

VERSION = accept(lambda name: re.fullmatch(r"v[0-9]{1,9}", name) is not None, "must be a version such as v4 or v5.")
SMALL_LAYER = 256  # units of a hidden layer that one thread computes as fast as several


@dataclass(kw_only=True)
class Control:
    """Fixed-length rollouts of num_envs copies of one environment, which setup() makes."""

    env_id: str  # gymnasium id, without the version if `version` is set
    policy: MLP | NatureCNN | OwnNetwork
    version: str | None = field(metadata=or_null(VERSION))  # v4 (the paper's) or v5 of MuJoCo's four, else null
    num_envs: int = field(metadata=count(100_000))
    num_steps: int = field(metadata=count(MANY))
    normalize_observation: bool
    normalize_reward: bool
    clip_observation: float = field(metadata=POSITIVE)
    clip_reward: float = field(metadata=POSITIVE)
    num_eval_episodes: int = field(metadata=count(100_000))
    backend: str  # auto: our own steps of MuJoCo and CartPole for known ids, else gymnasium; gymnasium or mujoco force one
    env_kwargs: Mapping[str, object]  # for gymnasium.make
    wrappers: list[Wrapper] = field(default_factory=list)  # around each environment, the first one inside
    action_bounds: str = field(default="clip", metadata=one_of("clip", "rescale"))  # rescale: [-1, 1] onto finite bounds of a Box
    staleness: int = field(default=0, metadata=count(100, least=0))
    correction_cap: float | None = field(default=None, metadata=or_null(POSITIVE))  # null: ratios to the behavior policy
    num_threads: int = field(default=1, init=False, repr=False)  # that step environments

    def __post_init__(self) -> None:
        require(isinstance(self.env_id, str) and self.env_id != "???", "task.env_id", self.env_id, "give a gymnasium id.")
        check_fields(self, "task")
        fits = self.version is None or re.search(r"-v[0-9]+$", self.env_id) is None
        require(fits, "task.version", self.version, f"task.env_id={self.env_id} has a version already; leave it out.")
        fits = self.correction_cap is None or self.staleness > 0
        require(fits, "task.correction_cap", self.correction_cap, "corrects stale rollouts only; set task.staleness.")
        fits, remedy = self.batch_size <= MANY, f"makes rollouts of {self.batch_size:,} samples, over {MANY:,}; lower it."
        require(fits, "task.num_steps", self.num_steps, remedy)

    memory_advice: ClassVar[str] = "lower task.num_steps or task.num_envs"
    export_name: ClassVar[str] = "policy"

    @property
    def full_id(self) -> str:
        """The id that gymnasium knows."""
        return self.env_id if self.version is None else f"{self.env_id}-{self.version}"

    @property
    def batch_size(self) -> int:
        """Samples of one rollout, T E."""
        return self.num_envs * self.num_steps

    def check(self) -> None:
        """Raises: ConfigError for an unknown id, an unsupported space or several processes; EnvironmentFault as check.try_out."""
        refuse_many("control")
        check.try_out(repr(self), self.make_env)
        with closing(self.make_env(1)) as env:
            advice(self.full_id, env, self.action_bounds, self.policy)

    def validate(self, requirements: Requirements) -> None:
        """Raises: ConfigError for an algorithm that control tasks or the policy cannot serve."""
        refuse_unserved(requirements, self.policy)

    def plan_iterations(self, total_env_steps: int) -> int:
        """The number of whole iterations that collect at least total_env_steps."""
        return -(-total_env_steps // self.batch_size)

    def divide_threads(self, num_threads: int) -> int:
        """Step environments on num_threads threads; returns how many should compute: 1, which is faster, for small networks."""
        self.num_threads = num_threads
        return 1 if isinstance(self.policy, MLP) and max(self.policy.hidden_sizes) <= SMALL_LAYER else num_threads

    def make_env(self, num_envs: int) -> VectorEnv:
        """Make copies of the environment."""
        env = make_vector_env(self.full_id, num_envs, self.backend, self.wrappers, self.env_kwargs)
        env.use_threads(self.num_threads)
        return env

    def setup(self, seed: int, requirements: Requirements) -> None:
        """Make and seed the environments; the reward normalizer uses the algorithm's discount."""
        streams = np.random.SeedSequence(seed).spawn(2)
        self.env = self.make_env(self.num_envs)
        self.facts, self.versions = facts.describe(self.env, self.full_id), facts.package_versions(self.env)
        self.findings = check.findings(repr(self)) + advice(self.full_id, self.env, self.action_bounds, self.policy)
        space = describe(self.env.action_space, "action")
        self.heads = heads(space)
        self._rescale = Rescale(space) if self.action_bounds == "rescale" else None
        self.eval_env: VectorEnv | None = None
        self.rng = np.random.default_rng(streams[0])
        env_seed, self.eval_seed = (int(x) for x in streams[1].generate_state(2) >> 2)
        self.normalize = ObservationNormalizer(self.num_envs, self.env.observation_size, self.clip_observation)
        self.scale_reward = RewardNormalizer(self.num_envs, requirements.gamma, self.clip_reward)
        with registration.undisturbed():
            self.observation = self._prepare(self.env.reset(env_seed))
        self.episodes = OpenEpisodes(self.num_envs)
        self.waiting: deque[ControlRollout] = deque()  # collected and not yet learned from
        self.latest_return = float("nan")
        self.inexact, self._num_restarted = "", 0

    def make_policy(self, seed: int) -> ControlPolicy:
        """A fresh actor-critic for the environment's spaces."""
        from rgpo.control.module_policy import make_policy, refuse_failing

        shape, pixels = observation_shape(self.env), self.observation.dtype == np.uint8
        policy = make_policy(self.policy, shape, self.heads, pixels=pixels, seed=seed)
        if isinstance(self.policy, OwnNetwork):
            refuse_failing(policy, self.policy, self.observation, self.normalize_observation)
        return policy

    def _prepare(self, observation: Array, learn: bool = True) -> Array:
        """Observations (E, D) as the policy sees them, normalized if normalize_observation is set."""
        if self.normalize_observation:
            return self.normalize(observation, learn)
        return observation.copy() if observation.dtype == np.uint8 else observation.astype(np.float32)

    def _to_env(self, action: Array) -> Array:
        """Action numbers (E, A), or (E,) indices, for the environments: rescaled if action_bounds=rescale."""
        return action if self._rescale is None else self._rescale(action)

    @np.errstate(over="ignore", invalid="ignore")  # a more detailed error takes the place of numpy's warning
    def collect(self, policy: Policy) -> ControlRollout:
        """T steps of every environment under the current policy, or with staleness s under that of s iterations ago.

        Raises: NonFiniteError if an observation or a reward is NaN or infinite.
        """
        from rgpo.control import stale
        from rgpo.control.policy import ControlPolicy

        assert isinstance(policy, ControlPolicy)
        with registration.undisturbed():
            if not self.staleness:
                return self._collect(policy)
            while len(self.waiting) <= self.staleness:
                self.waiting.append(stale.kept(policy, self._collect(policy)))
        rollout = self.waiting.popleft()
        return rollout if self.correction_cap is None else stale.decoupled(policy, rollout, self.correction_cap)

    def _collect(self, policy: ControlPolicy) -> ControlRollout:
        from rgpo.control.accel.collector import make_collector
        from rgpo.control.policy import ControlRollout

        t, shape = 0, (self.num_steps, self.num_envs)
        noise = policy.draw_noise(shape, self.rng)
        seen = np.empty((*shape, self.env.observation_size), self.observation.dtype)
        actions = policy.empty_actions(shape)
        terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
        finals: dict[tuple[int, int], Array] = {}  # (step, environment) of an episode's end -> its last observation, prepared
        normalizer = self.normalize if self.normalize_observation else None
        in_c = make_collector(self.env, policy, normalizer, seen, noise, actions) if self._rescale is None else None
        advance = in_c or partial(self._advance, policy, seen, noise, actions)
        while t < self.num_steps:
            seen[t] = self.observation
            t, step = advance(t)
            self.observation = self._prepare(step.observation)
            if step.final_observation is not step.observation:  # an episode ended
                terminated[t - 1], truncated[t - 1] = step.terminated, step.truncated
                final = self._prepare(step.final_observation, learn=False)
                final[step.terminated & ~np.isfinite(final).all(1)] = 0.0  # its value is not used
                finals |= {(t - 1, e): final[e] for e in np.flatnonzero(step.terminated | step.truncated).tolist()}
        raw_reward = self.env.rewards()
        finite.require_steps(self.full_id, seen, actions, self.observation, finals)
        finite.require_rewards(self.full_id, raw_reward)
        done = terminated | truncated
        reward = self.scale_reward(raw_reward, done) if self.normalize_reward else raw_reward
        for key, scaler in (("normalize_observation", self.normalize), ("normalize_reward", self.scale_reward)):
            if getattr(self, key):
                finite.require_moments(self.full_id, key, scaler.overflowed)
        value, next_value = policy.values_around(seen, self.observation, finals)
        metrics = self.episodes.metrics(raw_reward, done)
        if self._num_restarted:
            metrics["return/num_restarted"], self._num_restarted = float(self._num_restarted), 0
        made = partial(ControlRollout, observation=seen, action=actions, reward=reward, terminated=terminated, done=done)
        return made(value=value, next_value=next_value, metrics=metrics)

    def _advance(self, policy: ControlPolicy, seen: Array, noise: Array, actions: Array, t: int) -> tuple[int, Step]:
        """Act and step once; the next t, and the step's result."""
        actions[t] = action = policy.act(self.observation, noise[t])
        try:
            return t + 1, self.env.step(self._to_env(action))
        except EnvironmentFault:
            finite.require_steps(self.full_id, seen[: t + 1], actions[: t + 1])
            raise

    def evaluate(self, policy: Policy) -> dict[str, float]:
        """Raw returns of num_eval_episodes with the mode of the policy, always from the same starting seeds.

        Raises: NonFiniteError if a reward is NaN or infinite.
        """
        from rgpo.control.policy import ControlPolicy

        assert isinstance(policy, ControlPolicy)
        silence = np.zeros((self.num_eval_episodes, policy.output_size), np.float32)
        prepare, act = partial(self._prepare, learn=False), lambda seen: self._to_env(policy.act(seen, silence))
        with registration.undisturbed():
            self.eval_env = self.eval_env or self.make_env(self.num_eval_episodes)
            return mode_returns(self.eval_env, self.full_id, self.eval_seed, prepare=prepare, act=act)

    def headline(self, metrics: Mapping[str, float | list[float]]) -> str:
        """Return of the latest episodes that ended."""
        self.latest_return = cast(float, metrics.get("return/train_mean", self.latest_return))
        return f"return {self.latest_return:.1f}"

    def summary(self, metrics: Mapping[str, float | list[float]]) -> list[str]:
        """The last deterministic return, if there was an evaluation."""
        return evaluated(metrics, self.num_eval_episodes)

    def take_samples(self) -> list[Mapping[str, object]]:
        """No rows: control tasks keep no samples."""
        return []

    def export(self, policy: Policy, state: State, folder: Path, facts: Facts) -> None:
        """Write policy.json and policy.safetensors.

        Raises: NoExport if this kind of policy cannot be saved.
        """
        self.make_actor(policy, state, facts).save(folder)

    def make_actor(self, policy: Policy, state: State, facts: Facts) -> Actor:
        """The policy as a function of raw observations, with the current normalizer; state: the policy's.

        Raises: NoExport for a policy that is not one of rgpo's.
        """
        from rgpo.control.export import make_actor

        normalizer = self.normalize if self.normalize_observation else None
        return make_actor(policy, state, facts, self.env, self.full_id, self.action_bounds, normalizer)

    def state_dict(self) -> State:
        from rgpo.control.stale import rollout_state

        return {
            "waiting": [rollout_state(rollout) for rollout in self.waiting],
            "env": self.env.state_dict(),
            "rng": self.rng.bit_generator.state,
            "observation_moments": self.normalize.state_dict(),
            "reward_scale": self.scale_reward.state_dict(),
            "observation": self.observation.tolist(),
            **self.episodes.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore everything; episodes that cannot be restored start over, for the reason given in ``inexact``."""
        from rgpo.control.stale import restore_rollout

        self.waiting = deque(restore_rollout(saved) for saved in cast(list[State], state.get("waiting", [])))
        with registration.undisturbed():
            restarts = self.env.load_state_dict(cast(SavedEnvs, state["env"]))
        self.rng.bit_generator.state = cast(Mapping[str, object], state["rng"])
        self.normalize.load_state_dict(cast(ObservationMoments, state["observation_moments"]))
        self.scale_reward.load_state_dict(cast(RewardMoments, state["reward_scale"]))
        self.observation = np.array(state["observation"], self.observation.dtype)
        self.episodes.load_state_dict(state)
        self._num_restarted, self.inexact = len(restarts), ""
        if restarts:
            places = [restart.env for restart in restarts]
            self.observation[places] = self._prepare(np.stack([restart.observation for restart in restarts]), learn=False)
            self.scale_reward.discounted[places] = 0.0
            self.episodes.forget(places)
            why = " or ".join(sorted({restart.why for restart in restarts}))
            self.inexact = f"{len(restarts)} of {self.num_envs} episodes begin anew, because {why}"
