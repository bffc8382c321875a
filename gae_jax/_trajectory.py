"""The canonical form of a rollout: arguments checked, time first, flags bool, floats wide enough to add up.

Shapes are checked with chex while JAX traces, so a compiled call pays nothing for them. What chex finds is said again
in the caller's words: which argument, what was wanted, what was got and, where it can be guessed, what went wrong.
"""

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jax.typing import ArrayLike

from gae_jax._affine_scan.sharded import pieces
from gae_jax._run_time_checks import guarded

Shape = tuple[int, ...]
NO_GUESS: Mapping[Shape, str] = MappingProxyType({})


class Transition(NamedTuple):
    """One transition s_t -> s_{t+1}; with a leading axis of time, all of a rollout's."""

    reward: Array
    value: Array  # V(s_t)
    terminated: Array  # nothing of value follows
    truncated: Array | None  # value follows, but row t+1 belongs to another episode
    final_value: Array | None  # V(final observation), read where truncated
    mask: Array | None  # False: no transition at all
    log_rho: Array | None = None  # of actions that another policy chose


class Trajectory(NamedTuple):
    """A checked rollout in canonical form."""

    transitions: Transition  # [T, *B] each, floats in the dtype that the recursion runs in
    bootstrap_value: Array  # [*B], V(s_T)
    gamma: Array  # [T, *B], with axes of length 1 where it does not vary
    lambda_: Array  # likewise
    time_axis: int  # of the caller's arrays, counted from the front
    dtype: Any  # of the results


REQUIRED = ("rewards", "values", "terminated", "log_rhos", "gamma", "lambda_")  # of those that an estimator takes
FLAGS = ("terminated", "truncated", "mask")


def canonical_trajectory(
    arguments: Mapping[str, ArrayLike | None], time_axis: int, axis_name: str | None
) -> Trajectory:
    """Checks an estimator's arguments, by their public names, and returns them in canonical form.

    Raises:
      TypeError: an argument is not an array of real numbers, or not one of flags.
      ValueError: a shape, `time_axis` or `axis_name` is wrong, or there is no transition at all.
    """
    given = {name: x for name, x in arguments.items() if x is not None or name in REQUIRED}
    flags = {name: as_flags(name, x) for name, x in given.items() if name in FLAGS}
    numbers = {name: as_numbers(name, x) for name, x in given.items() if name not in FLAGS}
    gamma, lambda_ = numbers.pop("gamma"), numbers.pop("lambda_")
    axis = _time_axis(time_axis, numbers["rewards"].shape)
    _check_shapes(numbers | flags, axis)

    dtype = promoted(*numbers.values())
    # A long sum in bfloat16 loses its digits: the recursion never runs below float32.
    running_dtype = promoted(dtype, jnp.float32)
    rows = {name: x.astype(running_dtype) for name, x in numbers.items()} | flags
    last_value = rows.pop("bootstrap_value", None)
    rows["gamma"] = _parameter("gamma", gamma, rows["rewards"])
    rows["lambda_"] = _parameter("lambda_", lambda_, rows["rewards"])
    rows = {name: jnp.moveaxis(x, axis, 0) for name, x in rows.items()}
    flags = {name: rows[name] for name in flags}
    rows |= {name: x.astype(jnp.bool_) for name, x in flags.items()}
    transitions = Transition(
        reward=rows["rewards"],
        value=rows["values"][: len(rows["rewards"])],
        terminated=rows["terminated"],
        truncated=rows.get("truncated"),
        final_value=rows.get("final_values"),
        mask=rows.get("mask"),
        log_rho=rows.get("log_rhos"),
    )
    last_value = rows["values"][-1] if last_value is None else last_value
    if axis_name is not None:  # any other piece of time is followed by the next one
        here, count = pieces(axis_name)
        last_value = jnp.where(here == count - 1, last_value, jnp.zeros_like(last_value))
    checked = transitions, last_value, rows["gamma"], rows["lambda_"], flags
    transitions = transitions._replace(reward=guarded(transitions.reward, _check_values, *checked))
    return Trajectory(transitions, last_value, rows["gamma"], rows["lambda_"], axis, dtype)


def as_given(x: Array, trajectory: Trajectory) -> Array:
    """A result `[T, *B]` as the caller's arrays are: where time is, and in which dtype."""
    return jnp.moveaxis(x, 0, trajectory.time_axis).astype(trajectory.dtype)


def check_shape(name: str, x: ArrayLike, want: Shape, meaning: str, mistakes: Mapping[Shape, str] = NO_GUESS) -> None:
    """Raises a ValueError unless `x` has the shape wanted; `mistakes` tells what some other shapes are likely to be."""
    try:
        chex.assert_shape(x, want)
    except AssertionError:
        got = np.shape(x)
        guess = mistakes.get(got, "")
        raise ValueError(f"`{name}` must have shape {want}, {meaning}; got {got}. {guess}".rstrip()) from None


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises for what can be told before tracing: what is no array at all, and a gamma or lambda_ outside [0, 1]."""
    for name, x in arguments.items():
        if x is None and name not in REQUIRED:
            continue
        if _is_no_array(x) or _holds_no_numbers(x):
            got = f"dtype {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(f"`{name}` must be an array of {'flags' if name in FLAGS else 'numbers'}; got {got}")
    for name in ("gamma", "lambda_"):
        x = arguments[name]
        if isinstance(x, (int, float, np.number, np.ndarray)) and np.ndim(x) == 0 and not 0 <= float(x) <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1]; got {x}")


def _check_shapes(arrays: Mapping[str, Array], axis: int) -> None:
    rows = arrays["rewards"].shape
    longer = (*rows[:axis], rows[axis] + 1, *rows[axis + 1 :])
    batch = rows[:axis] + rows[axis + 1 :]
    if rows[axis] == 0:
        raise ValueError(f"`rewards` must hold at least one transition; got shape {rows}, so T = 0 on axis {axis}")

    swapped = "Time and batch look swapped: all arrays are [T, *B], or with time_axis=1 all are [N, T]."
    mistakes = {longer: "It has a row too many: one row a transition.", rows[::-1]: swapped}
    for name in ("terminated", "truncated", "final_values", "mask", "log_rhos"):
        if name in arrays:
            check_shape(name, arrays[name], rows, "that of `rewards`", mistakes)
    if "bootstrap_value" in arrays:
        mistakes |= {longer: "Its last row would be V(s_T), and so is `bootstrap_value`: pass one of the two."}
        check_shape("values", arrays["values"], rows, "that of `rewards`, as `bootstrap_value` is given", mistakes)
        mistakes = dict.fromkeys([(1, *batch), (*batch, 1)], "Drop its axis of length 1.")
        check_shape("bootstrap_value", arrays["bootstrap_value"], batch, "that of `rewards` without time", mistakes)
    else:
        mistakes = {rows: "Append V(s_T), the value of the state after the last transition, or pass `bootstrap_value`."}
        mistakes |= {longer[::-1]: swapped, (*rows[:-1], rows[-1] + 1): swapped}
        check_shape("values", arrays["values"], longer, "that of `rewards` with T + 1 rows of time", mistakes)


def _check_values(
    row: Transition, bootstrap_value: Array, gamma: Array, lambda_: Array, flags: Mapping[str, Array]
) -> None:
    """What only a run can know, of what is read."""
    steps = len(row.reward)
    live = jnp.ones_like(row.terminated) if row.mask is None else row.mask
    cut = jnp.zeros_like(row.terminated) if row.truncated is None else row.truncated & ~row.terminated
    last_live = steps - 1 - jnp.argmax(live[::-1], axis=0, keepdims=True)
    last_goes_on = jnp.take_along_axis(live & ~row.terminated & ~cut, last_live, axis=0)[0]
    finite_where = {
        "`rewards`": (row.reward, live & ~cut if row.final_value is None else live),
        "`values`": (row.value, live),
        "`final_values`": (row.final_value, live & cut),
        "V(s_T), the bootstrap value,": (bootstrap_value, last_goes_on),
        "`log_rhos`": (row.log_rho, live),
    }
    for name, x in flags.items():
        if x.dtype != jnp.bool_:
            is_read = jnp.ones_like(live) if name == "mask" else live
            _check_none(is_read & (x != 0) & (x != 1), f"`{name}` must hold 0 and 1")
    for name, (x, is_read) in finite_where.items():
        if x is not None:
            _check_none(is_read & ~jnp.isfinite(x), f"{name} must hold finite numbers")
    for name, x in {"`gamma`": gamma, "`lambda_`": lambda_}.items():
        _check_none(live & ~((x >= 0) & (x <= 1)), f"{name} must lie in [0, 1]")


def _check_none(wrong: Array, message: str) -> None:
    checkify.debug_check(~jnp.any(wrong), message + " where it is read; {count} entries do not", count=jnp.sum(wrong))


def _time_axis(time_axis: int, shape: Shape) -> int:
    """Returns `time_axis` counted from the front."""
    if not shape:
        raise ValueError("`rewards` must have an axis of time, shape [T, *B]; got a scalar, shape ()")
    try:
        axis = operator.index(time_axis)
    except TypeError:
        raise TypeError(f"`time_axis` must be an integer; got {time_axis!r}") from None
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"`time_axis` must be an axis of `rewards`, whose shape is {shape}; got {axis}")
    return axis % len(shape)


def as_numbers(name: str, x: Any) -> Array:
    array = jnp.asarray(x)
    if not _is_real(array):
        raise TypeError(f"`{name}` must hold floating-point numbers or integers; got dtype {array.dtype}")
    return array


def as_flags(name: str, x: Any) -> Array:
    array = jnp.asarray(x)
    if not (array.dtype == jnp.bool_ or _is_real(array)):
        raise TypeError(f"`{name}` must hold flags, bool or 0 and 1; got dtype {array.dtype}")
    return array


def _is_no_array(x: Any) -> bool:
    return not (isinstance(x, (Array, np.ndarray, np.generic, int, float)) or hasattr(x, "__jax_array__"))


def _holds_no_numbers(x: Any) -> bool:
    return isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "OSUmM"


def _is_real(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)


def _parameter(name: str, x: Array, rewards: Array) -> Array:
    """Returns gamma or lambda_ with the axes of `rewards`, of length 1 where it does not vary."""
    try:
        chex.assert_is_broadcastable(x.shape, rewards.shape)
    except AssertionError:
        raise ValueError(
            f"`{name}` must broadcast to the shape of `rewards`, {rewards.shape}; got {x.shape}. Shapes align from the "
            f"last axis: where arrays are [T, N], one per worker is [N] and one per step is [T, 1]."
        ) from None
    return x.astype(rewards.dtype).reshape((1,) * (rewards.ndim - x.ndim) + x.shape)


def promoted(*arrays_or_dtypes: Any) -> Any:
    """The type that the floating ones promote to."""
    floating = [x for x in arrays_or_dtypes if jnp.issubdtype(getattr(x, "dtype", x), jnp.floating)]
    # Mixed inputs are part of the contract, also where the caller forbids implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(floating or [float]))
