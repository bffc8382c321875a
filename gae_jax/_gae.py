"""Generalized Advantage Estimation: one reverse recursion, for one worker, vmapped over all of them.

Schulman et al., 2015, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv:1506.02438.

Write h for the value that a transition bootstraps from. Going backwards in time, from h_T = V(s_T):

    A_t = r_t + γ h_{t+1} - V(s_t)        the advantage
    h_t = V(s_t) + λ A_t                  handed to transition t-1

Put the second line into the first, and it is the paper's recursion: A_t = δ_t + γ λ A_{t+1} with
δ_t = r_t + γ V(s_{t+1}) - V(s_t). In this form there is one carry instead of two, no shifted copy of the values, and
every boundary of an episode is a rule about h alone: after a terminated transition it is 0, after a truncated one the
value of the final observation. And h is all that earlier time needs to know of later time, so a rollout may be cut
anywhere: hand the later piece's h to the earlier one as its bootstrap value.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gae_jax._trajectory import Transition, canonical_trajectory, check_shape, check_unit_interval


class GAEOutput(NamedTuple):
    """What `gae` returns, in the shape of `rewards`."""

    advantages: Array  # A_t
    targets: Array  # A_t + V(s_t), the λ-return: what to fit the values to


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike | None = None,
    *,
    gamma: ArrayLike,
    lambda_: ArrayLike,
    bootstrap_value: ArrayLike | None = None,
    final_values: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    time_axis: int = 0,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> GAEOutput:
    """Computes Generalized Advantage Estimation over a batch of rollouts.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ A_{t+1}

    where V(s_{t+1}) is 0 after a terminated transition, the value of the final observation after a truncated one, and
    A_{t+1} is 0 after either. `T` is the number of transitions; `*B` are any batch axes: workers, agents, rewards.

    Pure, compiled with `jax.jit`, and right inside jit, vmap, grad and scan. Nothing is detached: where a loss should
    not be differentiated through its targets, wrap them in `jax.lax.stop_gradient`.

    Args:
      rewards: `[T, *B]`, r_t, the reward of the transition s_t -> s_{t+1}; floating-point or integer.
      values: `[T+1, *B]`, V(s_0) ... V(s_T), in units of reward; or `[T, *B]` together with `bootstrap_value`.
      terminated: `[T, *B]`, bool or 0 and 1: transition t ended the episode, so nothing of value follows.
      truncated: `[T, *B]`, bool or 0 and 1: transition t cut the episode off, at a time limit say: value follows, but
        row t+1 belongs to another episode. Where both are set, `terminated` wins.
      gamma: γ, the discount per step, a scalar in [0, 1].
      lambda_: λ, a scalar in [0, 1]: 0 is the one-step advantage δ_t; 1 is the Monte-Carlo return minus V(s_t).
      bootstrap_value: `[*B]`, V(s_T), the value of the state after the last transition.
      final_values: `[T, *B]`, the value of the final observation, the one before the reset; read only where truncated.
        Without it a truncated row cannot be told what follows and is dropped: its advantage is 0, its target its value.
      mask: not available yet.
      time_axis: the axis of time: 0 for arrays `[T, *B]`, 1 for `[N, T]`.
      axis_name: not available yet.
      implementation: not available yet.

    Returns:
      GAEOutput(advantages, targets), in the shape of `rewards` and in the dtype that the floating-point arrays promote
      to. The recursion itself never runs below float32.

    Raises:
      TypeError: an argument is not an array of numbers, or not one of flags.
      ValueError: a shape is not the one above, gamma or lambda_ is a number outside [0, 1], or T is 0.
      NotImplementedError: mask, axis_name, implementation, or an array for gamma or lambda_.

    Source: Schulman et al., 2015, arXiv:1506.02438, equations 11, 12 and 16.

    >>> import jax.numpy as jnp
    >>> advantages, targets = gae(
    ...     rewards=jnp.array([1.0, 1.0, 1.0]),
    ...     values=jnp.array([0.5, 0.5, 0.5, 0.5]),  # the last is V(s_T)
    ...     terminated=jnp.array([False, True, False]),
    ...     gamma=0.5,
    ...     lambda_=0.5,
    ... )
    >>> print(advantages)
    [0.875 0.5   0.75 ]
    >>> print(targets)
    [1.375 1.    1.25 ]
    """
    for name, x in {"mask": mask, "axis_name": axis_name, "implementation": implementation}.items():
        if x is not None:
            raise NotImplementedError(f"`{name}` is not available yet; leave it None")
    for name, x in {"gamma": gamma, "lambda_": lambda_}.items():
        check_unit_interval(name, x)
        if jnp.ndim(x) > 0:
            raise NotImplementedError(f"`{name}` must be a scalar for now; got an array of shape {jnp.shape(x)}")
    return _gae(rewards, values, terminated, truncated, gamma, lambda_, bootstrap_value, final_values, time_axis)


@functools.partial(jax.jit, static_argnames="time_axis")
def _gae(
    rewards: ArrayLike,
    values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike | None,
    gamma: ArrayLike,
    lambda_: ArrayLike,
    bootstrap_value: ArrayLike | None,
    final_values: ArrayLike | None,
    time_axis: int,
) -> GAEOutput:
    trajectory = canonical_trajectory(
        rewards=rewards,
        values=values,
        terminated=terminated,
        truncated=truncated,
        bootstrap_value=bootstrap_value,
        final_values=final_values,
        time_axis=time_axis,
    )
    value = trajectory.transitions.value
    recursion = functools.partial(
        _advantages_of_one_worker, gamma=jnp.asarray(gamma, value.dtype), lambda_=jnp.asarray(lambda_, value.dtype)
    )
    for _ in trajectory.bootstrap_value.shape:
        recursion = jax.vmap(recursion, in_axes=(1, 0), out_axes=1)
    advantages = recursion(trajectory.transitions, trajectory.bootstrap_value)

    def as_given(x: Array) -> Array:
        return jnp.moveaxis(x, 0, trajectory.time_axis).astype(trajectory.dtype)

    # The λ-return is one addition away; a second output of the loop would cost a second buffer.
    return GAEOutput(as_given(advantages), as_given(advantages + value))


def _advantages_of_one_worker(
    transitions: Transition, bootstrap_value: Array, *, gamma: Array, lambda_: Array
) -> Array:
    """The recursion, over one trajectory: transitions `[T]`, bootstrap_value `[]` -> advantages `[T]`."""

    def step(h: Array, row: Transition) -> tuple[Array, Array]:
        advantage = row.reward + gamma * _value_after(row, h) - row.value
        if row.truncated is not None and row.final_value is None:  # what follows is lost: drop the row
            advantage = jnp.where(row.truncated & ~row.terminated, 0, advantage)
        return row.value + lambda_ * advantage, advantage

    _, advantages = lax.scan(step, bootstrap_value, transitions, reverse=True)
    return advantages


def _value_after(row: Transition, h: Array) -> Array:
    """The value that a transition bootstraps from, where h is that of the next row."""
    if row.truncated is not None and row.final_value is not None:
        h = jnp.where(row.truncated, row.final_value, h)
    return jnp.where(row.terminated, 0, h)


@dataclasses.dataclass(frozen=True)
class GAE:
    """The estimator as an object: batch-major, with one flag for the end of an episode.

    >>> import numpy as np
    >>> estimate = GAE(n_workers=2, worker_steps=3, gamma=0.5, lambda_=0.5)
    >>> done = np.array([[False, True, False], [False, False, False]])
    >>> print(estimate(done, rewards=np.ones((2, 3)), values=np.full((2, 4), 0.5)))
    [[0.875    0.5      0.75    ]
     [0.984375 0.9375   0.75    ]]
    """

    n_workers: int
    worker_steps: int
    gamma: float
    lambda_: float

    def __call__(self, done: ArrayLike, rewards: ArrayLike, values: ArrayLike) -> Array:
        """Computes the advantages of `n_workers` rollouts of `worker_steps` transitions each.

        Args:
          done: `[n_workers, worker_steps]`; done[i, t] says that transition t of worker i ended its episode.
          rewards: `[n_workers, worker_steps]`.
          values: `[n_workers, worker_steps + 1]`; the last column holds V(s_T), the values after the last transition.

        Returns:
          The advantages, `[n_workers, worker_steps]`.
        """
        shape = (self.n_workers, self.worker_steps)
        check_shape("done", done, shape, "[n_workers, worker_steps]")
        check_shape("rewards", rewards, shape, "[n_workers, worker_steps]")
        return gae(rewards, values, done, gamma=self.gamma, lambda_=self.lambda_, time_axis=1).advantages
