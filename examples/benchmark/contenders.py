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
from unittest import mock

import command_line  # before the packages that it asks for
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import gae_jax

GAMMA, LAMBDA = 0.99, 0.95
OURS, BEFORE, PLAIN, FLOOR = "gae", "gae, the other checkout", "plain lax.scan", "one pass"
ARRAYS = "rewards values terminated last_value"


class Contender(NamedTuple):
    """A function and the form of its arguments."""

    function: Callable[..., Any]  # of the import that it needs, if any, and of the arrays
    arrays: str = ARRAYS  # names in `random_rollout`
    library: Any = jnp  # of its arrays
    needs: str | None = None  # an import: "module.name"


def advantages_of(
    package: Any, r: Array, v: Array, ends: Array, last_value: Array, lambda_: Any = LAMBDA, **how: Any
) -> Array:
    """The advantages of `gae`, of this package or of another checkout. The compiler leaves out the targets."""
    return package.gae(r, v, ends, gamma=GAMMA, lambda_=lambda_, bootstrap_value=last_value, **how).advantages


ours = functools.partial(advantages_of, gae_jax)


def both_outputs(rewards: Array, values: Array, terminated: Array, last_value: Array) -> Any:
    """The advantages and the targets of `gae`."""
    return gae_jax.gae(rewards, values, terminated, gamma=GAMMA, lambda_=LAMBDA, bootstrap_value=last_value)


def plain_scan(rewards: Array, values: Array, terminated: Array, last_value: Array, lambda_: Any = LAMBDA) -> Array:
    """The recursion of `gae` as nothing but a `lax.scan`."""

    def step(h: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, value, done = row
        advantage = reward + GAMMA * jnp.where(done, 0, h) - value
        return value + lambda_ * advantage, advantage

    return lax.scan(step, last_value, (rewards, values, terminated), reverse=True)[1]


def gradient_of(advantages: Callable[..., Array]) -> Callable[..., Any]:
    """Returns the gradient of Σ A² with respect to rewards, values, V(s_T) and λ."""
    return jax.grad(lambda *arrays: jnp.sum(advantages(*arrays) ** 2), (0, 1, 3, 4))


def one_pass(rewards: Array, values: Array, terminated: Array, last_value: Array) -> Array:
    """Reads the inputs of `gae` and writes one output, with next to no arithmetic."""
    return jnp.where(terminated, rewards, rewards + values + last_value)


def rlax_advantages(estimate: Callable[..., Any], rewards: Array, discounts: Array, values: Array) -> Any:
    """The estimator of rlax, which takes one worker, vmapped over workers."""
    return jax.vmap(estimate, (1, 1, None, 1), 1)(rewards, discounts, LAMBDA, values)


def two_carries(rewards: Array, values: Array, terminated: Array, last_value: Array, unroll: int) -> Array:
    """The scan in the code of most agents in JAX; PureJaxRL unrolls it by 16."""

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


def numpy_gradient(rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray, last_value: np.ndarray) -> Any:
    """The gradient of `gradient_of` by hand: forwards in time, with h for the derivative with respect to h_t."""
    advantages = numpy_loop(rewards, values, terminated, last_value)
    by_reward, by_value, h, by_lambda = np.empty_like(rewards), np.empty_like(values), np.zeros_like(last_value), 0.0
    for t in range(len(rewards)):
        by_reward[t] = 2 * advantages[t] + LAMBDA * h
        by_value[t] = h - by_reward[t]
        by_lambda += np.sum(advantages[t] * h)
        h = GAMMA * ~terminated[t] * by_reward[t]
    return by_reward, by_value, h, by_lambda


@functools.cache
def numba_loop(njit: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Returns a function that is compiled at its first call, for all shapes."""
    return njit(one_by_one)


CONTENDERS = {
    OURS: Contender(ours),
    "gae, both outputs": Contender(both_outputs),
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
    "two-carry scan": Contender(functools.partial(two_carries, unroll=1)),
    "PureJaxRL's loop": Contender(functools.partial(two_carries, unroll=16)),
    "associative_scan": Contender(composed, "rewards discounts all_values"),
    "NumPy loop": Contender(numpy_loop, library=np),
    "numba loop": Contender(lambda njit, *x: numba_loop(njit)(*x), "rewards all_values terminated", np, "numba.njit"),
    FLOOR: Contender(one_pass),
}
WITH_LAMBDA = f"{ARRAYS} lambda"
GRADIENTS = {
    OURS: Contender(gradient_of(ours), WITH_LAMBDA),
    "gae, blocked": Contender(gradient_of(functools.partial(ours, implementation="blocked")), WITH_LAMBDA),
    PLAIN: Contender(gradient_of(plain_scan), WITH_LAMBDA),
    FLOOR: CONTENDERS[FLOOR],
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
            raise ImportError("not installed" if isinstance(error, ModuleNotFoundError) else str(error)) from error


def load_checkout(path: pathlib.Path) -> Any:
    """Imports the package `gae_jax` of another checkout, beside the one of this process.

    Its modules import each other as `gae_jax`. So the modules of this process step aside while it is imported.
    """

    def take_out() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gae_jax"}

    mine = take_out()
    sys.path.insert(0, str(path))
    try:
        # The other package registers the same name, which JAX refuses.
        with mock.patch("jax.export.register_namedtuple_serialization"):
            package = importlib.import_module("gae_jax")
    finally:
        sys.path.remove(str(path))
        take_out()
        sys.modules.update(mine)
    if not pathlib.Path(str(package.__file__)).resolve().is_relative_to(path.resolve()):
        command_line.refuse(f"--against: there is no package gae_jax in {path}")
    return package


def why_not(contender: Contender, name: str) -> str | None:
    """Returns what prevents a contender from running on this machine, if anything does."""
    backend = jax.default_backend()
    if name == "gae, pallas" and backend != "tpu":
        return "for TPUs only"
    if contender.library is np and backend != "cpu":
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
        "lambda": np.array(LAMBDA, np.float32),
        "all_values": values,  # [T+1, N]
        "discounts": np.where(terminated, 0, np.float32(GAMMA)),
        "terminated_float": terminated.astype(np.float32),
        "truncated_float": np.zeros_like(rewards),
    }


def prepare(contender: Contender, rollout: dict[str, np.ndarray]) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the function of the arrays alone, and the arrays."""
    arrays = [contender.library.array(rollout[name]) for name in contender.arrays.split()]
    return functools.partial(contender.function, *([load(contender.needs)] if contender.needs else [])), arrays


def check(name: str, output: Any, want: tuple[np.ndarray, ...]) -> None:
    """Raises an AssertionError if the output is not what is wanted: the advantages, or a gradient."""
    for got, x in zip(jax.tree.leaves(output), want, strict=False):  # the targets may follow the advantages
        error = np.abs(np.asarray(got) - x).max() / np.abs(x).max()
        if name != FLOOR and not error < 1e-3:
            raise AssertionError(f"{name} is wrong at {x.shape}, by {error:.1e} of the largest entry")
