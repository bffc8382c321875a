"""Small rollouts, their advantages in float64 NumPy, and known mistakes: the same recursion with one thing changed.

A function that gives the answer of a mistake has made this mistake. A function with two mistakes has both changes.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Case = dict[str, Any]  # the arguments of `gae` that describe a rollout, by name


@functools.cache
def cases() -> dict[str, Case]:
    """Returns rollouts of 8 transitions and 3 workers, by what they test. The arrays are read-only."""
    rewards, values, final_values = np.random.default_rng(0).normal(size=(3, 9, 3)).astype(np.float32)
    nowhere, nothing = np.zeros((8, 3), bool), np.zeros((8, 3), np.float32)
    base = {"rewards": rewards[:8], "values": values[:8], "gamma": 0.9, "lambda_": 0.7, "bootstrap_value": values[8]}
    base |= {"terminated": nowhere, "truncated": nowhere, "final_values": nothing, "mask": ~nowhere}
    response = base | {"bootstrap_value": nothing[0]}
    ends = base | {"terminated": _flags("..x..... .x..xx.. ........")}
    masked = base | {"terminated": _flags("...x.... ........ ..x.....")}
    limits = base | {"terminated": _flags(".x...... ....x... ...x..x."), "final_values": final_values[:8]}
    limits |= {"truncated": _flags("....x... xx....x. .x.....x")}
    both = limits | {
        "terminated": _flags(".xx..... ..x..x.. x.....xx"),
        "truncated": _flags(".x..x... ..x..... ...x...x"),
    }
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
    "td_gamma": np.nan,  # γ in the TD error; NaN: gamma
    "carry_gamma": np.nan,  # γ before A_{t+1}; NaN: gamma
    "first_lambda": np.nan,  # λ in A_t, but not in what the row before gets; NaN: lambda_
    "own_value": np.False_,  # V(s_t) for V(s_{t+1})
    "reset_value": np.False_,  # V(s_{t+1}) for V(final observation)
    "value_after_end": np.False_,  # V(s_{t+1}) counts in terminated rows
    "carry_after": np.False_,  # A_{t+1} counts in these rows
    "masked_value": 1.0,  # times V(s_{t+1}), what a masked row hands to the row before
    "masked_carry": 1.0,  # times A_{t+1}, the same
    "own_masked_value": np.False_,  # a masked row hands its own value to the row before
    "forward": np.False_,  # A_{t-1} for A_{t+1}
}


def stacked(some: Sequence[Case]) -> Case:
    """Returns C rollouts and the knobs as arrays `[T, C, N]` and numbers `[C, 1]`; unknown final values are NaN."""
    default = KNOBS | {
        "final_values": np.full(some[0]["rewards"].shape, np.nan),
        "carry_after": some[0]["mask"] & False,
    }
    columns = [{name: np.atleast_1d(x) for name, x in (default | case).items()} for case in some]
    stack = {name: np.stack([column[name] for column in columns], axis=-2) for name in columns[0]}
    return {name: x if x.dtype == bool else x.astype(np.float64) for name, x in stack.items()}


def advantages(stack: Case) -> np.ndarray:
    """Returns the advantages `[T, C, N]` of stacked rollouts."""
    x = SimpleNamespace(**stack)
    td_gamma, carry_gamma = (np.where(np.isnan(knob), x.gamma, knob) for knob in (x.td_gamma, x.carry_gamma))
    first_lambda = np.where(np.isnan(x.first_lambda), x.lambda_, x.first_lambda)
    next_values, later = np.empty_like(x.values), x.bootstrap_value
    for t in reversed(range(len(x.values))):
        next_values[t] = later
        later = np.where(x.mask[t] | x.own_masked_value, x.values[t], x.masked_value * later)
    next_values = np.where(x.own_value, x.values, next_values)
    final_values = np.where(x.reset_value, next_values, x.final_values)
    next_values = np.where(x.truncated & ~x.terminated, final_values, next_values)
    next_values = np.where(x.terminated & ~x.value_after_end, 0, next_values)
    deltas = np.where(np.isnan(next_values), 0, x.rewards + td_gamma * next_values - x.values)  # NaN: a dropped row
    decay = np.where((x.terminated | x.truncated) & ~x.carry_after, 0, carry_gamma)

    deltas, decay, mask = (np.where(x.forward, rows[::-1], rows) for rows in (deltas, decay, x.mask))
    result, later = np.zeros_like(x.values), np.zeros_like(x.bootstrap_value)
    for t in reversed(range(len(x.values))):
        result[t] = np.where(mask[t], deltas[t] + decay[t] * first_lambda * later, 0)
        later = np.where(mask[t], deltas[t] + decay[t] * x.lambda_ * later, x.masked_carry * later)
    return np.where(x.forward, result[::-1], result)


class Change(NamedTuple):
    """One way to make a mistake: from other arguments, or with another result. `c` is a stack of cases."""

    case: Callable[[Case], Case] = lambda c: c
    result: Callable[[np.ndarray, Case], np.ndarray] = lambda a, c: a


def _with(**arguments: Any) -> Change:
    """Other arguments: numbers and flags, or functions of the stack."""

    def change(c: Case) -> Case:
        return c | {name: x(c) if callable(x) else np.full_like(c[name], x) for name, x in arguments.items()}

    return Change(change)


def _moved(by: int, *names: str, edges: Sequence[str] = ("around", "0", "repeated")) -> list[Change]:
    """Rows hold what belongs to the row before (by 1) or after (by -1); `edges`: what the row without one may hold."""

    def change(edge: str, c: Case) -> Case:
        moved, row = {name: np.roll(c[name], by, axis=0) for name in names}, 0 if by == 1 else -1
        for name, x in moved.items():
            x[row] = {"around": x[row], "0": 0, "repeated": c[name][row], "V(s_T)": c["bootstrap_value"]}[edge]
        return c | moved

    return [Change(functools.partial(change, edge)) for edge in edges]


def _unset_in_last_row(name: str) -> Callable[[Case], np.ndarray]:
    return lambda c: np.concatenate([c[name][:-1], c[name][-1:] & False])


def _also_masked(change: Change) -> list[Change]:
    return [change, change._replace(result=lambda a, c: a * c["mask"])]


def _normalized(ddof: int, masked_rows: bool) -> Change:
    def normalize(a: np.ndarray, c: Case) -> np.ndarray:
        over = {"axis": (0, 2), "keepdims": True, "where": c["mask"] | masked_rows}
        return (a - a.mean(**over)) / a.std(**over, ddof=ddof)

    return Change(result=normalize)


FLAGS = [("terminated", "truncated"), ("terminated",), ("truncated",)]
FAMILIES: dict[str, dict[str, list[Change]]] = {  # what to do: {the name of a mistake: the ways to make it}
    "start at row T-1, go back to row 0, and return row 0 first": {
        "the result is in reverse": [Change(result=lambda a, c: a[::-1])],
        "time runs the wrong way": [
            Change(lambda c: {k: x[::-1] if x.ndim == 3 else x for k, x in c.items()}, lambda a, c: a[::-1]),
            _with(forward=True),
        ],
    },
    "after a time limit, bootstrap from V(final observation), and drop A_{t+1}": {
        "truncation as termination": [_with(terminated=lambda c: c["terminated"] | c["truncated"], truncated=False)],
        "truncation does not cut": [_with(truncated=False)],
        "the carry is not cut at a truncation": [
            _with(carry_after=lambda c: c["carry_after"] | (c["truncated"] & ~c["terminated"]))
        ],
    },
    "evaluate the observation that the environment returned before its reset": {
        "V(s_t) for V(final observation)": [_with(final_values=lambda c: c["values"])],
        "V(reset observation) for V(final observation)": [_with(reset_value=True)],
    },
    "in a terminated row the reward counts, V(s_{t+1}) and A_{t+1} do not, also if it is truncated": {
        "truncation wins where both flags are set": [_with(terminated=lambda c: c["terminated"] & ~c["truncated"])],
        "termination is ignored": [_with(terminated=False)],
        "the carry is not cut at a termination": [
            _with(carry_after=lambda c: c["carry_after"] | c["terminated"]),
            _with(carry_after=lambda c: c["carry_after"] | (c["terminated"] & ~c["truncated"])),
        ],
        "V(s_{t+1}) counts after a termination": [_with(value_after_end=True)],
        "the reward of a terminated row is missing": [
            _with(rewards=lambda c: np.where(c["terminated"], 0, c["rewards"]))
        ],
    },
    "row t holds the flags of the transition from s_t to s_{t+1}; the last row has flags too": {
        "the flag of the step before": [change for names in FLAGS for change in _moved(1, *names)],
        "the flag of the step after": [change for names in FLAGS for change in _moved(-1, *names)],
        "the flags of the last row are ignored": [
            _with(**{name: _unset_in_last_row(name) for name in names}) for names in FLAGS
        ],
    },
    "row t bootstraps from the value of row t+1, and row T-1 from V(s_T)": {
        "V(s_t) for V(s_{t+1})": [_with(own_value=True), _with(own_value=True, final_values=lambda c: c["values"])],
        "V(s_{T-1}) for V(s_T)": [_with(bootstrap_value=lambda c: c["values"][-1])],
        "the bootstrap value is missing": [_with(bootstrap_value=0)],
        "the bootstrap value counts twice": [
            _with(bootstrap_value=lambda c: 2 * c["bootstrap_value"]),
            _with(bootstrap_value=lambda c: (1 + c["lambda_"]) * c["bootstrap_value"]),  # A_T is V(s_T)
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
        "λ is missing on the first hop": [_with(first_lambda=1)],
        "λ is missing": [_with(lambda_=1)],
        "λ counts as 0": [_with(lambda_=0)],
        "λ is squared": [_with(lambda_=lambda c: c["lambda_"] ** 2)],
        "γ for λ": [_with(lambda_=lambda c: c["gamma"])],
        "γ is missing": [_with(gamma=1)],
        "γ is missing in the TD error": [_with(td_gamma=1)],
        "γ is missing in the carry": [_with(carry_gamma=1)],
        "γ is squared": [_with(gamma=lambda c: c["gamma"] ** 2)],
    },
    "a masked row hands V(s_{t+1}) and A_{t+1} to the row before it, unchanged": {
        "the mask is ignored": _also_masked(_with(mask=True)),
        "masked rows are steps with reward and value 0": _also_masked(
            _with(mask=True, rewards=lambda c: c["rewards"] * c["mask"], values=lambda c: c["values"] * c["mask"])
        ),
        "a masked row ends the episode": [
            _with(masked_carry=0, masked_value=0),
            _with(masked_carry=0),
            _with(masked_carry=0, own_masked_value=True),
        ],
        "masked rows decay by γλ": [
            _with(masked_carry=lambda c: c["gamma"] * c["lambda_"], masked_value=0),
            _with(masked_carry=lambda c: c["gamma"] * c["lambda_"]),
            _with(masked_carry=lambda c: c["gamma"] * c["lambda_"], own_masked_value=True),
        ],
    },
    "subtract the values": {"the target, not the advantage": [Change(result=lambda a, c: a + c["values"])]},
    "not wrong in itself; compare the advantages before they are standardized": {
        "normalized": [_normalized(ddof, masked_rows) for ddof in (0, 1) for masked_rows in (True, False)],
    },
}
MISTAKES = {name: changes for family in FAMILIES.values() for name, changes in family.items()}
ADVICE = {name: advice for advice, family in FAMILIES.items() for name in family}


@functools.cache
def known_answers(size: int) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Returns all sets of `size` mistakes, by name, and their answers `[H, T, C, N]` to all cases."""
    stack = stacked(list(cases().values()))
    ways = [(name, change) for name, changes in MISTAKES.items() for change in changes]
    sets = [some for some in itertools.combinations(ways, size) if len(dict(some)) == size]
    names = [tuple(dict(some)) for some in sets for _ in itertools.permutations(some)]
    orders = [[change for _, change in order] for some in sets for order in itertools.permutations(some)]
    return names, np.concatenate([answers(stack, orders[i : i + 256]) for i in range(0, len(orders), 256)])


def answers(stack: Case, orders: Sequence[Sequence[Change]]) -> np.ndarray:
    """Returns the advantages `[H, T, C, N]` with each of H sequences of changes."""
    changed = [functools.reduce(lambda c, change: change.case(c), order, stack) for order in orders]
    together = advantages({name: np.concatenate([c[name] for c in changed], axis=-2) for name in stack})
    each = zip(orders, np.split(together, len(orders), axis=-2), strict=True)
    return np.stack([functools.reduce(lambda a, change: change.result(a, stack), order, a) for order, a in each])
