"""The choice of a backend: MuJoCo stepped directly for ``mujoco_tasks.TASKS``, vectorized CartPole, else gymnasium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rgpo.control.envs.cartpole_env import TIME_LIMITS, CartPoleVector
from rgpo.control.envs.gymnasium_env import GymnasiumVector
from rgpo.control.envs.mujoco_tasks import TASKS
from rgpo.control.envs.vector_env import VectorEnv, Wrap
from rgpo.errors import require

BACKENDS = ("auto", "gymnasium", "mujoco")


def make_vector_env(
    env_id: str, num_envs: int, backend: str, wrappers: Sequence[Wrap] = (), kwargs: Mapping[str, object] | None = None
) -> VectorEnv:
    """Make num_envs copies; ``auto`` chooses a faster backend if one supports the id and there are no wrappers or kwargs.

    Raises: ConfigError if the id or the backend is unknown, a package is missing, a space is unsupported or num_envs < 1.
    """
    require(num_envs > 0, "task.num_envs", num_envs, "must be at least 1.")
    require(backend in BACKENDS, "task.backend", backend, f"unknown backend; choose {', '.join(BACKENDS)}.")
    direct = env_id in TASKS and not kwargs and not wrappers
    require(
        direct or backend != "mujoco",
        "task.backend",
        backend,
        f"cannot run {env_id} with env_kwargs {dict(kwargs or {})} and wrappers {list(wrappers)}, "
        f"only {', '.join(TASKS)} without them; set task.backend=gymnasium.",
    )
    if direct and backend != "gymnasium":
        from rgpo.control.envs.mujoco_env import MujocoVector  # loads MuJoCo's library

        return MujocoVector(env_id, num_envs)
    if env_id in TIME_LIMITS and not kwargs and not wrappers and backend == "auto":
        return CartPoleVector(env_id, num_envs)
    return GymnasiumVector(env_id, num_envs, wrappers, kwargs)
