"""V-trace: the recursion of `gae` for actions that another policy chose, an older one say.

Espeholt et al., 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures",
arXiv:1802.01561. With w_t = π(a_t | s_t) / μ(a_t | s_t), ρ_t = min(w_t, clip_rho) and c_t = λ_t min(w_t, clip_c):

    vs_t = V(s_t) + ρ_t (r_t + γ V(s_{t+1}) - V(s_t)) + γ c_t (vs_{t+1} - V(s_{t+1}))

Take ρ_t out, and it is vs_t = V(s_t) + ρ_t A_t with A_t = r_t + γ h_{t+1} - V(s_t) and
h_t = V(s_t) + (c_{t-1} / ρ_{t-1}) ρ_t A_t: the recursion of `gae`, with another factor before A_t. So each boundary of
an episode is what it is there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gae_jax._arguments import Implementation, as_number, check_is_array, constant_if_default
from gae_jax._gae import GAEOutput
from gae_jax._recursion import advantages_of, lambdas_before, value_or_zero, zero_where_masked
from gae_jax._rollout import Rollout, canonical, check_before_jit


def vtrace(
    rewards: ArrayLike,
    values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike | None = None,
    *,
    log_rhos: ArrayLike,
    gamma: ArrayLike,
    lambda_: ArrayLike = 1.0,
    clip_rho: ArrayLike = 1.0,
    clip_c: ArrayLike = 1.0,
    clip_pg_rho: ArrayLike = 1.0,
    bootstrap_value: ArrayLike | None = None,
    final_values: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    time_axis: int = 0,
    implementation: Implementation | None = None,
) -> GAEOutput:
    """Computes V-trace targets and policy-gradient advantages over a batch of off-policy rollouts.

        vs_t = V(s_t) + ρ_t (r_t + γ V(s_{t+1}) - V(s_t)) + γ c_t (vs_{t+1} - V(s_{t+1}))
        A_t = min(w_t, clip_pg_rho) (r_t + γ ((1 - λ) V(s_{t+1}) + λ vs_{t+1}) - V(s_t))

    with w_t = π(a_t | s_t) / μ(a_t | s_t), ρ_t = min(w_t, clip_rho) and c_t = λ min(w_t, clip_c). The trained policy is
    π, and μ is the policy that acted. If w_t = 1 everywhere and no clip is below 1, the result is the result of `gae`.
    `T` is the number of transitions, t = 0 ... T-1; `*B` are any batch axes.

    Args:
      rewards: `[T, *B]`, r_t, the reward of the transition s_t -> s_{t+1}; floating-point or integer.
      values: `[T+1, *B]`, V(s_0) ... V(s_T), in units of reward; or `[T, *B]` together with `bootstrap_value`.
      terminated: `[T, *B]`, bool or 0 and 1; or one flag. True: transition t ended the episode.
      truncated: like `terminated`. True: transition t was the last before a cut, for example by a time limit.
        Without `final_values`, a truncated row is dropped, and is no sample: its advantage is 0, its target V(s_t).
      log_rhos: `[T, *B]`, log w_t = log π(a_t | s_t) - log μ(a_t | s_t).
      gamma: γ, the discount, in [-1, 1], as in `gae`: a scalar, or an array that broadcasts to the shape of `rewards`.
      lambda_: λ, in [0, 1], in the same shapes. If λ varies over time, c_t uses λ_t.
      clip_rho: a positive number, the upper bound on the weight of a row's own TD error. It sets the fixed point of vs.
      clip_c: a positive number, the upper bound on the weight of each later row. It sets the speed of convergence,
        which the paper shows for clip_rho >= clip_c.
      clip_pg_rho: a positive number, the upper bound on the weight of an advantage.
      bootstrap_value: `[*B]`, or one number, V(s_T), the value of the state after the last transition.
      final_values: `[T, *B]`, or one number, the value of the final observation. Used only where truncated.
      mask: `[T, *B]`, bool or 0 and 1. False: the row is not a transition, and the recursion skips it.
      time_axis: the axis of time: 0 for arrays `[T, *B]`, 1 for arrays `[N, T]`. Time cannot be split over devices:
        this function has no `time_axis_name`.
      implementation: the scan over time, as in `gae`.

    Returns:
      GAEOutput(advantages, targets): A_t for the policy gradient, vs_t for the critic; shape and dtype as in `gae`,
        where log_rhos counts among the arrays that promote.

    The function contains no `jax.lax.stop_gradient`: in a loss, apply it to the results. Unused entries
    may be NaN, as in `gae`; so may log_rhos of a masked row.

    Raises:
      TypeError, ValueError, NotImplementedError: as in `gae`; also for log_rhos, and if a clip is not positive.

    Source: Espeholt et al., 2018, arXiv:1802.01561, equations 1 and 2, and section 4.2; λ as in its remark 2.

    >>> import jax.numpy as jnp
    >>> advantages, targets = vtrace(
    ...     rewards=jnp.array([1.0, 1.0]),
    ...     values=jnp.array([0.5, 0.5, 0.5]),  # the last is V(s_T)
    ...     terminated=jnp.array([False, False]),
    ...     log_rhos=jnp.log(jnp.array([2.0, 0.5])),
    ...     gamma=0.5,
    ... )
    >>> print(advantages)
    [0.9375 0.375 ]
    >>> print(targets)
    [1.4375 0.875 ]
    """
    lambda_ = constant_if_default(lambda_, 1.0)
    rollout = Rollout(
        rewards, values, terminated, gamma, lambda_, truncated, bootstrap_value, final_values, mask, log_rhos
    )
    axis = check_before_jit(rollout, time_axis, implementation=implementation)
    check_is_array("log_rhos", log_rhos)
    clips = {"clip_rho": clip_rho, "clip_c": clip_c, "clip_pg_rho": clip_pg_rho}
    least = float(np.finfo(np.float32).tiny)  # a clip is positive, and float32 holds its logarithm
    rho, c, pg_rho = (as_number(name, x, least, default=1.0) for name, x in clips.items())
    clips_equal = isinstance(rho, float) and isinstance(c, float) and rho == c
    return _vtrace(rollout, (rho, c, pg_rho), clips_equal=clips_equal, time_axis=axis, implementation=implementation)


@functools.partial(jax.jit, static_argnames=("clips_equal", "time_axis", "implementation"))
def _vtrace(
    rollout: Rollout, clips: tuple[ArrayLike, ...], *, clips_equal: bool, time_axis: int, implementation: str | None
) -> GAEOutput:
    """With `clips_equal`, the first two clips, of ρ and c, are known to be one number, and c_t / ρ_t is λ_t."""
    rollout, to_caller_layout = canonical(rollout, time_axis)  # chex asserts every shape
    unmasked = functools.partial(zero_where_masked, rollout.mask)
    scan = functools.partial(advantages_of, implementation=implementation)
    before = functools.partial(lambdas_before, implementation=implementation)
    value, lambda_before = value_or_zero(rollout), before(rollout)
    log_rho = jnp.maximum(unmasked(rollout.log_rhos), jnp.finfo(rollout.log_rhos.dtype).min)  # finite where π is 0
    # Clipped before the exponential, which may overflow.
    log_rho_clipped, log_c, log_pg_rho = (jnp.minimum(log_rho, jnp.log(jnp.asarray(x, log_rho.dtype))) for x in clips)
    rho, pg_rho = jnp.exp(log_rho_clipped), jnp.exp(log_pg_rho)
    if clips_equal:
        advantages = scan(rollout, lambda_before * rho)
        targets = value + rho * advantages
    else:
        c_over_rho = rollout.lambda_ * jnp.exp(log_c - log_rho_clipped)
        targets = value + rho * scan(rollout, before(rollout._replace(lambda_=c_over_rho)) * rho)
        # The advantage bootstraps from V + λ (vs - V): one more pass, over rows whose h is known.
        h = value + lambda_before * (targets - value)
        advantages = scan(rollout._replace(values=h), jnp.zeros_like(lambda_before[:1])) + unmasked(h - value)
    return GAEOutput(to_caller_layout(pg_rho * advantages), to_caller_layout(targets))
