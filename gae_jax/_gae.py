"""`gae`: the public call, and the object of the annotated page. The recursion itself is in `_recursion.py`."""

import contextlib
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.export
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from gae_jax._affine_scan import check_implementation
from gae_jax._recursion import advantages_of, lambda_before_each_row, value_or_zero
from gae_jax._rollout import (
    Rollout,
    axis_from_front,
    canonical,
    check_is_array,
    check_is_name,
    check_shape,
    check_types,
)


class GAEOutput(NamedTuple):
    """What `gae` returns, in the shape of `rewards`."""

    advantages: Array  # A_t
    targets: Array  # A_t + V(s_t), the λ-return: what to fit the values to


with contextlib.suppress(ValueError):  # where this module is reloaded, the name is taken
    jax.export.register_namedtuple_serialization(GAEOutput, serialized_name="gae_jax.GAEOutput")


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
      implementation: of the scan over time: "scan", "blocked" or "pallas"; None chooses by the platform. Only "scan"
        can run with a symbolic number of steps, as `jax.export` has it.

    Returns:
      GAEOutput(advantages, targets), in the shape of `rewards` and in the dtype that the floating-point arrays promote
      to: float64 under x64 only, since JAX reads float64 arrays as float32 otherwise. The recursion itself never runs
      below float32.

    What is not read may be NaN and changes no output and no gradient: final_values where not truncated, any input of a
    masked row, the value that a terminated transition would have bootstrapped from. A number that is read and is not
    finite stays within its episode; which results of the episode it reaches depends on the implementation.
    `gae_jax.testing.check_rollout` finds such numbers.

    Raises:
      TypeError: an argument is not an array of numbers, or not one of flags.
      ValueError: a shape or name is not one of the above, gamma or lambda_ is a number outside [0, 1], T is 0,
        final_values are given without truncated, or an integer array holds numbers that JAX's integers cannot hold.
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
    rollout = Rollout(
        rewards, values, terminated, truncated, bootstrap_value, final_values, mask, gamma=gamma, lambda_=lambda_
    )
    check_types(rollout)
    check_is_name("axis_name", axis_name)
    check_is_name("implementation", implementation)
    check_implementation(implementation, rollout)
    axis = axis_from_front(time_axis, np.shape(rewards))
    return _gae(rollout, time_axis=axis, axis_name=axis_name, implementation=implementation)


@functools.partial(jax.jit, static_argnames=("time_axis", "axis_name", "implementation"))
def _gae(rollout: Rollout, *, time_axis: int, axis_name: str | None, implementation: str | None) -> GAEOutput:
    how = {"axis_name": axis_name, "implementation": implementation}
    rollout, to_caller_layout = canonical(rollout, time_axis, axis_name)  # chex asserts every shape
    advantages = advantages_of(rollout, lambda_before_each_row(rollout, **how), **how)
    targets = advantages + value_or_zero(rollout)  # as another output of the scan, they would cost a buffer more
    return GAEOutput(to_caller_layout(advantages), to_caller_layout(targets))


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
        for name, x in {"done": done, "rewards": rewards}.items():
            check_is_array(name, x)
            check_shape(name, x, shape, "[n_workers, worker_steps]")
        return gae(rewards, values, done, gamma=self.gamma, lambda_=self.lambda_, time_axis=1).advantages
