"""Is a GAE of your own right? And if not, which convention does it break?

The answers here come from a loop in float64 NumPy. What is wrong is told by its own mistake: each of the mistakes that
are known to be made in GAE is made on purpose, and whose answer is that of the function under test has been found.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Case = Mapping[str, Any]  # the arguments of one call


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one case has shown."""

    case: str
    mistake: str | None  # None: there is none
    difference: float  # the largest one of an advantage


@dataclasses.dataclass(frozen=True)
class Report:
    """The verdicts of all cases; a table, when printed."""

    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> bool:
        """Whether no case has shown a mistake."""
        return all(verdict.mistake is None for verdict in self.verdicts)

    def __str__(self) -> str:
        """The table."""
        rows = [("case", "verdict", "largest difference")]
        rows += [(v.case, v.mistake or "right", f"{v.difference:.1e}") for v in self.verdicts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows)

    __repr__ = __str__


def check_gae(fn: Callable[..., Any], *, tolerance: float = 1e-4) -> Report:
    """Runs a function that estimates advantages on small rollouts, and names the mistakes that it makes.

    Args:
      fn: it is called with arguments by name, and returns the advantages, `[T, N]`. The names are those of `gae`:
        rewards, values, terminated (`[T, N]`), bootstrap_value (`[N]`), gamma, lambda_ (numbers), and truncated,
        final_values, mask. It must take the first six; of the others it is asked only what it has arguments for:
        truncated rows without final_values are dropped, with advantage 0. Write an adapter, as below.
      tolerance: the largest difference of an advantage that is put down to rounding.

    Returns:
      A report, with `right` and `verdicts`, which prints as a table.

    Raises:
      TypeError: the function does not take the first six arguments.
      ValueError: it returns something else than `[T, N]`.

    >>> import jax.numpy as jnp
    >>> def mine(rewards, values, terminated, bootstrap_value, gamma, lambda_):
    ...     advantages, later, next_value = [], 0.0, bootstrap_value
    ...     for r, v, end in zip(rewards[::-1], values[::-1], terminated[::-1]):
    ...         later = r + gamma * next_value * (1 - end) - v + gamma * lambda_ * (1 - end) * later
    ...         next_value = v
    ...         advantages.append(later)
    ...     return jnp.stack(advantages)  # appended in reverse: five hours are lost to this
    >>> print(check_gae(mine))
    case                        verdict                               largest difference
    one piece of an episode     the result is in reverse              3.6e+00
    episodes that end           the result is in reverse              3.6e+00
    lambda_ = 0                 the result is in reverse              4.0e+00
    NaN after the last episode  NaN from where nothing is to be read  inf
    """
    accepted = inspect.signature(fn).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    lacking = [name for name in ALWAYS if name not in accepted]
    if lacking and not takes_all:
        raise TypeError(f"the function must take {', '.join(ALWAYS)}; it lacks {', '.join(lacking)}")
    verdicts = []
    for name, case in cases().items():
        if takes_all or case.keys() <= accepted.keys():
            got = np.asarray(fn(**case), np.float64)
            if got.shape != case["rewards"].shape:
                raise ValueError(
                    f"the function must return advantages of shape {case['rewards'].shape}; got {got.shape}"
                )
            verdicts.append(_verdict(name, case, got, tolerance))
    return Report(tuple(verdicts))


def _verdict(name: str, case: Case, got: np.ndarray, tolerance: float) -> Verdict:
    difference = _distance(got, advantages(**case))
    if difference <= tolerance:
        return Verdict(name, None, difference)
    if not np.isfinite(got).all():
        return Verdict(name, "NaN from where nothing is to be read", difference)
    for mistake, make in MISTAKES.items():
        answer = make(case)
        if _distance(answer, advantages(**case)) > tolerance >= _distance(got, answer):
            return Verdict(name, mistake, difference)
    return Verdict(name, "wrong, in a way that is not known here", difference)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    largest = float(np.abs(x - y).max())
    return largest if np.isfinite(largest) else np.inf


ALWAYS = ("rewards", "values", "terminated", "bootstrap_value", "gamma", "lambda_")


def cases() -> dict[str, Case]:
    """The rollouts, by what they ask about."""
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
    """The right answer, row by row; or, by the last two arguments, a wrong one."""
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
    """The answer to another question, where arguments are not what they should be."""
    return lambda case: advantages(**{**case, **{name: change(case) for name, change in changes.items()}})


def _shifted(case: Case, by: int) -> np.ndarray:
    """The flags of another row; a case in which it matters sets none in its first and last."""
    return np.roll(case["terminated"], by, axis=0)


def _backwards(case: Case) -> np.ndarray:
    rows = {name: x[::-1] if np.ndim(x) == 2 else x for name, x in case.items()}
    return advantages(**rows)[::-1]


def _either_flag(case: Case) -> Any:
    return case["terminated"] | case.get("truncated", False)


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
    "the flag is that of the step before": _with(terminated=lambda case: _shifted(case, 1)),
    "the flag is that of the step after": _with(terminated=lambda case: _shifted(case, -1)),
    "termination is ignored": _with(terminated=lambda case: np.zeros_like(case["terminated"])),
    "truncation as termination": _with(terminated=_either_flag, truncated=lambda case: None),
    "truncation does not cut": _with(truncated=lambda case: None),
    "V(s_t) for V(final observation)": _with(final_values=lambda case: case["values"]),
    "the mask is ignored": _with(mask=lambda case: None),
    "the target, not the advantage": lambda case: advantages(**case) + case["values"],
    "normalized": lambda case: (advantages(**case) - advantages(**case).mean()) / advantages(**case).std(),
}
