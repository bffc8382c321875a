"""Small rollouts, their advantages by a loop in float64 NumPy, and the mistakes: wrong answers of the same loop.

A function that gives the answer of a mistake has made this mistake.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Case = Mapping[str, Any]  # all arguments of `gae` that describe a rollout, by name


def cases() -> dict[str, Case]:
    """The rollouts, each under the name of what it tests."""
    rng = np.random.default_rng(0)
    shape = (8, 3)
    rewards, values, final_values = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    nowhere, sometimes, at_times = np.zeros(shape, bool), rng.random(shape) < 0.25, rng.random(shape) < 0.25
    row = np.arange(shape[0])[:, None]
    inside, last = (row > 0) & (row < shape[0] - 1), row == shape[0] - 1
    terminated, truncated = sometimes & ~at_times & inside, at_times & ~sometimes & inside
    base = {"rewards": rewards, "values": values, "terminated": nowhere, "truncated": nowhere, "mask": ~nowhere}
    base |= {"final_values": 0 * final_values, "gamma": 0.9, "lambda_": 0.8}
    base["bootstrap_value"] = rng.normal(size=shape[1]).astype(np.float32)
    ends = base | {"terminated": terminated}
    cut = ends | {"truncated": truncated}
    del cut["final_values"]  # they are not known: truncated rows are dropped
    both = cut | {"terminated": terminated | (at_times & inside), "truncated": at_times & inside}
    nan = np.float32(np.nan)
    dead = np.where(rng.random(shape) < 0.3, nan, np.float32(0))
    return {
        "one piece of an episode": base,
        "episodes that end": ends,
        "lambda_ = 0": ends | {"lambda_": 0.0},
        "NaN after the last episode": base | {"terminated": terminated | last, "bootstrap_value": np.full(3, nan)},
        "time limits, rows dropped": cut,
        "time limits, values known": cut | {"final_values": final_values},
        "NaN beside the time limits": cut | {"final_values": np.where(truncated, final_values, nan)},
        "masked rows": ends | {"mask": dead == 0},
        "NaN in masked rows": base | {"rewards": rewards + dead, "values": values + dead, "mask": dead == 0},
        "both flags in one row": both,
        "both flags, values known": both | {"final_values": final_values},
        "responses, V(s_T) = 0": base | {"mask": dead == 0, "bootstrap_value": np.zeros(shape[1], np.float32)},
    }


def advantages(
    rewards: Any,
    values: Any,
    terminated: Any,
    truncated: Any,
    bootstrap_value: Any,
    mask: Any,
    gamma: float,
    lambda_: float,
    final_values: Any = None,
    first_lambda: float | None = None,
    own_value: bool = False,
) -> np.ndarray:
    """The reference, row by row; the last two arguments make it wrong."""
    result = np.zeros(rewards.shape)
    for worker in range(rewards.shape[1]):
        later, next_value = 0.0, float(bootstrap_value[worker])
        for t in reversed(range(len(rewards))):
            i = t, worker
            if not mask[i]:
                continue
            value, cut = float(values[i]), truncated[i] and not terminated[i]
            if terminated[i] or cut:
                later = next_value = 0.0
            if cut and final_values is not None:
                next_value = float(final_values[i])
            if own_value and not terminated[i]:
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


def _shifted(by: int) -> Callable[[Case], np.ndarray]:
    """The flags of other rows. No flag is set in the first and the last row where this mistake matters."""
    return lambda case: np.roll(case["terminated"], by, axis=0)


def _live_or_0(name: str) -> Callable[[Case], np.ndarray]:
    return lambda case: np.where(case["mask"], case[name], 0)


def _backwards(case: Case) -> np.ndarray:
    return advantages(**{name: x[::-1] if np.ndim(x) == 2 else x for name, x in case.items()})[::-1]


def _normalized(case: Case) -> np.ndarray:
    right = advantages(**case)
    return (right - right.mean()) / right.std()


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
    "the flag of the step before": _with(terminated=_shifted(1)),
    "the flag of the step after": _with(terminated=_shifted(-1)),
    "termination is ignored": _with(terminated=lambda case: False & case["terminated"]),
    "truncation as termination": _with(terminated=lambda case: case["terminated"] | case["truncated"]),
    "truncation does not cut": _with(truncated=lambda case: False & case["truncated"]),
    "truncation wins where both flags are set": _with(terminated=lambda case: case["terminated"] & ~case["truncated"]),
    "V(s_t) for V(final observation)": _with(final_values=lambda case: case["values"]),
    "the mask is ignored": _with(mask=lambda case: True | case["mask"]),
    "masked rows are steps with reward and value 0": _with(
        mask=lambda case: True | case["mask"], rewards=_live_or_0("rewards"), values=_live_or_0("values")
    ),
    "the target, not the advantage": lambda case: advantages(**case) + case["values"],
    "normalized": _normalized,
}
