"""`check_gae`: runs a GAE function on small rollouts, and compares with the reference and with known mistakes."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from gae_jax._arguments import as_number
from gae_jax.testing._mistakes import MISTAKES, Case, advantages, cases

ALWAYS = ("rewards", "values", "gamma", "lambda_")  # the other arguments are passed where the function takes them


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one case."""

    case: str
    mistake: str | None  # None: the advantages are right
    difference: float  # the largest difference between an advantage and the reference


@dataclasses.dataclass(frozen=True)
class Report:
    """The verdicts on the cases; prints as a table."""

    verdicts: tuple[Verdict, ...]
    not_taken: tuple[str, ...]  # arguments that the function does not take: cases that depend on them are left out

    @property
    def right(self) -> bool:
        """Whether the function is right in all cases that were not left out."""
        return all(verdict.mistake is None for verdict in self.verdicts)

    def __str__(self) -> str:
        """Returns the table."""
        rows = [("case", "verdict", "largest difference")]
        rows += [
            (v.case, v.mistake or "right", f"{v.difference:.1e}" if v.mistake else "rounding") for v in self.verdicts
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.not_taken:
            lines.append(f"not checked, since the function does not take them: {', '.join(self.not_taken)}")
        return "\n".join(lines)

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
        bootstrap_value (`[N]`), gamma and lambda_ (numbers). The function must take rewards, values, gamma,
        lambda_, and bootstrap_value or mask. A case is left out if its result depends on an argument that the function
        does not take. Without final_values, truncated rows are dropped: their advantage is 0. A function with other
        names or another layout needs an adapter, as below.
      tolerance: the largest difference of an advantage that counts as rounding. The default depends on the dtype of the
        result: 1e-4 in float32 and float64, 0.008 in float16 and 0.06 in bfloat16 (8 times the dtype's epsilon).

    Returns:
      A report with `right` and `verdicts`, which prints as a table. Read the table from the top: a function with two
      mistakes makes one of them alone in some row. "NaN leaks from unused data" is a row where an entry that counts
      for nothing is NaN, as V(s_T) after an episode that ended: `next_value * (1 - done)` keeps the NaN, and
      `where(done, 0, next_value)` does not. The leak does no harm while all values are finite.

    Raises:
      TypeError: the function lacks an argument, requires other arguments, or does not return one array of
        floating-point numbers of 16 bits or more.
      ValueError: the function returns another shape than `[T, N]`; or tolerance is negative or not finite.

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
    not checked, since the function does not take them: truncated, final_values, mask

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
    not checked, since the function does not take them: bootstrap_value, terminated, truncated, final_values
    """
    if tolerance is not None and as_number("tolerance", tolerance) == np.inf:
        raise ValueError(f"`tolerance` must be finite; got {tolerance}")
    signature = inspect.signature(fn)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    verdicts, misfits, not_taken = [], [], {}
    for name, case in cases().items():
        taken = [k for k in case if takes_all or k in signature.parameters]
        needed = [k for k, x in case.items() if _is_needed(k, x) and k not in taken]
        not_taken |= dict.fromkeys(needed)
        names = [*taken, *needed]
        try:
            signature.bind(**dict.fromkeys(names))
        except TypeError as misfit:
            misfits.append(misfit)
        else:
            verdicts.append(_verdict(name, case, functools.partial(_call, fn, names), tolerance))
    if not verdicts:
        raise TypeError(
            f"check_gae cannot call the function: {misfits[0]}. It passes, by name, {', '.join(ALWAYS)}, "
            "bootstrap_value and, where taken, terminated, truncated, final_values, mask. Pass an adapter that takes "
            "these names"
        )
    return Report(tuple(verdicts), tuple(not_taken))


def _is_needed(name: str, x: Any) -> bool:
    """Whether the argument makes a difference: a row where the mask is False, a flag that is set, a value."""
    return name in ALWAYS or bool(np.any(x != (name == "mask")))


def _call(fn: Callable[..., Any], names: Collection[str], case: Case) -> np.ndarray:
    """Returns the result of the function, if it can be advantages."""
    # The function may write into its arguments.
    result = fn(**{name: np.copy(x) if np.ndim(x) else x for name, x in case.items() if name in names})
    if isinstance(result, tuple):
        got = f"{type(result).__name__} of {len(result)} items: pass an adapter that returns one of them"
        raise TypeError(f"the function must return one array, the advantages; got {got}")
    array, shape = np.asarray(result), case["rewards"].shape
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
        got = type(result).__name__ if array.dtype == object else f"dtype {array.dtype}"
        raise TypeError(f"the function must return floating-point numbers of 16 bits or more; got {got}")
    if array.shape != shape:
        guess = ". Time and batch look swapped: transpose it" if array.shape == shape[::-1] else ""
        raise ValueError(f"the function must return advantages of shape {shape}, [T, N]; got {array.shape}{guess}")
    return array


def _verdict(name: str, case: Case, call: Callable[[Case], np.ndarray], tolerance: float | None) -> Verdict:
    want, result, live = advantages(**case), call(case), case["mask"]
    if tolerance is None:
        tolerance = max(1e-4, 8 * float(jnp.finfo(result.dtype).eps))
    got = result.astype(np.float64)
    difference = _distance(got, want)
    if difference <= tolerance:
        return Verdict(name, None, difference)
    if _distance(got, want, live) <= tolerance:
        return Verdict(name, "masked rows are not 0", difference)
    if not np.isfinite(got).all():
        without_nan = call({name: np.nan_to_num(x) if np.ndim(x) else x for name, x in case.items()})
        leaks = np.isfinite(without_nan).all()
        return Verdict(name, "NaN leaks from unused data" if leaks else "NaN or inf in the result", difference)
    for mistake, make in MISTAKES.items():
        answer = make(case)
        if _distance(answer, want, live) > tolerance >= _distance(got, answer, live):
            return Verdict(name, mistake, difference)
    return Verdict(name, "wrong, by no known mistake", difference)


def _distance(x: np.ndarray, y: np.ndarray, where: Any = True) -> float:
    """The largest difference, infinite where a number is not finite."""
    largest = float(np.abs(np.where(where, x - y, 0)).max())
    return largest if np.isfinite(largest) else np.inf
