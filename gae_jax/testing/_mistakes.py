"""Small rollouts, their advantages in float64 NumPy, and known mistakes: the same recursion with one thing changed.

A function that gives the answer of a mistake has made this mistake. A function with two mistakes has both changes.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

Case = dict[str, Any]  # the arguments of `gae` that describe a rollout, by name


@functools.cache
def cases() -> dict[str, Case]:
    """Returns rollouts of 8 transitions and 3 workers, by what they test. The arrays are read-only."""
    rewards, values, final_values = np.random.default_rng(0).normal(size=(3, 9, 3)).astype(np.float32)
    nowhere, nothing = np.zeros((8, 3), bool), np.zeros((8, 3), np.float32)
    base = {"rewards": rewards[:8], "values": values[:8], "gamma": 0.9, "lambda_": 0.7, "bootstrap_value": values[8]}
    base |= {"terminated": nowhere, "truncated": nowhere, "final_values": nothing, "mask": ~nowhere}
    ends = base | {"terminated": _flags("..x..... .x..xx.. ........")}
    masked = base | {"terminated": _flags("...x.... ........ ..x.....")}
    limits = base | {"terminated": _flags(".x...... ....x... ...x..x."), "final_values": final_values[:8]}
    limits |= {"truncated": _flags("....x... xx....x. .x.....x")}
    both = limits | {"terminated": _flags(".xx..... ..x..x.. x.....xx")}
    both |= {"truncated": _flags(".x..x... ..x..... ...x...x")}
    response = base | {"bootstrap_value": nothing[0]}
    made = {
        "one piece of an episode": base,
        "episodes that end": ends,
        "lambda_ = 0": ends | {"lambda_": 0.0},
        "ends in the first and the last row": base | {"terminated": _flags("x......x ...x...x x.......")},
        "time limits, rows dropped": {name: x for name, x in limits.items() if name != "final_values"},
        "time limits, values known": limits,
        "both flags in one row": {name: x for name, x in both.items() if name != "final_values"},
        "both flags, values known": both,
        "masked rows": masked | {"mask": _flags("xx.xx.xx x.xx.xxx .xxxx...")},
        "masked rows and time limits": limits | {"mask": _flags("xxx.xxxx x.xxx.x. .xxx.x..")},
        "responses, padding at the end": response | {"mask": _flags("xxxxx... xxxxxxxx xxx.....")},
        "responses, a tool's tokens": response | {"mask": _flags("xx..xxx. x.xx.xxx xxx..xx.")},
    }
    for x in itertools.chain.from_iterable(case.values() for case in made.values()):
        np.asarray(x).setflags(write=False)
    return made


def _flags(text: str) -> np.ndarray:
    """Returns flags `[T, N]` from a word for each worker; x is a flag that is set."""
    return np.array([[letter == "x" for letter in word] for word in text.split()]).T


KNOBS = {  # what makes the reference wrong, beside other arguments
    "rows": range(7, -1, -1),  # in the order of the recursion
    "next_values": None,  # other values for V(s_{t+1})
    "carry_after": False,  # A_{t+1} counts in these rows
    "masked_carry": 1.0,  # times A_{t+1}, what a masked row hands to the row before
    "first_without_lambda": False,  # 1 for λ in A_t, but not in what the row before gets
}
Estimator = Callable[[SimpleNamespace], np.ndarray]  # of C cases and the knobs: `[T, C, N]`, `[C, N]`, `[C, 1]` or one
Change = Callable[[Estimator], Estimator]  # one way to make a mistake: a decorator of the reference


def advantages(c: SimpleNamespace) -> np.ndarray:
    """Returns the advantages `[T, C, N]` in float64."""
    bootstrap = np.where(c.truncated, c.final_values, next_values(c))
    bootstrap = np.where(c.terminated, 0, bootstrap)
    deltas = np.where(np.isnan(bootstrap), 0, c.rewards + c.gamma * bootstrap - c.values)  # NaN: a dropped row
    decay = np.where(~(c.terminated | c.truncated) | c.carry_after, c.gamma, 0)
    first_lambda = 1 if c.first_without_lambda else c.lambda_
    result, later = np.zeros(c.values.shape), 0.0
    for t in c.rows:
        result[t] = np.where(c.mask[t], deltas[t] + decay[t] * first_lambda * later, 0)
        later = np.where(c.mask[t], deltas[t] + decay[t] * c.lambda_ * later, c.masked_carry * later)
    return result


def next_values(c: SimpleNamespace) -> np.ndarray:
    """Returns V(s_{t+1}), the value of the next unmasked row, and V(s_T) after the last; or what is there for it."""
    result, later = np.zeros(c.values.shape), c.bootstrap_value
    for t in c.rows:
        result[t], later = later, np.where(c.mask[t], c.values[t], later)
    return result if c.next_values is None else c.next_values


def _with(**arguments: Any) -> list[Change]:
    """Other arguments: numbers and flags, or functions of the cases."""
    return [lambda estimate: lambda c: estimate(_changed(c, **arguments))]


def _changed(c: SimpleNamespace, **arguments: Any) -> SimpleNamespace:
    new = {name: x(c) if callable(x) else np.full_like(vars(c)[name], x) for name, x in arguments.items()}
    return SimpleNamespace(**(vars(c) | new))


def _then(result: Callable[[np.ndarray, SimpleNamespace], np.ndarray]) -> list[Change]:
    """Another result: a function of the advantages and the cases."""
    return [lambda estimate: lambda c: result(estimate(c), c)]


def _moved(by: int, *names: str, edges: Sequence[str] = ("around", "0", "repeated")) -> list[Change]:
    """Rows hold what belongs to the row before (by 1) or after (by -1); `edges`: what the row without one may hold."""

    def moved(name: str, edge: str, c: SimpleNamespace) -> np.ndarray:
        x, row = vars(c)[name], 0 if by == 1 else -1
        rolled = np.roll(x, by, axis=0)
        rolled[row] = {"around": rolled[row], "0": 0, "repeated": x[row], "V(s_T)": c.bootstrap_value}[edge]
        return rolled

    return [way for edge in edges for way in _with(**{n: functools.partial(moved, n, edge) for n in names})]


def _last_row_unset(*names: str) -> list[Change]:
    last = (np.arange(8) == 7)[:, None, None]
    return _with(**{name: lambda c, name=name: vars(c)[name] & ~last for name in names})


def _masked_rows_hand_on(carry: Any) -> list[Change]:
    """Beside the carry, a masked row hands the value that it gets, its own value, or 0 to the row before."""
    others = [lambda c, how=how: next_values(_changed(c, **how)) for how in ({"mask": True}, ZEROS)]
    return [way for values in (next_values, *others) for way in _with(masked_carry=carry, next_values=values)]


def _also_masked(ways: list[Change]) -> list[Change]:
    [masked] = _then(lambda a, c: a * c.mask)
    return ways + [lambda estimate, way=way: masked(way(estimate)) for way in ways]


def _normalized(ddof: int, masked_rows: bool) -> list[Change]:
    over = {"axis": (0, 2), "keepdims": True}
    where = (lambda c: True) if masked_rows else (lambda c: c.mask)
    return _then(lambda a, c: (a - a.mean(where=where(c), **over)) / a.std(where=where(c), ddof=ddof, **over))


VALUES = operator.attrgetter("values")
ZEROS = {"mask": True, "rewards": lambda c: c.rewards * c.mask, "values": lambda c: c.values * c.mask}
FLAGS = [("terminated", "truncated"), ("terminated",), ("truncated",)]
FAMILIES: dict[str, dict[str, list[Change]]] = {  # what to do: {the name of a mistake: the ways to make it}
    "start at row T-1, go back to row 0, and return row 0 first": {
        "the result is in reverse": _then(lambda a, c: a[::-1]),
        "time runs the wrong way": _with(rows=range(8)) + _with(rows=range(8), next_values=next_values),
    },
    "bootstrap from V(final observation), or set A_t to 0 if it is not known; do not add A_{t+1}": {
        "truncation as termination": _with(terminated=lambda c: c.terminated | c.truncated, truncated=False),
        "truncation does not cut": _with(truncated=False),
        "the carry is not cut at a truncation": _with(
            carry_after=lambda c: c.carry_after | (c.truncated & ~c.terminated)
        ),
    },
    "evaluate the observation that the environment returned before its reset": {
        "V(s_t) for V(final observation)": _with(final_values=VALUES),
        "V(reset observation) for V(final observation)": _with(final_values=next_values),
        "the final value of the step before": _moved(1, "final_values"),
        "the final value of the step after": _moved(-1, "final_values"),
    },
    "in a terminated row the reward counts, V(s_{t+1}) and A_{t+1} do not, also if it is truncated": {
        "truncation wins where both flags are set": _with(terminated=lambda c: c.terminated & ~c.truncated),
        "termination is ignored": _with(terminated=False),
        "the carry is not cut at a termination": [
            *_with(carry_after=lambda c: c.carry_after | c.terminated),
            *_with(carry_after=lambda c: c.carry_after | (c.terminated & ~c.truncated)),
        ],
        "V(s_{t+1}) counts after a termination": _with(
            rewards=lambda c: c.rewards + c.gamma * np.where(c.terminated, next_values(c), 0)
        ),
        "the reward of a terminated row is missing": _with(rewards=lambda c: np.where(c.terminated, 0, c.rewards)),
    },
    "row t holds the flags of the transition from s_t to s_{t+1}; the last row has flags too": {
        "the flag of the step before": [way for names in FLAGS for way in _moved(1, *names)],
        "the flag of the step after": [way for names in FLAGS for way in _moved(-1, *names)],
        "the flags of the last row are ignored": [way for names in FLAGS for way in _last_row_unset(*names)],
    },
    "row t bootstraps from the value of row t+1, and row T-1 from V(s_T)": {
        "V(s_t) for V(s_{t+1})": _with(next_values=VALUES) + _with(next_values=VALUES, final_values=VALUES),
        "V(s_{T-1}) for V(s_T)": _with(bootstrap_value=lambda c: c.values[-1]),
        "the bootstrap value is missing": _with(bootstrap_value=0),
        "the bootstrap value counts twice": [
            *_with(bootstrap_value=lambda c: 2 * c.bootstrap_value),
            *_with(bootstrap_value=lambda c: (1 + c.lambda_) * c.bootstrap_value),  # A_T is V(s_T)
        ],
    },
    "row t holds V(s_t), r_t and the mask of the transition from s_t to s_{t+1}": {
        "the values of the step before": _moved(1, "values"),
        "the values of the step after": _moved(-1, "values", edges=("V(s_T)", "around", "0", "repeated")),
        "the reward of the step before": _moved(1, "rewards"),
        "the reward of the step after": _moved(-1, "rewards"),
        "the mask of the step before": _moved(1, "mask"),
        "the mask of the step after": _moved(-1, "mask"),
    },
    "A_t is δ_t + γ λ A_{t+1}, and δ_t is r_t + γ V(s_{t+1}) - V(s_t)": {
        "λ is missing on the first hop": _with(first_without_lambda=True),
        "λ is missing": _with(lambda_=1),
        "λ counts as 0": _with(lambda_=0),
        "λ is squared": _with(lambda_=lambda c: c.lambda_**2),
        "γ for λ": _with(lambda_=lambda c: c.gamma),
        "γ is missing": _with(gamma=1),
        "γ is missing in the TD error": _with(gamma=1, lambda_=lambda c: c.gamma * c.lambda_),
        "γ is missing in the carry": _with(lambda_=lambda c: c.lambda_ / c.gamma),
        "γ is squared": _with(gamma=lambda c: c.gamma**2),
    },
    "a masked row hands V(s_{t+1}) and A_{t+1} to the row before it, unchanged": {
        "the mask is ignored": _also_masked(_with(mask=True)),
        "masked rows are steps with reward and value 0": _also_masked(_with(**ZEROS)),
        "a masked row ends the episode": _masked_rows_hand_on(carry=0),
        "masked rows decay by γλ": _masked_rows_hand_on(carry=lambda c: c.gamma * c.lambda_),
    },
    "subtract the values": {"the target, not the advantage": _then(lambda a, c: a + c.values)},
    "not wrong in itself; compare the advantages before they are standardized": {
        "normalized": [way for ddof in (0, 1) for rows in (True, False) for way in _normalized(ddof, rows)],
    },
}
MISTAKES = {name: ways for family in FAMILIES.values() for name, ways in family.items()}
ADVICE = {name: advice for advice, family in FAMILIES.items() for name in family}


@functools.cache
def known_answers(most: int) -> tuple[list[tuple[str, ...]], dict[str, np.ndarray]]:
    """Returns all sets of at most `most` mistakes, by name, and for each case their H answers `[H, T, N]`."""
    unknown = {"final_values": np.full((8, 3), np.nan)}
    columns = [{name: np.atleast_1d(x) for name, x in (unknown | case).items()} for case in cases().values()]
    stack = {name: np.stack([column[name] for column in columns], axis=-2) for name in columns[0]}
    ways = [(name, way) for name, some in MISTAKES.items() for way in some]
    sets = [some for size in range(most + 1) for some in itertools.combinations(ways, size) if len(dict(some)) == size]
    orders = [order for some in sets for order in itertools.permutations(some)]
    names = [tuple(dict(some)) for some in sets for _ in itertools.permutations(some)]  # in the order of the table
    estimators = [functools.reduce(lambda estimate, way: way[1](estimate), order, advantages) for order in orders]
    answers = np.stack([estimate(SimpleNamespace(**stack, **KNOBS)) for estimate in estimators])
    return names, dict(zip(cases(), np.moveaxis(answers, 2, 0), strict=True))
