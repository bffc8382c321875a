"""Checks for users: `check_gae` of a GAE implementation, and `check_rollout` of the numbers in a rollout.

`check_gae` compares with a reference, a loop in float64 NumPy. Each known mistake is a wrong answer of the same loop. A
function makes the mistake whose answer it gives.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.experimental import checkify
from jax.typing import ArrayLike

from gae_jax._rollout import FLAGS, PARAMETERS, Rollout, canonical, check_before_jit

Case = Mapping[str, Any]  # the arguments of one call


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one case."""

    case: str
    mistake: str | None  # None: the advantages are right
    difference: float  # the largest difference between an advantage and the reference


@dataclasses.dataclass(frozen=True)
class Report:
    """The verdicts on all cases; prints as a table."""

    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> bool:
        """Whether the function is right in all cases."""
        return all(verdict.mistake is None for verdict in self.verdicts)

    def __str__(self) -> str:
        """Returns the table."""
        rows = [("case", "verdict", "largest difference")]
        rows += [(v.case, v.mistake or "right", f"{v.difference:.1e}") for v in self.verdicts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows)

    __repr__ = __str__


def check_gae(fn: Callable[..., Any], *, tolerance: float | None = None) -> Report:
    """Runs a function that estimates advantages on small rollouts, and names the mistakes that it makes.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ A_{t+1}

    Each rollout has T transitions of N workers. The advantages are compared with a loop in float64 NumPy, and then with
    the results of known mistakes.

    Args:
      fn: a function that is called with NumPy arrays by name, and returns the advantages `[T, N]`, 0 in masked rows.
        The names are the names of `gae`: rewards, values, terminated, truncated, final_values, mask (`[T, N]`),
        bootstrap_value (`[N]`), gamma and lambda_ (numbers). The function must take rewards, values, gamma and lambda_.
        A case with an argument that the function does not take is left out. Without final_values, truncated rows are
        dropped: their advantage is 0. A function with other names or another layout needs an adapter, as below.
      tolerance: the largest difference of an advantage that counts as rounding. The default depends on the dtype of the
        result: 1e-4 in float32 and float64, 0.008 in float16 and 0.06 in bfloat16 (8 times the dtype's epsilon).

    Returns:
      A report with `right` and `verdicts`, which prints as a table.

    Raises:
      TypeError: the function lacks one of the four arguments, or requires arguments that no case has.
      ValueError: the function returns another shape than `[T, N]`.

    >>> import jax.numpy as jnp
    >>> def mine(rewards, values, terminated, bootstrap_value, gamma, lambda_):
    ...     advantages, later, next_value = [], 0.0, bootstrap_value
    ...     for r, v, end in zip(rewards[::-1], values[::-1], terminated[::-1]):
    ...         later = r + gamma * next_value * (1 - end) - v + gamma * lambda_ * (1 - end) * later
    ...         next_value = v
    ...         advantages.append(later)
    ...     return jnp.stack(advantages)  # the last row comes first
    >>> print(check_gae(mine))
    case                        verdict                     largest difference
    one piece of an episode     the result is in reverse    3.6e+00
    episodes that end           the result is in reverse    3.6e+00
    lambda_ = 0                 the result is in reverse    4.0e+00
    NaN after the last episode  NaN leaks from unused data  inf

    A token-level estimator takes `[N, T]` arrays and a response mask, and V(s_T) is 0. Its adapter, for an example that
    multiplies by the mask where it should skip:

    >>> from gae_jax import GAE
    >>> def token_level(token_rewards, values, response_mask, gamma, lam):
    ...     rewards, values = token_rewards * response_mask, values * response_mask
    ...     done = jnp.zeros(rewards.shape, bool)
    ...     return GAE(*rewards.shape, gamma, lam)(done, rewards, jnp.pad(values, [(0, 0), (0, 1)]))
    >>> def adapter(rewards, values, mask, gamma, lambda_):
    ...     return jnp.where(mask, token_level(rewards.T, values.T, mask.T, gamma, lambda_).T, 0)
    >>> print(check_gae(adapter))
    case                   verdict                                        largest difference
    responses, V(s_T) = 0  masked rows are steps with reward and value 0  5.0e-01
    """
    signature = inspect.signature(fn)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    lacking = [name for name in ALWAYS if name not in signature.parameters]
    if lacking and not takes_all:
        raise TypeError(f"the function must take {', '.join(ALWAYS)}; it lacks {', '.join(lacking)}")
    verdicts = []
    for name, case in cases().items():
        # Without terminated rows or V(s_T), a function need not take the arguments.
        taken = {k: x for k, x in case.items() if takes_all or k in signature.parameters or np.any(x)}
        if _accepts(signature, taken):
            # The function may write into its arguments.
            got = np.asarray(fn(**{k: np.copy(x) if np.ndim(x) else x for k, x in taken.items()}))
            if got.shape != case["rewards"].shape:
                raise ValueError(
                    f"the function must return advantages of shape {case['rewards'].shape}; got {got.shape}"
                )
            verdicts.append(_verdict(name, case, got, _rounding(got.dtype) if tolerance is None else tolerance))
    if not verdicts:
        raise TypeError(f"no case has the arguments that the function requires; its signature is {signature}")
    return Report(tuple(verdicts))


def _accepts(signature: inspect.Signature, arguments: Case) -> bool:
    try:
        signature.bind(**arguments)
    except TypeError:
        return False
    return True


def _rounding(dtype: Any) -> float:
    """The default tolerance."""
    narrow = jnp.issubdtype(dtype, jnp.floating)
    return max(1e-4, 8 * float(jnp.finfo(dtype).eps)) if narrow else 1e-4


def _verdict(name: str, case: Case, got: np.ndarray, tolerance: float) -> Verdict:
    want, got, live = advantages(**case), got.astype(np.float64), case.get("mask", True)
    difference = _distance(got, want)
    if difference <= tolerance:
        return Verdict(name, None, difference)
    if not np.isfinite(got).all():
        return Verdict(name, "NaN leaks from unused data", difference)
    if _distance(got, want, live) <= tolerance:
        return Verdict(name, "masked rows are not 0", difference)
    for mistake, make in MISTAKES.items():
        answer = make(case)
        if _distance(answer, want, live) > tolerance >= _distance(got, answer, live):
            return Verdict(name, mistake, difference)
    return Verdict(name, "wrong, by no known mistake", difference)


def _distance(x: np.ndarray, y: np.ndarray, where: Any = True) -> float:
    """The largest difference, infinite where a number is not finite."""
    largest = float(np.abs(np.where(where, x - y, 0)).max())
    return largest if np.isfinite(largest) else np.inf


ALWAYS = ("rewards", "values", "gamma", "lambda_")


def cases() -> dict[str, Case]:
    """The rollouts, each under the name of what it tests."""
    rng = np.random.default_rng(0)
    shape = (8, 3)
    rewards, values, final_values = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    nowhere, sometimes, at_times = np.zeros(shape, bool), rng.random(shape) < 0.25, rng.random(shape) < 0.25
    row = np.arange(shape[0])[:, None]
    inside, last = (row > 0) & (row < shape[0] - 1), row == shape[0] - 1
    terminated, truncated = sometimes & ~at_times & inside, at_times & ~sometimes & inside
    base = {"rewards": rewards, "values": values, "terminated": nowhere, "gamma": 0.9, "lambda_": 0.8}
    base["bootstrap_value"] = rng.normal(size=shape[1]).astype(np.float32)
    cut = base | {"terminated": terminated, "truncated": truncated}
    dead = np.where(rng.random(shape) < 0.3, np.float32(np.nan), np.float32(0))
    nan = np.float32(np.nan)
    both = base | {"terminated": terminated | (at_times & inside), "truncated": at_times & inside}
    return {
        "one piece of an episode": base,
        "episodes that end": base | {"terminated": terminated},
        "lambda_ = 0": base | {"terminated": terminated, "lambda_": 0.0},
        "NaN after the last episode": base | {"terminated": terminated | last, "bootstrap_value": np.full(3, nan)},
        "time limits, rows dropped": cut,
        "time limits, values known": cut | {"final_values": final_values},
        "NaN beside the time limits": cut | {"final_values": np.where(truncated, final_values, nan)},
        "masked rows": base | {"terminated": terminated, "mask": dead == 0},
        "NaN in masked rows": base | {"rewards": rewards + dead, "values": values + dead, "mask": dead == 0},
        "both flags in one row": both,
        "both flags, values known": both | {"final_values": final_values},
        "responses, V(s_T) = 0": base | {"mask": dead == 0, "bootstrap_value": np.zeros(shape[1], np.float32)},
    }


def advantages(
    rewards: Any,
    values: Any,
    terminated: Any,
    bootstrap_value: Any,
    gamma: float,
    lambda_: float,
    truncated: Any = None,
    final_values: Any = None,
    mask: Any = None,
    first_lambda: float | None = None,
    own_value: bool = False,
) -> np.ndarray:
    """The reference, row by row; the last two arguments make it wrong."""
    result = np.zeros(rewards.shape)
    for worker in range(rewards.shape[1]):
        later, next_value = 0.0, float(bootstrap_value[worker])
        for t in reversed(range(len(rewards))):
            i = t, worker
            if mask is not None and not mask[i]:
                continue
            value, ends = float(values[i]), bool(terminated[i])
            cut = truncated is not None and bool(truncated[i]) and not ends
            if ends or cut:
                later = next_value = 0.0
            if cut and final_values is not None:
                next_value = float(final_values[i])
            if own_value and not ends:
                next_value = value
            delta = float(rewards[i]) + gamma * next_value - value
            if cut and final_values is None:
                delta = 0.0
            result[i] = delta + gamma * (lambda_ if first_lambda is None else first_lambda) * later
            later, next_value = delta + gamma * lambda_ * later, value
    return result


def _with(**changes: Callable[[Case], Any]) -> Callable[[Case], np.ndarray]:
    """The reference, from changed arguments."""
    return lambda case: advantages(**{**case, **{name: change(case) for name, change in changes.items()}})


def _shifted(case: Case, by: int) -> np.ndarray:
    """The flags of other rows. No flag is set in the first and the last row where this mistake matters."""
    return np.roll(case["terminated"], by, axis=0)


def _backwards(case: Case) -> np.ndarray:
    rows = {name: x[::-1] if np.ndim(x) == 2 else x for name, x in case.items()}
    return advantages(**rows)[::-1]


def _either_flag(case: Case) -> Any:
    return case["terminated"] | case.get("truncated", False)


def _only_terminated(case: Case) -> Any:
    return case["terminated"] & ~np.asarray(case.get("truncated", False))


def _live_or_0(name: str) -> Callable[[Case], np.ndarray]:
    return lambda case: np.where(case.get("mask", True), case[name], 0)


MISTAKES: dict[str, Callable[[Case], np.ndarray]] = {
    "the result is in reverse": lambda case: advantages(**case)[::-1],
    "time runs the wrong way": _backwards,
    "V(s_t) for V(s_{t+1})": lambda case: advantages(**case, own_value=True),
    "λ is missing on the first hop": lambda case: advantages(**case, first_lambda=1.0),
    "λ is missing": _with(lambda_=lambda case: 1.0),
    "γ is missing": _with(gamma=lambda case: 1.0),
    "γ for λ": _with(lambda_=lambda case: case["gamma"]),
    "the bootstrap value is missing": _with(bootstrap_value=lambda case: 0 * case["bootstrap_value"]),
    "the bootstrap value counts twice": _with(bootstrap_value=lambda case: 2 * case["bootstrap_value"]),
    "the flag of the step before": _with(terminated=lambda case: _shifted(case, 1)),
    "the flag of the step after": _with(terminated=lambda case: _shifted(case, -1)),
    "termination is ignored": _with(terminated=lambda case: np.zeros_like(case["terminated"])),
    "truncation as termination": _with(terminated=_either_flag, truncated=lambda case: None),
    "truncation does not cut": _with(truncated=lambda case: None),
    "truncation wins where both flags are set": _with(terminated=_only_terminated),
    "V(s_t) for V(final observation)": _with(final_values=lambda case: case["values"]),
    "the mask is ignored": _with(mask=lambda case: None),
    "masked rows are steps with reward and value 0": _with(
        mask=lambda case: None, rewards=_live_or_0("rewards"), values=_live_or_0("values")
    ),
    "the target, not the advantage": lambda case: advantages(**case) + case["values"],
    "normalized": lambda case: (advantages(**case) - advantages(**case).mean()) / advantages(**case).std(),
}


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
    axis_name: str | None = None,
) -> None:
    """Checks the numbers in a rollout; `gae` itself checks shapes and dtypes only.

    Flags must be 0 or 1, gamma and lambda_ must lie in [0, 1], and all other numbers must be finite. Only entries that
    `gae` uses are checked. Unused are: all inputs of a masked row, final_values except where truncated and not
    terminated, the reward of a dropped row, and V(s_T) of a worker whose last unmasked transition ended an episode.
    Unused entries may be NaN.

    Concrete arrays are checked at once. In a function under `checkify.checkify` or `chex.chexify`, each check is a
    `checkify.check`. JAX raises an error for such a check in a function that is compiled without one of the two.

    All arguments are arguments of `gae`; `T` is the number of transitions, `*B` are any batch axes.

    Args:
      rewards: `[T, *B]`, r_t.
      values: `[T+1, *B]`, V(s_0) ... V(s_T); or `[T, *B]` together with `bootstrap_value`.
      terminated: `[T, *B]`, bool or 0 and 1.
      truncated: `[T, *B]`, bool or 0 and 1.
      gamma: γ, a scalar, or an array that broadcasts to the shape of `rewards`.
      lambda_: λ, in the same shapes.
      bootstrap_value: `[*B]`, V(s_T).
      final_values: `[T, *B]`, the values of the final observations.
      mask: `[T, *B]`, bool or 0 and 1.
      time_axis: the axis of time: 0 for arrays `[T, *B]`, 1 for arrays `[N, T]`.
      axis_name: inside `jax.shard_map`, the mesh axis that time is split over.

    Raises:
      ValueError: an entry is wrong. The message names the argument, the number of wrong entries, and the first of them
        by its index.
      TypeError, ValueError: as in `gae`.

    >>> import jax.numpy as jnp
    >>> check_rollout(jnp.ones(3), jnp.array([0.5, jnp.nan, jnp.nan, 0.5]), jnp.zeros(3), gamma=0.9, lambda_=0.8)
    Traceback (most recent call last):
    ValueError: `values` must hold finite numbers where it is read; wrong entries: 2, the first at [1]
    """
    rollout = Rollout(
        rewards, values, terminated, truncated, bootstrap_value, final_values, mask, gamma=gamma, lambda_=lambda_
    )
    axis = check_before_jit(rollout, time_axis, axis_name=axis_name)
    rows, _ = canonical(rollout, axis)
    given = rows._asdict() | {name: jnp.moveaxis(jnp.asarray(x), axis, 0) for name, x in _flags(rollout).items()}
    wrong = {name: read & ~_holds(name, given[name]) for name, read in _entries_read(rows).items()}
    if axis_name is not None:  # every shard of time but the last is followed by the next shard
        wrong["bootstrap_value"] &= lax.axis_index(axis_name) == lax.axis_size(axis_name) - 1
    if bootstrap_value is None:  # it is the last row of `values`
        wrong["values"] = jnp.concatenate([wrong["values"], wrong.pop("bootstrap_value")[None]])
    for name, entries in wrong.items():
        if name in PARAMETERS:
            constant_axes = [i for i, size in enumerate(given[name].shape) if size == 1]
            entries = jnp.any(entries, axis=constant_axes, keepdims=True)
        if name != "bootstrap_value":
            entries = jnp.moveaxis(entries, 0, axis)
        _raise_if_any(name, entries.reshape(np.shape(getattr(rollout, name))))


def _flags(rollout: Rollout) -> dict[str, Any]:
    return {name: x for name, x in rollout._asdict().items() if name in FLAGS and x is not None}


def _holds(name: str, x: Array) -> Array:
    """Returns which entries are as they must be."""
    if name in FLAGS:
        return x == x.astype(bool).astype(x.dtype)
    return (x >= 0) & (x <= 1) if name in PARAMETERS else jnp.isfinite(x)


def _entries_read(rows: Rollout) -> dict[str, Array]:
    """Returns which entries of each argument `gae` reads, time first. Flags come first: they decide what is read."""
    live = jnp.ones_like(rows.terminated) if rows.mask is None else rows.mask
    cut = jnp.zeros_like(live) if rows.truncated is None else rows.truncated & ~rows.terminated
    last_live = live.shape[0] - 1 - jnp.argmax(live[::-1], axis=0, keepdims=True)
    goes_on = jnp.take_along_axis(live & ~rows.terminated & ~cut, last_live, axis=0)[0]
    read = {
        "mask": jnp.ones_like(live),
        "terminated": live,
        "truncated": live,
        "rewards": live & ~cut if rows.final_values is None else live,  # where V(final) is not known, a row is dropped
        "values": live,
        "final_values": live & cut,
        "bootstrap_value": goes_on,
        "gamma": live,
        "lambda_": live,
    }
    return {name: entries for name, entries in read.items() if getattr(rows, name) is not None}


def _raise_if_any(name: str, wrong: Array) -> None:
    """Raises a ValueError; where only a run knows the entries, makes a `checkify.check`."""
    want = "lie in [0, 1]" if name in PARAMETERS else "hold 0 and 1" if name in FLAGS else "hold finite numbers"
    count = jnp.sum(wrong)
    index: dict[str, Any] = {f"i{k}": i for k, i in enumerate(jnp.unravel_index(jnp.argmax(wrong), wrong.shape))}
    first = f", the first at [{', '.join(f'{{{k}}}' for k in index)}]" if index else ""
    message = f"`{name}` must {want} where it is read; wrong entries: {{count}}{first}"
    if isinstance(count, Tracer):
        checkify.check(count == 0, message, count=count, **index)
    elif count:
        raise ValueError(message.format(count=count, **index))
