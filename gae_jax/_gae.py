"""`gae`, and the batch-major class `GAE`. The recursion is in `_recursion.py`."""

import contextlib
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.export
from jax import Array
from jax.typing import ArrayLike

from gae_jax._arguments import Implementation, as_integer, check_is_array, check_shape
from gae_jax._recursion import advantages_of, lambdas_before, value_or_zero
from gae_jax._rollout import Rollout, canonical, check_before_jit


class GAEOutput(NamedTuple):
    """The result of `gae` and `vtrace`: two arrays in the shape of `rewards`."""

    advantages: Array
    """A_t, the weights of the policy gradient."""
    targets: Array
    """The regression targets of the critic; for `gae`, the λ-returns A_t + V(s_t)."""


with contextlib.suppress(ValueError):  # after importlib.reload, the name belongs to the class of the first import
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
    time_axis_name: str | None = None,
    implementation: Implementation | None = None,
) -> GAEOutput:
    """Computes Generalized Advantage Estimation over a batch of rollouts.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ A_{t+1}

    `T` is the number of transitions, t = 0 ... T-1; `*B` are any batch axes: workers, agents, reward channels. After a
    terminated transition, V(s_{t+1}) and A_{t+1} are 0. After a truncated transition, V(s_{t+1}) is the value of the
    final observation, and A_{t+1} is 0.

    The function is pure and compiled with `jax.jit`. It works inside jit, vmap, grad, scan and shard_map, not inside
    `jax.experimental.jet`. It contains no `jax.lax.stop_gradient`: in a loss, apply it to the results. A gradient
    through the function runs two loops over time, on every platform, and up to four where lambda_ varies over time
    beside a mask.

    Args:
      rewards: `[T, *B]`, r_t, the reward of the transition s_t -> s_{t+1}; floating-point or integer.
      values: `[T+1, *B]`, V(s_0) ... V(s_T), in units of reward; or `[T, *B]`, V(s_0) ... V(s_{T-1}), together with
        `bootstrap_value`.
      terminated: `[T, *B]`, bool or 0 and 1; or one flag for all rows: False, no episode ends. True: transition t ended
        the episode, so V(s_{t+1}) counts as 0.
      truncated: like `terminated`. True: transition t was the last before a cut, for example by a time limit. The final
        observation has a value, and row t+1 belongs to another episode. Where both flags are set, `terminated` wins.
      gamma: γ, the discount, in [-1, 1]. A scalar, or an array that broadcasts to the shape of `rewards`: where that
        is `[T, N]`, `[N]` holds one γ per worker, `[T, 1]` one γ per step. A negative γ is for zero-sum games of two
        players: V(s_{t+1}) is the value for the other player, who moves next.
      lambda_: λ, in [0, 1], in the same shapes. λ = 0 gives δ_t; λ = 1 gives the discounted return minus V(s_t). If γ
        and λ vary over time, A_t = δ_t + γ_t λ_t A_{t+1} and δ_t = r_t + γ_t V(s_{t+1}) - V(s_t).
      bootstrap_value: `[*B]`, or one number, V(s_T), the value of the state after the last transition.
      final_values: `[T, *B]`, or one number, the value of the final observation, which is the observation before the
        reset. Used only where truncated. Without `final_values`, a truncated row is dropped: its advantage is 0, its
        target V(s_t). A dropped row is no sample: leave it out of `normalize` and of the loss.
      mask: `[T, *B]`, bool or 0 and 1. False: the row is not a transition, but padding, a prompt token or a row that
        only resets. The recursion skips the row, so the row before it continues with the next unmasked row. The
        advantage of a masked row is 0. Its target is V(s_t), or 0 if V(s_t) is not finite. The reward and the flags of
        a masked row are not read. If a reward or an end arrives there, as on another player's turn, first move it to
        the unmasked row before it: a recipe in examples/guides/tokens.md.
      time_axis: the axis of time: 0 for arrays `[T, *B]`, 1 for arrays `[N, T]`.
      time_axis_name: inside `jax.shard_map`, the mesh axis that time is split over. Device i holds the i-th shard of
        each array that has an axis of time, and `T` is the length of a shard. `bootstrap_value` is V(s_T) of the whole
        rollout, used on the last device only. The communication does not depend on `T`: one all-gather of two numbers
        per worker, and one more exchange if lambda_ varies over time or T is 1.
      implementation: the scan over time: "scan" is a loop, "blocked" has no loop, "pallas" is a TPU kernel. None
        chooses by the platform. On a TPU pass the batch: `jax.vmap` over single trajectories runs without the kernel.
        `jax.export` with a symbolic number of steps needs "scan"; `jax.export` for a TPU and another platform at once
        needs "scan" or "blocked".

    Returns:
      GAEOutput(advantages, targets), in the shape of `rewards`, and in the dtype that rewards, values, bootstrap_value
      and final_values promote to. JAX keeps float64 arrays only under x64. The recursion runs in float32 or wider. In
      float16, targets beyond 65504 become inf.

    Unused entries may be NaN; they affect neither outputs nor gradients. Unused are: all inputs of a masked row,
    final_values except where truncated and not terminated, the reward of a dropped row, and V(s_T) of a worker whose
    last unmasked transition ended an episode. A used reward or value that is not finite affects the results of its own
    episode only; which results of the episode it reaches depends on the implementation. Gradients, and a gamma or
    lambda_ that is not finite, have no such limit. `gae_jax.testing.check_rollout` finds such entries.

    In float32, rounding moves an advantage by at most 2^-24 max|V| / (1 - γλ). So the error may exceed 1% of the
    advantages where |V| / |A| / (1 - γλ) is more than 160,000. Then use x64, or values relative to a baseline: with
    γ = 1, subtract one number from all values of a rollout that does not terminate.

    Raises:
      TypeError: an argument is not an array of numbers or flags, in a dtype of JAX and in native byte order.
      ValueError: a shape or a name is not one of the above; gamma or lambda_ is one number outside its interval, and
        known before a run; T is 0; `final_values` is given without `truncated`; or integers are beyond JAX's integers.
      NotImplementedError: the implementation cannot run here.

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
    rollout = Rollout(rewards, values, terminated, gamma, lambda_, truncated, bootstrap_value, final_values, mask)
    axis = check_before_jit(rollout, time_axis, time_axis_name=time_axis_name, implementation=implementation)
    return _gae(rollout, time_axis=axis, time_axis_name=time_axis_name, implementation=implementation)


@functools.partial(jax.jit, static_argnames=("time_axis", "time_axis_name", "implementation"))
def _gae(rollout: Rollout, *, time_axis: int, time_axis_name: str | None, implementation: str | None) -> GAEOutput:
    options = {"axis_name": time_axis_name, "implementation": implementation}
    rollout, to_caller_layout = canonical(rollout, time_axis)  # chex asserts every shape
    advantages = advantages_of(rollout, lambdas_before(rollout, **options), **options)
    targets = advantages + value_or_zero(rollout)  # as another output of the scan, they would need another buffer
    return GAEOutput(to_caller_layout(advantages), to_caller_layout(targets))


@dataclasses.dataclass(frozen=True)
class GAE:
    """Estimates advantages of batch-major rollouts, with one flag for the end of an episode.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ A_{t+1}

    This is `gae` without truncation: `done[i, t]` is the `terminated[t, i]` of `gae`, about the transition from s_t.

    Attributes:
      n_workers: the number of workers.
      worker_steps: the number of transitions of each worker, T.
      gamma: γ, the discount, in [-1, 1].
      lambda_: λ, in [0, 1].

    Source: Schulman et al., 2015, arXiv:1506.02438, equation 16.

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
          done: `[n_workers, worker_steps]`, bool or 0 and 1. True: transition t of worker i ended the episode.
          rewards: `[n_workers, worker_steps]`, r_t, the reward of transition t.
          values: `[n_workers, worker_steps + 1]`, V(s_0) ... V(s_T); the last column is the value of the state after
            the last transition.

        Returns:
          The advantages, `[n_workers, worker_steps]`.

        Raises:
          TypeError, ValueError: as in `gae`.
        """
        shape = as_integer("n_workers", self.n_workers), as_integer("worker_steps", self.worker_steps)
        check_is_array("done", done, flags=True)
        check_is_array("rewards", rewards)
        check_shape("done", done, shape, "[n_workers, worker_steps]")
        check_shape("rewards", rewards, shape, "[n_workers, worker_steps]")
        return gae(rewards, values, done, gamma=self.gamma, lambda_=self.lambda_, time_axis=1).advantages
