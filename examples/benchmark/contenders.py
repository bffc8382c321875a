"""What benchmark.py times: `gae` in each implementation, other estimators, and one pass over the same memory."""

import contextlib
import functools
import importlib
import io
import math
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import gae_jax

GAMMA, LAMBDA = 0.99, 0.95
ARRAYS = "rewards values terminated last_value"
OURS, BEFORE, PLAIN, FLOOR = "gae", "gae, the other checkout", "plain lax.scan", "one pass"
UNROLLED = "unrolled loop"


class Contender(NamedTuple):
    """A function and the form of its arguments."""

    function: Callable[..., Any]
    arrays: str = ARRAYS  # names in `random_rollout`
    library: Any = jnp  # of its arrays
    needs: str = "gae_jax"  # the module that it imports
    longest: float = math.inf  # T; the contender is left out where T is larger


def both(package: Any, r: Array, v: Array, ends: Array, last_value: Array, lambda_: Any = LAMBDA, **how: Any) -> Any:
    """Advantages and targets by `gae`, of this package or of another checkout."""
    return package.gae(r, v, ends, gamma=GAMMA, lambda_=lambda_, bootstrap_value=last_value, **how)


def advantages(package: Any, *arrays: Array, **how: Any) -> Array:
    """The advantages alone: the compiler leaves out the targets."""
    return both(package, *arrays, **how).advantages


ours = functools.partial(advantages, gae_jax)


def plain_scan(rewards: Array, values: Array, terminated: Array, last_value: Array, lambda_: Any = LAMBDA) -> Array:
    """The recursion of `gae` as nothing but a `lax.scan`."""

    def step(h: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, value, done = row
        advantage = reward + GAMMA * jnp.where(done, 0, h) - value
        return value + lambda_ * advantage, advantage

    return lax.scan(step, last_value, (rewards, values, terminated), reverse=True)[1]


def gradient_of(estimate: Callable[..., Array]) -> Callable[..., Any]:
    """Returns the gradient of Σ A² with respect to rewards, values, V(s_T) and λ."""
    return jax.grad(lambda *arrays: jnp.sum(estimate(*arrays) ** 2), (0, 1, 3, 4))


def one_pass(rewards: Array, values: Array, terminated: Array, last_value: Array) -> Array:
    """Reads the inputs of `gae` and writes one output, with next to no arithmetic."""
    return jnp.where(terminated, rewards, rewards + values + last_value)


def of_rlax(rewards: Array, discounts: Array, values: Array) -> Array:
    """The estimator of rlax, which takes one worker, vmapped over workers."""
    estimate = importlib.import_module("rlax").truncated_generalized_advantage_estimation
    return jax.vmap(estimate, (1, 1, None, 1), 1)(rewards, discounts, LAMBDA, values)


def of_brax(truncation: Array, termination: Array, rewards: Array, values: Array, last_value: Array) -> Array:
    """Brax's targets minus the values; the advantages that Brax returns are not GAE."""
    losses = importlib.import_module("brax.training.agents.ppo.losses")
    return losses.compute_gae(truncation, termination, rewards, values, last_value, LAMBDA, GAMMA)[0] - values


def two_carries(rewards: Array, values: Array, terminated: Array, last_value: Array, unroll: int) -> Array:
    """The scan in the code of most agents in JAX; PureJaxRL unrolls it by 16."""

    def step(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        (advantage, next_value), (reward, value, done) = carry, row
        delta = reward + GAMMA * next_value * (1 - done) - value
        advantage = delta + GAMMA * LAMBDA * (1 - done) * advantage
        return (advantage, value), advantage

    carry, rows = (jnp.zeros_like(last_value), last_value), (rewards, values, terminated)
    return lax.scan(step, carry, rows, reverse=True, unroll=unroll)[1]


def unrolled(rewards: Array, values: Array, terminated: Array, last_value: Array) -> Array:
    """A Python loop under `jit`, as in the JAX branch of skrl: the program has T copies of the loop's body."""
    advantages, advantage, next_value = jnp.zeros_like(rewards), jnp.zeros_like(last_value), last_value
    for t in reversed(range(len(rewards))):
        goes_on = 1 - terminated[t]
        advantage = rewards[t] - values[t] + GAMMA * goes_on * (next_value + LAMBDA * advantage)
        advantages, next_value = advantages.at[t].set(advantage), values[t]
    return advantages


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


@functools.cache
def numba_loop() -> Callable[..., np.ndarray]:
    """Returns the recursion over time and workers, which numba compiles for one core at its first call."""
    gamma, lambda_ = np.float32(GAMMA), np.float32(LAMBDA)

    @importlib.import_module("numba").njit
    def loop(rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        advantages = np.zeros_like(values)
        for t in range(len(rewards) - 1, -1, -1):
            for n in range(rewards.shape[1]):
                discount = np.float32(0) if terminated[t, n] else gamma
                delta = rewards[t, n] + discount * values[t + 1, n] - values[t, n]
                advantages[t, n] = delta + discount * lambda_ * advantages[t + 1, n]
        return advantages[:-1]

    return loop


CONTENDERS = {
    OURS: Contender(ours),
    "gae, both outputs": Contender(functools.partial(both, gae_jax)),
    "gae, scan": Contender(functools.partial(ours, implementation="scan")),
    "gae, blocked": Contender(functools.partial(ours, implementation="blocked")),
    "rlax": Contender(of_rlax, "rewards discounts all_values", needs="rlax"),
    "Brax": Contender(
        of_brax,
        "truncated_float terminated_float rewards values last_value",
        needs="brax.training.agents.ppo.losses",
    ),
    "two-carry scan": Contender(functools.partial(two_carries, unroll=1)),
    "PureJaxRL's loop": Contender(functools.partial(two_carries, unroll=16)),
    UNROLLED: Contender(unrolled, longest=128),
    "associative_scan": Contender(composed, "rewards discounts all_values"),
    "NumPy loop": Contender(numpy_loop, library=np),
    "numba loop": Contender(lambda *x: numba_loop()(*x), "rewards all_values terminated", np, "numba"),
    FLOOR: Contender(one_pass),
}
GRADIENTS = {
    OURS: Contender(gradient_of(ours), f"{ARRAYS} lambda"),
    "gae, blocked": Contender(gradient_of(functools.partial(ours, implementation="blocked")), f"{ARRAYS} lambda"),
    PLAIN: Contender(gradient_of(plain_scan), f"{ARRAYS} lambda"),
    FLOOR: CONTENDERS[FLOOR],
}


def load_checkout(path: pathlib.Path) -> Any:
    """Imports the package `gae_jax` of another checkout, beside the one of this process.

    Its modules import each other as `gae_jax`. So the modules of this process step aside while it is imported.
    """
    with (
        mock.patch.dict(sys.modules),  # restored at the end
        mock.patch.object(sys, "path", [str(path), *sys.path]),
        mock.patch("jax.export.register_namedtuple_serialization"),  # JAX refuses to register a name twice
    ):
        for name in [name for name in sys.modules if name.split(".")[0] == "gae_jax"]:
            del sys.modules[name]
        return importlib.import_module("gae_jax")


def why_not(contender: Contender) -> str | None:
    """Returns what prevents a contender from running on this machine, if anything does."""
    if contender.library is np and jax.default_backend() != "cpu":
        return "for CPUs only"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            importlib.import_module(contender.needs)
    except Exception as error:  # not only an ImportError: a package may not fit this version of jax
        return "not installed" if isinstance(error, ModuleNotFoundError) else str(error)


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


def right_results(rollout: dict[str, np.ndarray], gradient: bool) -> list[np.ndarray]:
    """The advantages by a float64 loop, or the gradient of a plain `lax.scan`, whose advantages are checked first."""
    arrays = [rollout[name] for name in ARRAYS.split()]
    advantages = numpy_loop(*(x if x.dtype == bool else x.astype(np.float64) for x in arrays))
    if not gradient:
        return [advantages]
    check(PLAIN, plain_scan(*map(jnp.array, arrays)), [advantages])
    return list(map(np.asarray, gradient_of(plain_scan)(*map(jnp.array, [*arrays, rollout["lambda"]]))))


def check(name: str, output: Any, want: list[np.ndarray]) -> None:
    """Raises an AssertionError if the output is not what is wanted: the advantages, or a gradient."""
    for got, x in zip(jax.tree.leaves(output), want, strict=False):  # the targets may follow the advantages
        error = np.abs(np.asarray(got) - x).max() / np.abs(x).max()
        if name != FLOOR and not error < 1e-3:
            raise AssertionError(f"{name} is wrong at {x.shape}, by {error:.1e} of the largest entry")
