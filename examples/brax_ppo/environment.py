"""The packages that the example needs, and Brax's environments as PPO needs them."""

import contextlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NoReturn
from unittest import mock


def refuse(message: str) -> NoReturn:
    """Prints one line on standard error and exits with status 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def require(target: str, *modules: str) -> None:
    """Refuses to go on without the modules that `pip install -e target` installs."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        refuse(f"{', '.join(missing)} not installed; run: pip install -e {target}")


require(".", "gae_jax", "jax", "chex")  # all other modules import this one first
require("'.[examples]'", "brax", "flax", "matplotlib", "optax", "orbax", "rich", "tyro")

Backend = Literal["spring", "generalized", "positional", "mjx"]
Environment = Literal[  # all of Brax's except swimmer, which fails with current versions of JAX
    "ant",
    "fast",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
]


def make(config: Any) -> Any:
    """Returns a batch of environments that reset themselves and keep the last observation of each episode."""
    with quiet():
        import jax
        import mujoco
        from brax import envs
        from brax.envs.wrappers import training

        handler = getattr(mujoco, "set_mju_user_warning", lambda handle: None)
        handler(lambda text: None if "settotalmass" in text else print(text, file=sys.stderr))
        with mock.patch("jax.devices", jax.local_devices):  # MJX puts constants on the first, of whatever process
            env = envs.get_environment(config.env, backend=config.backend)

    class KeepFinalObservation(envs.Wrapper):
        """Keeps the observation after each step. Below, AutoResetWrapper replaces it where an episode ended."""

        def reset(self, rng: Any) -> Any:
            return self.keep(self.env.reset(rng))

        def step(self, state: Any, action: Any) -> Any:
            return self.keep(self.env.step(state, action))

        def keep(self, state: Any) -> Any:
            return state.replace(info=state.info | {"final_obs": state.obs})

    env = training.EpisodeWrapper(training.VmapWrapper(env), config.episode_length, action_repeat=1)
    return training.AutoResetWrapper(KeepFinalObservation(env))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what Brax and its dependencies print about their own maintenance."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
