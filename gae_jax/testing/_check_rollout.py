"""`check_rollout`: finds what `gae` cannot see while it is traced, wrong numbers, and numbers that are not read."""

import warnings

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.experimental import checkify
from jax.typing import ArrayLike

from gae_jax._rollout import FLAGS, PARAMETERS, Rollout, canonical, check_before_jit

MUST = dict.fromkeys(FLAGS, "hold 0 and 1") | {
    name: f"lie in [{low}, {high}]" for name, (low, high) in PARAMETERS.items()
}
PROBABILITIES = ". If these are probabilities p, pass terminated=False and gamma=gamma * (1 - p)"
MASKED = (
    "`{name}` is not read where `mask` is False; entries other than 0 there: FOUND. 'What arrives between my own "
    "steps' in examples/guides/tokens.md moves them to the unmasked row before them"
)
PADDING = (
    "the last row of `values` is used as V(s_T), though `mask` is False in the last row of time and no flag ends the "
    "episode; workers: FOUND. If that row is padding, set `terminated` or `truncated` in the last unmasked row; if it "
    "is V(s_T), pass it as `bootstrap_value`"
)
LIMITS = (
    "`terminated` is set wherever `truncated` is, and wins, so that no row bootstraps from V(final observation); rows: "
    "FOUND. If time limits set `terminated`, pass terminated & ~truncated"
)


def check_rollout(
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
) -> None:
    """Checks the numbers in a rollout; `gae` itself checks shapes and dtypes only.

    Flags must be 0 or 1, gamma must lie in [-1, 1], lambda_ in [0, 1], and all other numbers must be finite. Only
    entries that `gae` uses are checked. Unused are: all inputs of a masked row, final_values except where truncated and
    not terminated, the reward of a dropped row, and V(s_T) of a worker whose last unmasked transition ended an episode.
    Unused entries may be NaN.

    Concrete arrays are checked at once. In a function under `checkify.checkify` or `chex.chexify`, each check is a
    `checkify.check`. JAX raises an error for such a check in a function that is compiled without one of the two.

    Of concrete arrays, the function also warns if `gae` reads them in another way than they are likely to be meant:

    - A masked row holds a reward other than 0 or a flag that is set, which are not read; NaN is padding, and passes.
      'What arrives between my own steps' in examples/guides/tokens.md moves them to the unmasked row before them.
    - The last rows are masked, no flag ends the episode, and the last row of `values` is used as V(s_T): padding?
    - All truncated rows are terminated, too. `terminated` wins, so no row bootstraps from V(final observation).

    The arguments are the arguments of `gae`, in the same shapes, without `implementation`.

    Raises:
      ValueError: an entry is wrong. The message names the argument, the number of wrong entries, and the first of them
        by its index.
      TypeError, ValueError: as in `gae`.

    >>> import jax.numpy as jnp
    >>> check_rollout(jnp.ones(3), jnp.array([0.5, jnp.nan, jnp.nan, 0.5]), jnp.zeros(3), gamma=0.9, lambda_=0.8)
    Traceback (most recent call last):
    ValueError: `values` must hold finite numbers where it is read; wrong entries: 2, the first at [1]
    """
    rollout = Rollout(rewards, values, terminated, gamma, lambda_, truncated, bootstrap_value, final_values, mask)
    axis = check_before_jit(rollout, time_axis, time_axis_name=time_axis_name)
    rows, _ = canonical(rollout, axis)
    flags = {name: x for name in FLAGS if (x := getattr(rollout, name)) is not None}
    flags = {name: jnp.moveaxis(jnp.broadcast_to(x, np.shape(rewards)), axis, 0) for name, x in flags.items()}
    given, read = rows._asdict() | flags, _entries_read(rows, time_axis_name)
    wrong = {name: entries & ~_holds(name, given[name]) for name, entries in read.items()}
    if bootstrap_value is None:  # it is the last row of `values`
        wrong["values"] = jnp.concatenate([wrong["values"], wrong.pop("bootstrap_value")[None]])
    for name, entries in wrong.items():
        if name != "bootstrap_value":
            entries = jnp.moveaxis(entries, 0, axis)
        if name in PARAMETERS:
            shape = np.shape(getattr(rollout, name))
            constant_axes = [k for k in range(-entries.ndim, 0) if k < -len(shape) or shape[k] == 1]
            entries = jnp.any(entries, axis=constant_axes).reshape(shape)
        must, hint = MUST.get(name, "hold finite numbers"), PROBABILITIES if name == "terminated" else ""
        message = f"`{name}` must {must} where it is read; wrong entries: FOUND{hint}"
        _report(message, entries, is_error=True)
    live = read["values"]
    for name in ("rewards", *flags):
        lost = ~live & given[name].astype(bool) & jnp.isfinite(given[name])
        _report(MASKED.format(name=name), jnp.moveaxis(lost, 0, axis))
    if bootstrap_value is None:
        _report(PADDING, read["bootstrap_value"] & ~live[-1])
    if truncated is not None:
        limits = live & rows.truncated
        _report(LIMITS, jnp.moveaxis(limits & jnp.all(rows.terminated | ~limits), 0, axis))


def _holds(name: str, x: Array) -> Array:
    """Returns which entries are as they must be."""
    if name in FLAGS:
        return x == x.astype(bool).astype(x.dtype)
    low, high = PARAMETERS.get(name, (-np.inf, np.inf))
    return jnp.isfinite(x) & (x >= low) & (x <= high)


def _entries_read(rows: Rollout, time_axis_name: str | None) -> dict[str, Array]:
    """Returns which entries of each argument `gae` reads, time first. Flags come first: they decide what is read."""
    live = jnp.ones_like(rows.terminated) if rows.mask is None else rows.mask
    cut = jnp.zeros_like(live) if rows.truncated is None else rows.truncated & ~rows.terminated
    last_live = live.shape[0] - 1 - jnp.argmax(live[::-1], axis=0, keepdims=True)
    goes_on = jnp.take_along_axis(live & ~rows.terminated & ~cut, last_live, axis=0)[0]
    if time_axis_name is not None:  # every shard of time but the last is followed by the next shard
        goes_on &= lax.axis_index(time_axis_name) == lax.axis_size(time_axis_name) - 1
    read = dict.fromkeys((*FLAGS, *Rollout._fields), live) | {
        "mask": jnp.ones_like(live),
        "rewards": live & ~cut if rows.final_values is None else live,  # where V(final) is not known, a row is dropped
        "final_values": live & cut,
        "bootstrap_value": goes_on,
    }
    return {name: entries for name, entries in read.items() if getattr(rows, name) is not None}


def _report(message: str, entries: Array, *, is_error: bool = False) -> None:
    """Raises a ValueError if an entry is set, or warns at the line that called `check_rollout`.

    FOUND in the message becomes the number of entries and the index of the first. Where only a run knows the entries,
    an error is a `checkify.check`, and there is no warning.
    """
    index = jnp.unravel_index(jnp.argmax(entries), entries.shape) if entries.size else ()
    count, where = jnp.sum(entries), ", ".join("{}" for _ in index)
    message = message.replace("FOUND", f"{{}}, the first at [{where}]" if where else "{}")
    if isinstance(count, Tracer):
        if is_error:
            checkify.check(count == 0, message, count, *index)
    elif count and is_error:
        raise ValueError(message.format(count, *index))
    elif count:
        warnings.warn(message.format(count, *index), stacklevel=3)
