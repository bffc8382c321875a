"""What benchmark.py times: `gae` in each implementation, other estimators, and one pass over the same memory."""

import contextlib
import functools
import importlib
import io
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import gae_jax

GAMMA, LAMBDA = 0.99, 0.95
OURS, BEFORE, FLOOR = "gae", "gae, the other checkout", "one pass"
ARRAYS = "rewards values terminated last_value"


class Contender(NamedTuple):
    """A function and the form of its arguments."""

    function: Callable[..., Any]  # of the import that it needs, if any, and of the arrays
    arrays: str = ARRAYS  # names in `random_rollout`
    layout: str = "JAX"
    needs: str | None = None  # an import: "module.name"


def ours(rewards: Array, values: Array, terminated: Array, last_value: Array, *, both: bool = False, **how: Any) -> Any:
    """`gae`. Without `both`, the compiler leaves out the targets."""
    output = gae_jax.gae(rewards, values, terminated, gamma=GAMMA, lambda_=LAMBDA, bootstrap_value=last_value, **how)
    return output if both else output.advantages


def before(package: Any, *arrays: Array) -> Array:
    """`gae` of another checkout of this package."""
    rewards, values, terminated, last_value = arrays
    how = {"gamma": GAMMA, "lambda_": LAMBDA, "bootstrap_value": last_value}
    return package.gae(rewards, values, terminated, **how).advantages


def one_pass(rewards: Array, values: Array, terminated: Array, last_value: Array) -> Array:
    """Reads the inputs of `gae` and writes one output, with next to no arithmetic."""
    return jnp.where(terminated, rewards, rewards + values + last_value)


def rlax_advantages(estimate: Callable[..., Any], rewards: Array, discounts: Array, values: Array) -> Any:
    """The estimator of rlax, which takes one worker, vmapped over workers."""
    return jax.vmap(estimate, (1, 1, None, 1), 1)(rewards, discounts, LAMBDA, values)


def two_carries(rewards: Array, values: Array, terminated: Array, last_value: Array, unroll: int) -> Array:
    """The scan in the code of most agents in JAX."""

    def step(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        (advantage, next_value), (reward, value, done) = carry, row
        delta = reward + GAMMA * next_value * (1 - done) - value
        advantage = delta + GAMMA * LAMBDA * (1 - done) * advantage
        return (advantage, value), advantage

    carry, rows = (jnp.zeros_like(last_value), last_value), (rewards, values, terminated)
    return lax.scan(step, carry, rows, reverse=True, unroll=unroll)[1]


def composed(rewards: Array, discounts: Array, values: Array) -> Array:
    """A_t = δ_t + γ λ A_{t+1} as affine maps of A_{t+1}, composed in parallel."""

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    deltas = rewards + discounts * values[1:] - values[:-1]
    return lax.associative_scan(compose, (LAMBDA * discounts, deltas), reverse=True)[1]


def numpy_loop(rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray, last_value: np.ndarray) -> np.ndarray:
    """The recursion of the paper over time, in the precision of the arrays."""
    advantages = np.empty_like(rewards)
    advantage, next_value = np.zeros_like(last_value), last_value
    for t in reversed(range(len(rewards))):
        goes_on = ~terminated[t]
        delta = rewards[t] + GAMMA * (goes_on * next_value) - values[t]
        advantages[t] = advantage = delta + GAMMA * LAMBDA * (goes_on * advantage)
        next_value = values[t]
    return advantages


def one_by_one(rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray) -> np.ndarray:
    """The recursion over time and workers, for numba to compile for one core."""
    gamma, lambda_ = np.float32(GAMMA), np.float32(LAMBDA)
    advantages = np.zeros_like(values)
    for t in range(len(rewards) - 1, -1, -1):
        for n in range(rewards.shape[1]):
            discount = np.float32(0) if terminated[t, n] else gamma
            delta = rewards[t, n] + discount * values[t + 1, n] - values[t, n]
            advantages[t, n] = delta + discount * lambda_ * advantages[t + 1, n]
    return advantages[:-1]


@functools.cache
def numba_loop(njit: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Returns a function that is compiled at its first call, for all shapes."""
    return njit(one_by_one)


CONTENDERS = {
    OURS: Contender(ours),
    "gae, both outputs": Contender(functools.partial(ours, both=True)),
    "gae, scan": Contender(functools.partial(ours, implementation="scan")),
    "gae, blocked": Contender(functools.partial(ours, implementation="blocked")),
    "gae, pallas": Contender(functools.partial(ours, implementation="pallas")),
    "rlax": Contender(
        rlax_advantages, "rewards discounts all_values", needs="rlax.truncated_generalized_advantage_estimation"
    ),
    "Brax": Contender(
        lambda compute_gae, *x: compute_gae(*x, LAMBDA, GAMMA)[0] - x[3],
        "truncated_float terminated_float rewards values last_value",
        needs="brax.training.agents.ppo.losses.compute_gae",
    ),
    "Stoix": Contender(
        lambda estimate, *x: estimate(*x[:2], LAMBDA, v_tm1=x[2], v_t=x[3], time_major=True)[0],
        "rewards discounts values next_values",
        needs="stoix.utils.multistep.batch_truncated_generalized_advantage_estimation",
    ),
    "two-carry scan": Contender(functools.partial(two_carries, unroll=1)),
    "two-carry, unroll 16": Contender(functools.partial(two_carries, unroll=16)),
    "associative_scan": Contender(composed, "rewards discounts all_values"),
    "NumPy loop": Contender(numpy_loop, layout="NumPy"),
    "numba loop": Contender(
        lambda njit, *x: numba_loop(njit)(*x), "rewards all_values terminated", "NumPy", "numba.njit"
    ),
    "tianshou (numba)": Contender(
        lambda estimate, *x: estimate(*x, GAMMA, LAMBDA),
        "values next_values rewards ends",
        "flat",
        "tianshou.algorithm.algorithm_base._gae",
    ),
    "torchrl, vec": Contender(
        lambda estimate, *x: estimate(GAMMA, LAMBDA, *x),
        "values next_values rewards terminated terminated",
        "torch",
        "torchrl.objectives.value.functional.vec_generalized_advantage_estimate",
    ),
    FLOOR: Contender(one_pass),
}
LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "JAX": jnp.array,
    "NumPy": np.array,
    "flat": lambda x: x.T.flatten(),  # the workers one after the other
    "torch": lambda x: load("torch.tensor")(x.T[..., None].copy()),  # [N, T, 1]
}


@functools.cache
def load(name: str) -> Any:
    """Imports without warnings and prints; every failure is an ImportError."""
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise ImportError(str(error)) from error


def load_checkout(path: pathlib.Path) -> Any:
    """Imports the package `gae_jax` of another checkout, beside the one of this process.

    Its modules import each other as `gae_jax`. So the modules of this process step aside while it is imported.
    """

    def take_out() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gae_jax"}

    mine = take_out()
    sys.path.insert(0, str(path))
    try:
        package = importlib.import_module("gae_jax")
    finally:
        sys.path.remove(str(path))
        take_out()
        sys.modules.update(mine)
    if not pathlib.Path(str(package.__file__)).resolve().is_relative_to(path.resolve()):
        raise ImportError(f"there is no package gae_jax in {path}")
    return package


def why_not(contender: Contender, name: str) -> str | None:
    """Returns what prevents a contender from running on this machine, if anything does."""
    backend = jax.default_backend()
    if name == "gae, pallas" and backend != "tpu":
        return "for TPUs only"
    if contender.layout != "JAX" and backend != "cpu":
        return "for CPUs only"
    try:
        _ = contender.needs and load(contender.needs)
    except ImportError as error:
        return str(error)
    return None


def random_rollout(steps: int, workers: int) -> dict[str, np.ndarray]:
    """Arrays `[T, N]` for all contenders; one transition in a hundred ends an episode."""
    rng = np.random.default_rng(0)
    rewards, values = (rng.standard_normal((n, workers), np.float32) for n in (steps, steps + 1))
    terminated = rng.random((steps, workers)) < 0.01
    return {
        "rewards": rewards,
        "values": values[:-1],
        "terminated": terminated,
        "last_value": values[-1],  # [N]
        "all_values": values,  # [T+1, N]
        "next_values": np.where(terminated, 0, values[1:]),
        "discounts": np.where(terminated, 0, np.float32(GAMMA)),
        "terminated_float": terminated.astype(np.float32),
        "truncated_float": np.zeros_like(rewards),
        "ends": terminated | (np.arange(steps) == steps - 1)[:, None],
    }


def prepare(contender: Contender, rollout: dict[str, np.ndarray]) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the function of the arrays alone, and the arrays in the contender's layout."""
    arrays = [LAYOUTS[contender.layout](rollout[name]) for name in contender.arrays.split()]
    return functools.partial(contender.function, *([load(contender.needs)] if contender.needs else [])), arrays


def check(contender: Contender, name: str, output: Any, want: np.ndarray) -> None:
    """Raises an AssertionError if the output is not the advantages."""
    got = np.asarray(jax.tree.leaves(output)[0])
    if contender.layout in ("flat", "torch"):
        got = got.reshape(want.shape[::-1]).T
    error = np.abs(got - want).max() / np.abs(want).max()
    if name != FLOOR and not error < 1e-3:
        raise AssertionError(f"{name} is wrong at {want.shape}, by {error:.1e} of the largest advantage")
