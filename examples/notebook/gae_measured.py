"""What `gae_explained.ipynb` measures, where the computation is longer than its result.

The walk of section 3 is enumerated in float64 NumPy, by definition, and simulated through the library. Sections 4 and 5
differentiate an estimator. Section 6 watches the advantages of agents that learn.
"""

from collections.abc import Callable
from typing import Any

import bug_study
import jax
import numpy as np

from gae_jax import gae

# ---------------------------------------------------------------------------------------------------------------------
# The walk: five states in a row, left or right with probability one half, 12 steps.

STATES, STEPS, GAMMA = 5, 12, 0.9
ENTERED = np.array([0.5, 0.0, 0.0, 0.0, 1.0])  # the reward for entering each state
TO_LEFT, TO_RIGHT = np.maximum(np.arange(STATES) - 1, 0), np.minimum(np.arange(STATES) + 1, STATES - 1)
P = 0.5 * np.eye(STATES)[TO_LEFT] + 0.5 * np.eye(STATES)[TO_RIGHT]  # P[s, s']: the probability of going from s to s'
V_EXACT = np.linalg.solve(np.eye(STATES) - GAMMA * P, P @ ENTERED)


def walk(start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Returns the states `[..., T+1]` that the actions `[..., T]` (0 left, 1 right) lead through."""
    states = [np.broadcast_to(start, actions.shape[:-1])]
    for t in range(actions.shape[-1]):
        states.append(np.where(actions[..., t] == 1, TO_RIGHT[states[-1]], TO_LEFT[states[-1]]))
    return np.stack(states, axis=-1)


ALL_ACTIONS = (np.arange(2**STEPS)[:, None] >> np.arange(STEPS)) & 1  # bit k of the row's index is action k
ALL_STATES = walk(np.arange(STATES)[:, None], np.broadcast_to(ALL_ACTIONS, (STATES, *ALL_ACTIONS.shape)))


def by_first_action(x: np.ndarray) -> np.ndarray:
    """Rearranges `[STATES, 2**STEPS, ...]` to `[STATES, 2**(STEPS-1), 2, ...]`: state, later actions, first action."""
    return x.reshape(STATES, -1, 2, *x.shape[2:])


def td_errors(states: np.ndarray, critic: np.ndarray) -> np.ndarray:
    """Computes the TD errors `[..., T]` of walks `[..., T+1]`."""
    return ENTERED[states[..., 1:]] + GAMMA * critic[states[..., 1:]] - critic[states[..., :-1]]


def exact_target(states: np.ndarray, critic: np.ndarray) -> np.ndarray:
    """Returns Q(s, a) of the first action, which an estimate without error would find, minus the critic's V(s)."""
    return ENTERED[states[..., 1]] + GAMMA * V_EXACT[states[..., 1]] - critic[states[..., 0]]


def bias_and_variance(critic: np.ndarray, lambdas: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns bias and variance of the first step's advantage, `[STATES, 2, lambdas]`: first state, first action."""
    estimate = by_first_action(
        td_errors(ALL_STATES, critic) @ (GAMMA * np.asarray(lambdas)) ** np.arange(STEPS)[:, None]
    )
    truth = by_first_action(exact_target(ALL_STATES, critic))
    return estimate.mean(1) - truth.mean(1)[..., None], estimate.var(1)


def errors_of_the_library(critic: np.ndarray, lambda_: float, number: int = 40_000) -> np.ndarray:
    """Returns the squared errors of `gae` on the first step of simulated walks, `[number]`."""
    rng = np.random.default_rng(0)
    states = walk(rng.integers(STATES, size=number), rng.integers(2, size=(number, STEPS)))
    no_end = np.zeros((number, STEPS), bool)
    estimate = gae(ENTERED[states[:, 1:]], critic[states], no_end, gamma=GAMMA, lambda_=lambda_, time_axis=1).advantages
    return (np.asarray(estimate, float)[:, 0] - exact_target(states, critic)) ** 2


def variance_of_a_walk(critic: np.ndarray, lambda_: float) -> float:
    """Returns the variance of a walk's policy gradient, relative to its value if the 12 rows were independent.

    The gradient is the sum of the advantages times a - 1/2: the policy's parameter is the log-odds of going right.
    """
    deltas, advantages = td_errors(ALL_STATES, critic), np.zeros(ALL_STATES[..., 1:].shape)
    for t in range(STEPS):
        advantages[..., t] = deltas[..., t:] @ (GAMMA * lambda_) ** np.arange(STEPS - t)
    rows = advantages * (ALL_ACTIONS - 0.5)
    return rows.sum(-1).var() / rows.var((0, 1)).sum()


def worth_of_going_right(gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much more right earns than left in 12 steps, and the standard deviation of the sum, `[STATES]`."""
    earned = by_first_action(ENTERED[ALL_STATES[..., 1:]] @ gamma ** np.arange(STEPS))
    means = earned.mean(1)
    return means[:, 1] - means[:, 0], np.sqrt(earned.var(1).mean(1))


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives: ten steps, of which step END terminates an episode and step LIMIT is truncated.

T, END, LIMIT = 10, 3, 6


def jacobians(estimate: Callable[..., Any], gamma: float, lambda_: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns dA/dr `[T, T]`, dA/dV `[T, T+1]`, whose last column is for V(s_T), and dA/dV(final) `[T, T]`."""
    rng = np.random.default_rng(1)
    rewards, values, final_values = (rng.normal(size=T).astype(np.float32) for _ in range(3))
    numbers = {"rewards": rewards, "values": values, "final_values": final_values, "bootstrap_value": np.float32(0.5)}
    options = {
        "terminated": np.arange(T) == END,
        "truncated": np.arange(T) == LIMIT,
        "gamma": gamma,
        "lambda_": lambda_,
    }
    by_name = jax.jacrev(lambda x: estimate(**x, **options))(numbers)
    by_value = np.concatenate([by_name["values"], by_name["bootstrap_value"][:, None]], axis=1)
    return np.asarray(by_name["rewards"]), by_value, np.asarray(by_name["final_values"])


# ---------------------------------------------------------------------------------------------------------------------
# The advantages of agents that learn from the right ones.


@jax.jit
@jax.vmap
def watched_iteration(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
    """Returns the next state of an agent, and the right advantages that it learns from, `[STEPS, ENVS]`."""
    params, _, _, envs = state
    _, _, advantages = bug_study.collect(bug_study.right, params, envs, jax.random.split(key, 3)[0])
    return bug_study.iterate(bug_study.right, bug_study.in_order, bug_study.in_order, state, key)[0], advantages


def share_between_workers_and_correlation(seeds: int = 8, iterations: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Watches the first iterations of agents.

    Returns:
      The share of the advantages' variance that lies between workers, and the correlation, within a worker, of the
      advantages and the same advantages in reverse. Both `[iterations]`, means over agents.
    """
    starts = jax.random.split(jax.random.key(100), (seeds, 3))
    state = jax.vmap(lambda keys: bug_study.untrained(*keys))(starts)
    shares, correlations = [], []
    for i in range(iterations):
        state, advantages = watched_iteration(state, jax.random.split(jax.random.key(i), seeds))
        of_worker = np.mean(advantages, axis=1, keepdims=True)
        within = np.asarray(advantages) - of_worker
        shares.append(np.mean(of_worker.var((1, 2)) / np.var(advantages, axis=(1, 2))))
        correlations.append(np.mean([np.corrcoef(a.ravel(), a[::-1].ravel())[0, 1] for a in within]))
    return np.array(shares), np.array(correlations)
