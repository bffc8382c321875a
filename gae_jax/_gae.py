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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gae_jax._affine_scan import affine_scan
from gae_jax._trajectory import (
    Trajectory,
    Transition,
    as_given,
    canonical_trajectory,
    check_arguments,
    check_shape,
)

Scan = Callable[..., tuple[Array, Any]]  # affine_scan, by the implementation and over the mesh axis that were asked for


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

    Pure, compiled with `jax.jit`, and right inside jit, vmap, grad, scan and shard_map. Nothing is detached: where a
    loss should not be differentiated through its targets, wrap them in `jax.lax.stop_gradient`.

    Args:
      rewards: `[T, *B]`, r_t, the reward of the transition s_t -> s_{t+1}; floating-point or integer.
      values: `[T+1, *B]`, V(s_0) ... V(s_T), in units of reward; or `[T, *B]` together with `bootstrap_value`.
      terminated: `[T, *B]`, bool or 0 and 1: transition t ended the episode, so nothing of value follows.
      truncated: `[T, *B]`, bool or 0 and 1: transition t cut the episode off, at a time limit say: value follows, but
        row t+1 belongs to another episode. Where both are set, `terminated` wins.
      gamma: γ, the discount, in [0, 1]: a scalar, or an array that broadcasts to `[T, *B]`: `[N]` is one per worker,
        `[T, 1]` one per step.
      lambda_: λ, in [0, 1], likewise: 0 is the one-step advantage δ_t; 1 is the Monte-Carlo return minus V(s_t). Where
        they vary, A_t = δ_t + γ_t λ_t A_{t+1}, with δ_t = r_t + γ_t V(s_{t+1}) - V(s_t).
      bootstrap_value: `[*B]`, V(s_T), the value of the state after the last transition.
      final_values: `[T, *B]`, the value of the final observation, the one before the reset; read only where truncated.
        Without it a truncated row cannot be told what follows and is dropped: its advantage is 0, its target its value.
      mask: `[T, *B]`, bool or 0 and 1: False where the row is no transition: padding, a prompt token, the filler row of
        an auto-reset. The recursion skips it: the row before it sees the next live row. Its advantage is 0, its target
        its value (0 if that is not finite).
      time_axis: the axis of time: 0 for arrays `[T, *B]`, 1 for `[N, T]`.
      axis_name: inside `jax.shard_map`, the axis of the mesh that time is split over: device i holds the i-th piece of
        each array, and `T` is the length of a piece. V(s_T) is read on the last device, and what is exchanged does not
        depend on `T`: one all-gather of two numbers a worker (and, where lambda_ varies over time, its seams).
      implementation: of the scan over time, as in `affine_scan`: "scan", "blocked", "pallas"; None suits the platform.

    Returns:
      GAEOutput(advantages, targets), in the shape of `rewards` and in the dtype that the floating-point arrays promote
      to. The recursion itself never runs below float32.

    What is not read may be NaN and changes no output and no gradient: final_values where not truncated, any input of a
    masked row, the value that a terminated transition would have bootstrapped from.

    Raises:
      TypeError: an argument is not an array of numbers, or not one of flags.
      ValueError: a shape or name is not one of the above, gamma or lambda_ is a number outside [0, 1], or T is 0.
      NotImplementedError: an implementation that cannot run here.

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
    arguments = {
        "rewards": rewards,
        "values": values,
        "terminated": terminated,
        "truncated": truncated,
        "bootstrap_value": bootstrap_value,
        "final_values": final_values,
        "mask": mask,
        "gamma": gamma,
        "lambda_": lambda_,
    }
    check_arguments(arguments)
    return _gae(arguments, time_axis=time_axis, axis_name=axis_name, implementation=implementation)


@functools.partial(jax.jit, static_argnames=("time_axis", "axis_name", "implementation"))
def _gae(
    arguments: dict[str, ArrayLike | None], *, time_axis: int, axis_name: str | None, implementation: str | None
) -> GAEOutput:
    trajectory = canonical_trajectory(arguments, time_axis, axis_name)
    scan = functools.partial(affine_scan, axis_name=axis_name, implementation=implementation)
    advantages = recursion(trajectory, lambda_before(trajectory, scan, axis_name), scan)
    targets = advantages + value_or_0(trajectory)  # not another output of the loop: that would cost a buffer more
    return GAEOutput(as_given(advantages, trajectory), as_given(targets, trajectory))


def value_or_0(trajectory: Trajectory) -> Array:
    """V(s_t); the target of a dead row is its value, if that is a number."""
    value, mask = trajectory.transitions.value, trajectory.transitions.mask
    return value if mask is None else jnp.where(mask | jnp.isfinite(value), value, 0)


def recursion(trajectory: Trajectory, mixing: Array, scan: Scan) -> Array:
    """A_t of every row, `[T, *B]`, where h_t = V(s_t) + mixing_t A_t; vmapped over every batch axis."""
    steps, *batch = trajectory.transitions.reward.shape
    rows: dict[str, Any] = {"transition": trajectory.transitions}
    constants: dict[str, Any] = {}
    for name, x in {"gamma": trajectory.gamma, "mixing": mixing}.items():
        if len(x) == 1:
            constants[name] = _per_worker(x[0], (), tuple(batch))
        else:
            rows[name] = _per_worker(x, (steps,), tuple(batch))
    row_axes = jax.tree.map(lambda x: 1 if x.ndim > 1 else None, rows)
    constant_axes = jax.tree.map(lambda x: 0 if x.ndim > 0 else None, constants)
    batched = functools.partial(_advantages_of_one_worker, scan)
    for _ in batch:
        batched = jax.vmap(batched, in_axes=(row_axes, constant_axes, 0), out_axes=1)
    return batched(rows, constants, trajectory.bootstrap_value)


def _per_worker(x: Array, time: tuple[int, ...], batch: tuple[int, ...]) -> Array:
    """Fills out the batch axes along which a parameter varies, or drops them all: a scalar costs no memory traffic."""
    varies = any(n != 1 for n in x.shape[len(time) :])
    return jnp.broadcast_to(x, time + batch) if varies else x.reshape(time)


def _advantages_of_one_worker(scan: Scan, rows: Any, constants: Any, bootstrap_value: Array) -> Array:
    """The recursion, over one trajectory: rows `[T]`, constants and bootstrap_value `[]` -> advantages `[T]`."""

    def step_with_constants(h: Array, row: dict[str, Any]) -> tuple[Array, Array]:
        return step(h, **row, **constants)

    _, advantages = scan(step_with_constants, bootstrap_value, rows, reverse=True)
    return advantages


def step(h: Array, transition: Transition, gamma: Array, mixing: Array) -> tuple[Array, Array]:
    """From h_{t+1} and row t to h_t and A_t; a masked row hands h on untouched."""
    mask = transition.mask
    if mask is not None:  # what a dead row holds may be NaN, so nothing of it is read
        row = transition, gamma, mixing
        transition, gamma, mixing = jax.tree.map(lambda x: jnp.where(mask, x, jnp.zeros_like(x)), row)
    advantage = transition.reward + gamma * _value_after(transition, h) - transition.value
    if transition.truncated is not None and transition.final_value is None:  # what follows is lost: drop the row
        advantage = jnp.where(transition.truncated & ~transition.terminated, 0, advantage)
    h_before = transition.value + mixing * advantage
    if mask is None:
        return h_before, advantage
    return jnp.where(mask, h_before, h), jnp.where(mask, advantage, 0)


def _value_after(transition: Transition, h: Array) -> Array:
    """The value that a transition bootstraps from, where h is that of the next row."""
    if transition.truncated is not None:
        final_value = 0 if transition.final_value is None else transition.final_value
        h = jnp.where(transition.truncated, final_value, h)
    return jnp.where(transition.terminated, 0, h)


def lambda_before(trajectory: Trajectory, scan: Scan, axis_name: str | None = None) -> Array:
    """The λ of the transition before, the last live one: A_t = δ_t + γ_t λ_t A_{t+1}, so h_t is mixed with λ_{t-1}."""
    lambda_, mask = trajectory.lambda_, trajectory.transitions.mask
    one_row = axis_name is not None and len(trajectory.transitions.reward) == 1
    if len(lambda_) == 1 and not one_row:  # it does not vary over time; of a piece of one row nobody can tell
        return lambda_
    if mask is None:
        before = lambda_[-1:]  # the first row has none before it, unless on another device
        if axis_name is not None:
            before = lax.ppermute(before, axis_name, [(i, i + 1) for i in range(lax.axis_size(axis_name) - 1)])
        return jnp.concatenate([before, lambda_[:-1]])

    def last_live(last: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(row[1], row[0], last), last

    lambda_ = jnp.broadcast_to(lambda_, mask.shape)
    return scan(last_live, jnp.zeros_like(lambda_[0]), (lambda_, mask))[1]


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
