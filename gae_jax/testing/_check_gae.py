"""`check_gae`: runs a GAE function on small rollouts, and compares with the reference and with known mistakes."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from gae_jax._arguments import as_number
from gae_jax.testing._mistakes import ADVICE, Case, cases, known_answers

ALWAYS = ("rewards", "values", "gamma", "lambda_")  # the other arguments are passed where the function takes them
UNKNOWN, NOT_FINITE = "wrong, by no known mistake", "NaN or inf in the result"
MASKED, TARGETS, LEAK = "masked rows are not 0", "the targets are not A + V", "NaN leaks from unused data"
WHAT_TO_DO = ADVICE | {
    UNKNOWN: "see `got` and `want` in the verdict; if no case is right, a function of arrays [N, T] needs time_axis=1",
    MASKED: "a masked row is no sample: set its advantage to 0",
    TARGETS: "add the values to the advantages, before those are standardized",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """The verdict on one case. All arrays are `[T, N]`."""

    case: str
    mistake: str | None  # the names of the mistakes, joined by "; "; None: no mistake
    difference: float  # the largest difference from the reference
    arguments: Case  # of the case, by the names of `gae`
    got: np.ndarray  # the advantages; or the targets, if only the targets are wrong
    want: np.ndarray
    wrong: np.ndarray  # where `got` differs from `want` by more than the tolerance
    leaks: tuple[str, ...]  # the arguments whose unused entries reach the result if they are NaN

    def where(self) -> str:
        """Returns the kind of rows that are wrong, and the last of them in time, where a recursion errs first."""
        case, row = self.arguments, np.arange(len(self.wrong))[:, None]
        flags = {"terminated": case["terminated"], "truncated": case["truncated"], "masked": ~case["mask"]}
        kinds = flags | {"in row T-1": row == len(row) - 1}
        for name, flag in flags.items():
            reaches = kinds[f"in or before a {name} row"] = flag.copy()  # back to the end of the episode before
            for t in reversed(range(len(row) - 1)):
                reaches[t] |= reaches[t + 1] & ~(case["terminated"] | case["truncated"])[t]
        kind = [f", all {name}" for name, rows in kinds.items() if not np.any(self.wrong & ~rows)][:1]
        t, worker = np.argwhere(self.wrong)[-1].tolist()
        place = ", ".join([f"t = {t}", f"worker {worker}", *(name for name, flag in flags.items() if flag[t, worker])])
        numbers = f"got {self.got[t, worker]:.4g}, want {self.want[t, worker]:.4g}"
        return f"{self.case}: {self.wrong.sum()} of {self.wrong.size} rows are wrong{''.join(kind)}. {place}: {numbers}"


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The verdicts on the cases; prints as a table."""

    verdicts: tuple[Verdict, ...]
    not_taken: tuple[str, ...]  # arguments that the function does not take: cases that depend on them are left out
    returns: tuple[str, ...]  # "advantages", or in the order of the function "advantages" and "targets"

    @property
    def right(self) -> bool:
        """Whether the function is right in all cases that were not left out, also if unused entries are NaN."""
        return all(verdict.mistake is None for verdict in self.verdicts)

    def __str__(self) -> str:
        """Returns the table, where the unknown mistakes are, what to do, and what is to be known beside."""
        rows = [("case", "verdict", "largest difference")]
        for v in self.verdicts:
            if v.mistake in (None, LEAK):
                rows.append((v.case, "right with finite numbers" if v.mistake else "right", "rounding"))
            else:
                rows.append((v.case, v.mistake, f"{v.difference:.1e}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        named = [(v, name) for v in self.verdicts if v.mistake for name in v.mistake.split("; ")]
        lines += [v.where() for v, name in named if name in (UNKNOWN, NOT_FINITE) or v.mistake == TARGETS]
        lines += dict.fromkeys(f"{name}: {WHAT_TO_DO[name]}" for _, name in named if name in WHAT_TO_DO)
        if len(self.returns) == 2:
            lines.append(f"the function returns {' and '.join(self.returns)}, in this order")
        harmless = dict.fromkeys(name for v in self.verdicts if v.mistake == LEAK for name in v.leaks)
        harmful = dict.fromkeys(name for v in self.verdicts for name in v.leaks if name not in harmless)
        if harmful:
            lines.append(f"{LEAK} ({', '.join(harmful)}): wrong with finite numbers, too")
        if harmless:
            cure = "use where(done, 0, x), not x * (1 - done)"
            lines.append(f"{LEAK} ({', '.join(harmless)}): right with finite numbers; {cure}")
        if self.not_taken:
            lines.append(f"not checked, since the function does not take them: {', '.join(self.not_taken)}")
        return "\n".join(lines)

    __repr__ = __str__


def check_gae(fn: Callable[..., Any], *, tolerance: float | None = None, time_axis: int = 0) -> Report:
    """Runs a function that estimates advantages on small rollouts, names its mistakes, and shows where it is wrong.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ A_{t+1}

    Each rollout has T transitions of N workers. The advantages are compared with a loop in float64 NumPy, then with the
    results of known mistakes, then with the results of two known mistakes at once.

    Args:
      fn: a function that is called with NumPy arrays by name, and returns the advantages `[T, N]`, 0 in masked rows; or
        advantages and targets, in any order. The names are the names of `gae`: rewards, values, terminated, truncated,
        final_values, mask (`[T, N]`), bootstrap_value (`[N]`), gamma and lambda_ (numbers). The function must take
        rewards, values, gamma, lambda_, and bootstrap_value or mask. A case is left out if its result depends on an
        argument that the function does not take. Without final_values, truncated rows are dropped: their advantage is
        0. A function with other names needs an adapter.
      tolerance: the largest difference that counts as rounding. The default depends on the dtype of the result: 1e-4 in
        float32 and float64, 0.008 in float16 and 0.06 in bfloat16 (8 times the dtype's epsilon).
      time_axis: 0, or 1 for a function of arrays `[N, T]`.

    Returns:
      A report with `right` and `verdicts`, which prints as a table with advice. Unused entries, as V(s_T) after an end
      in row T-1, are tried as NaN, too: "NaN leaks from unused data" is harmless where the result is right with finite
      numbers, and all numbers are finite.

    Raises:
      TypeError: the function lacks an argument, requires other arguments, or does not return one or two arrays of
        floating-point numbers of 16 bits or more.
      ValueError: the function returns another shape than `[T, N]`; tolerance is negative or not finite; or time_axis is
        not 0 or 1.

    >>> from gae_jax import gae
    >>> def mine(rewards, values, terminated, bootstrap_value, gamma, lambda_):
    ...     return gae(rewards, values, terminated, bootstrap_value=0 * bootstrap_value, gamma=1.0, lambda_=lambda_)
    >>> print(check_gae(mine))
    case                                verdict                                       largest difference
    one piece of an episode             the bootstrap value is missing; γ is missing  1.1e+00
    episodes that end                   the bootstrap value is missing; γ is missing  1.1e+00
    lambda_ = 0                         the bootstrap value is missing; γ is missing  1.1e+00
    ends in the first and the last row  the bootstrap value is missing; γ is missing  5.9e-01
    the bootstrap value is missing: row t bootstraps from the value of row t+1, and row T-1 from V(s_T)
    γ is missing: A_t is δ_t + γ λ A_{t+1}, and δ_t is r_t + γ V(s_{t+1}) - V(s_t)
    the function returns advantages and targets, in this order
    not checked, since the function does not take them: truncated, final_values, mask
    """
    if tolerance is not None and as_number("tolerance", tolerance) == np.inf:
        raise ValueError(f"`tolerance` must be finite; got {tolerance}")
    if time_axis not in (0, 1):
        raise ValueError(f"`time_axis` must be 0 or 1; got {time_axis}")
    passed, not_taken = _arguments(fn)
    run = functools.partial(_call, fn, time_axis)
    outputs = [run(arguments) for arguments in passed.values()]
    if tolerance is None:
        tolerance = max(1e-4, 8 * float(jnp.finfo(outputs[0][0].dtype).eps))
    results = np.array(outputs, np.float64).swapaxes(0, 1)  # advantages, or also targets: [1 or 2, C, T, N]
    live, right = np.stack([(cases()[name]["mask"], known_answers(0)[1][name][0]) for name in passed], axis=1)
    with np.errstate(all="ignore"):  # a result may be constant or NaN
        similar = [np.corrcoef(x[live > 0], right[live > 0])[0, 1] for x in results]
    first = similar.index(max(similar))  # the place of the advantages
    results = np.roll(results, first, axis=0)
    mistakes = _mistakes_in(dict(zip(passed, results[0], strict=True)), tolerance)
    verdicts = []
    for c, (name, arguments) in enumerate(passed.items()):
        leaks = _leaks(lambda x: run(x)[first], arguments, cases()[name], results[0, c])
        verdicts.append(_verdict(name, results[:, c], mistakes[c], leaks, tolerance))
    pair = ("advantages", "targets")[: len(results)]
    return Report(tuple(verdicts), not_taken, pair[::-1] if first else pair)


def _arguments(fn: Callable[..., Any]) -> tuple[dict[str, Case], tuple[str, ...]]:
    """Returns the arguments to pass in each case that the function has the arguments for, and those that it lacks."""
    signature, passed, misfits, not_taken = inspect.signature(fn), {}, [], {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name, case in cases().items():
        taken = {k: x for k, x in case.items() if takes_all or k in signature.parameters}
        # An argument makes a difference if a row is masked, a flag is set, or a value is not 0.
        lacks = [k for k in case if k not in taken and (k in ALWAYS or np.any(case[k] != (k == "mask")))]
        not_taken |= dict.fromkeys(lacks)
        try:
            signature.bind(**taken, **dict.fromkeys(lacks))
        except TypeError as misfit:
            misfits.append(misfit)
        else:
            passed[name] = taken
    if not passed:
        raise TypeError(
            f"check_gae cannot call the function: {misfits[0]}. It passes, by name, {', '.join(ALWAYS)}, "
            "bootstrap_value and, where taken, terminated, truncated, final_values, mask. Pass an adapter that takes "
            "these names"
        )
    return passed, tuple(not_taken)


def _call(fn: Callable[..., Any], time_axis: int, arguments: Case) -> list[np.ndarray]:
    """Returns the advantages, or the advantages and the targets, in the order of the function, as arrays `[T, N]`."""
    turned = np.transpose if time_axis else np.asarray
    # The function may write into its arguments.
    result = fn(**{name: turned(x).copy() if np.ndim(x) else x for name, x in arguments.items()})
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    if isinstance(result, tuple) and not is_pair:
        raise TypeError(f"the function must return advantages, or advantages and targets; got {len(result)} items")
    arrays, want = [np.asarray(x) for x in (result if is_pair else [result])], turned(arguments["rewards"]).shape
    for x in arrays:
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
            got = type(x.item()).__name__ if x.dtype == object and x.ndim == 0 else f"dtype {x.dtype}"
            raise TypeError(f"the function must return floating-point numbers of 16 bits or more; got {got}")
        if x.shape != want:
            guess = ". Time and batch look swapped: transpose it" if x.shape == want[::-1] else ""
            axes = "[N, T]" if time_axis else "[T, N]"
            raise ValueError(f"the function must return arrays of shape {want}, {axes}; got {x.shape}{guess}")
    return [turned(x) for x in arrays]


def _mistakes_in(got: dict[str, np.ndarray], tolerance: float) -> list[tuple[str, ...]]:
    """Returns the mistakes in the advantages of each case; if possible, all are from one set of known mistakes."""
    for most in (0, 1, 2):
        sets, answers = known_answers(most)
        fits = np.stack([_close(answers[name], x, tolerance, cases()[name]["mask"]) for name, x in got.items()])
        if fits.all(axis=0).any():
            break
    best = set(sets[np.argmax(fits.sum(axis=0))])  # the first that explains most cases: it has the fewest mistakes
    mistakes = []
    for (name, x), fit in zip(got.items(), fits, strict=True):
        live = cases()[name]["mask"]
        # Of the sets that explain this case, subsets of the best one come first, then smaller ones.
        h = min(np.flatnonzero(fit), key=lambda h: (not set(sets[h]) <= best, len(sets[h])), default=None)
        if h is None:
            mistakes.append((UNKNOWN if np.isfinite(x[live]).all() else NOT_FINITE,))
        elif answers[name][h][~live].any() or _close(x, 0, tolerance, ~live):
            mistakes.append(sets[h])
        else:
            mistakes.append((*sets[h], MASKED))
    return mistakes


def _close(x: np.ndarray, y: np.ndarray | float, tolerance: float, rows: np.ndarray) -> Any:
    """Returns whether arrays `[..., T, N]` differ by rounding in these rows; NaN and inf do not."""
    with np.errstate(invalid="ignore"):  # inf - inf
        return (np.abs(x - y) <= tolerance)[..., rows].all(axis=-1)


def _leaks(run: Callable[[Case], np.ndarray], arguments: Case, case: Case, got: np.ndarray) -> tuple[str, ...]:
    """Returns the arguments that make the advantages NaN if their unused entries are NaN."""
    masked, ends = ~case["mask"], case["terminated"] | case["truncated"]
    last_row_ends = np.array([flags[live][-1] for flags, live in zip(ends.T, case["mask"].T, strict=True)])
    unused = {"rewards": masked, "values": masked, "final_values": masked | case["terminated"] | ~case["truncated"]}
    unused |= {"bootstrap_value": last_row_ends}
    read = np.isfinite(got) & (case["mask"] | (got == 0))  # MASKED reports the other masked rows

    def leaks(name: str) -> bool:
        with_nan = np.where(unused[name], np.float32(np.nan), arguments[name])
        return not np.isfinite(run(arguments | {name: with_nan})[read]).all()

    return tuple(name for name in unused if name in arguments and unused[name].any() and leaks(name))


def _verdict(
    name: str, results: np.ndarray, mistakes: tuple[str, ...], leaks: tuple[str, ...], tolerance: float
) -> Verdict:
    """Returns the verdict on the advantages and, if there are any, the targets."""
    case, (sets, answers) = cases()[name], known_answers(1)
    live, got, want = case["mask"], results[0], answers[name][0]
    # The targets may be made of the right advantages, or before another mistake.
    bases = [got, want, *(a for some, a in zip(sets, answers[name], strict=True) if {*some} & {*mistakes})]
    targets = results[-1] - case["values"]
    if len(results) == 2 and not any(_close(targets, base, tolerance, live) for base in bases):
        mistakes += (TARGETS,)
    if mistakes == (TARGETS,):
        got, want = np.where(live, results[1], case["values"]), want + case["values"]
    difference = np.abs(got - want)
    largest = float(np.where(np.isnan(difference), np.inf, difference).max())
    mistake = "; ".join(mistakes or (LEAK,) * bool(leaks)) or None
    return Verdict(name, mistake, largest, case, got, want, ~(difference <= tolerance), leaks)
