"""Rollouts of an MLP in MuJoCo's and CartPole's environments; one call takes all steps until an episode ends."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from copy import deepcopy
from typing import Protocol, runtime_checkable

import numpy as np

from rgpo.control.accel.layout import Job, Layer, Network, Normalizer
from rgpo.control.accel.library import library, numpy_functions
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.envs.native import Cart, Mujoco, Native, address
from rgpo.control.envs.vector_env import Step, VectorEnv
from rgpo.control.normalize import EPSILON, ObservationNormalizer
from rgpo.control.policy import ControlPolicy
from rgpo.core.rollout import Array

LONGEST = 4096  # steps per call, summed over environments; Python handles no signals during a call


@runtime_checkable
class NativeEnv(Protocol):
    """A ``VectorEnv`` that collect.c can step."""

    num_actions: int  # outputs of a policy: action numbers, or values of the index

    def native(self, num_steps: int) -> Native | None:
        """Addresses of its memory, with room for the reward inputs of num_steps steps; None if steps have to run in Python."""
        ...

    def steps_left(self) -> int:
        """Steps until the first time limit."""
        ...

    def settle(self, num_steps: int) -> Step:
        """The result of num_steps steps by collect.c; starts new episodes in environments where the last step ended one."""
        ...


class Collector:
    """Takes the steps of one rollout: seen (T, E, D), noise (T, E, O) and actions as in ``Control``; env None: no steps."""

    def __init__(
        self,
        env: NativeEnv | None,
        parts: Native,
        policy: ActorCritic,
        normalizer: ObservationNormalizer | None,
        seen: Array,
        noise: Array,
        actions: Array,
    ) -> None:
        code, functions = library(), numpy_functions()
        assert code is not None and functions is not None
        self._code, self._env, self._normalizer = code, env, normalizer
        self._alive: list[object] = [parts, policy, seen, noise, actions]
        self.num_steps, num_envs, size = seen.shape
        self._longest = max(1, LONGEST // num_envs)
        self._moments = Normalizer(epsilon=EPSILON, gap=self._memory(num_envs * size), sum=self._memory(size))
        if normalizer is not None:
            self._moments.mean, self._moments.squares = address(normalizer.mean), address(normalizer.squares)
            self._moments.ones, self._moments.clip = address(normalizer.ones), normalizer.clip
        self._job = Job(
            *(num_envs, size, policy.output_size),
            *(self._held(functions), self._held(self._network(policy, num_envs))),
            None if normalizer is None else self._held(self._moments),
            *(self._held(parts.struct) if isinstance(parts.struct, kind) else None for kind in (Mujoco, Cart)),
            *(address(parts.observation), address(parts.terminated, np.bool_)),
            *(
                address(seen, np.float32),
                address(noise, np.float32),
                address(actions, np.int64 if policy.discrete else np.float32),
            ),
        )

    def _network(self, policy: ActorCritic, num_envs: int) -> Network:
        weights, biases = policy.actor_layers[::2], policy.actor_layers[1::2]
        layers = (Layer * len(weights))()
        for layer, w, b in zip(layers, weights, biases, strict=True):
            layer.inputs, layer.outputs = w.shape
            layer.weight, layer.bias = address(w, np.float32), address(b, np.float32)
            layer.out = self._memory(num_envs * b.size, np.float32)
        return Network(len(layers), self._held(layers), policy.mlp.activation == "tanh")

    def _held(self, x: ctypes.Structure | ctypes.Array[Layer]) -> int:
        """Its address, valid as long as this object lives."""
        self._alive.append(x)
        return ctypes.addressof(x)

    def _memory(self, count: int, kind: type = np.float64) -> int:
        array: Array = np.empty(count, kind)
        self._alive.append(array)
        return address(array, kind)

    def __call__(self, t: int) -> tuple[int, Step]:
        """Take steps t, t + 1, ... of the rollout until an episode ends; returns the next t and the last step's result."""
        assert self._env is not None
        last = min(self.num_steps, t + min(self._env.steps_left(), self._longest))
        end = self._call(self._code.collect, t, last)
        return end, self._env.settle(end - t)

    def prepare_and_act(self) -> None:
        """Write the environments' current observation, as the policy sees it, to seen[0], and its action to actions[0]."""
        self._call(self._code.prepare_and_act)

    def _call(self, function: Callable[..., int], *arguments: int) -> int:
        if self._normalizer is None:
            return function(ctypes.byref(self._job), *arguments)
        self._moments.count = self._normalizer.count
        found = function(ctypes.byref(self._job), *arguments)
        self._normalizer.count = self._moments.count
        return found


_exact: dict[tuple[object, ...], bool] = {}  # keyed by all that the called functions depend on except the numbers


def make_collector(
    env: VectorEnv, policy: ControlPolicy, normalizer: ObservationNormalizer | None, seen: Array, noise: Array, actions: Array
) -> Collector | None:
    """A collector for one rollout; None if collect.c does not support the policy or environment, or is not exact for them."""
    if not isinstance(env, NativeEnv) or type(policy) is not ActorCritic or policy.output_size != env.num_actions:
        return None
    if min(policy.mlp.hidden_sizes) == 1:  # numpy calls other functions for products with a vector
        return None
    if library() is None or numpy_functions() is None or (parts := env.native(len(seen))) is None:
        return None
    key = (repr(policy), type(env).__name__, *seen.shape[1:], normalizer is None)
    if key not in _exact:
        _exact[key] = _is_exact(parts, policy, normalizer)
    return Collector(env, parts, policy, normalizer, seen, noise, actions) if _exact[key] else None


def _is_exact(parts: Native, policy: ActorCritic, normalizer: ObservationNormalizer | None) -> bool:
    """True if the policy's next observation and action and the normalizer agree with numpy's to the last bit."""
    ours, theirs = deepcopy(normalizer), deepcopy(normalizer)
    observation = parts.observation
    seen = np.empty((1, *observation.shape), np.float32)
    noise = np.random.default_rng(0).standard_normal((*seen.shape[:2], policy.output_size)).astype(np.float32)
    actions = policy.empty_actions(seen.shape[:2])
    Collector(None, parts, policy, ours, seen, noise, actions).prepare_and_act()
    prepared = observation.astype(np.float32) if theirs is None else theirs(observation)
    same = seen[0].tobytes() == prepared.tobytes(), actions[0].tobytes() == policy.act(prepared, noise[0]).tobytes()
    return all(same) and (ours is None or theirs is None or ours.state_dict() == theirs.state_dict())
