"""The canonical form of a rollout: arguments checked, time first, flags bool, floats wide enough to add up.

Shapes are checked with chex while JAX traces, so a compiled call pays nothing for them. What chex finds is said again
in the caller's words: which argument, what was wanted, what was got and, where it can be guessed, what went wrong.
"""

import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Shape = tuple[int, ...]
NO_GUESS: Mapping[Shape, str] = MappingProxyType({})


class Transition(NamedTuple):
    """One transition s_t -> s_{t+1}; with a leading axis of time, all of a rollout's."""

    reward: Array
    value: Array  # V(s_t)
    terminated: Array  # nothing of value follows
    truncated: Array | None  # value follows, but row t+1 belongs to another episode
    final_value: Array | None  # V(final observation), read where truncated


class Trajectory(NamedTuple):
    """A checked rollout in canonical form."""

    transitions: Transition  # [T, *B] each; floats in the dtype that the recursion runs in
    bootstrap_value: Array  # [*B], V(s_T)
    time_axis: int  # of the caller's arrays, counted from the front
    dtype: Any  # of the results


def canonical_trajectory(
    *,
    rewards: ArrayLike,
    values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike | None,
    bootstrap_value: ArrayLike | None,
    final_values: ArrayLike | None,
    time_axis: int,
) -> Trajectory:
    """Checks an estimator's arguments and returns them in canonical form.

    Raises:
      TypeError: an argument is not an array of real numbers, or not one of flags.
      ValueError: a shape or `time_axis` is wrong, or there is no transition at all.
    """
    numbers = {"rewards": rewards, "values": values}
    options = {"bootstrap_value": bootstrap_value, "final_values": final_values}
    numbers |= {name: x for name, x in options.items() if x is not None}
    numbers = {name: _numbers(name, x) for name, x in numbers.items()}
    flags = {"terminated": terminated} | ({} if truncated is None else {"truncated": truncated})
    flags = {name: _flags(name, x) for name, x in flags.items()}
    axis = _time_axis(time_axis, numbers["rewards"].shape)
    _check_shapes(numbers | flags, axis)

    dtype = _promoted(x.dtype for x in numbers.values())
    # A long sum in bfloat16 loses its digits: the recursion never runs below float32.
    running_dtype = _promoted([dtype, jnp.dtype(jnp.float32)])
    numbers = {name: x.astype(running_dtype) for name, x in numbers.items()}
    last_value = numbers.pop("bootstrap_value", None)
    rows = {name: jnp.moveaxis(x, axis, 0) for name, x in (numbers | flags).items()}
    transitions = Transition(
        reward=rows["rewards"],
        value=rows["values"][: len(rows["rewards"])],
        terminated=rows["terminated"],
        truncated=rows.get("truncated"),
        final_value=rows.get("final_values"),
    )
    return Trajectory(transitions, rows["values"][-1] if last_value is None else last_value, axis, dtype)


def check_shape(name: str, x: ArrayLike, want: Shape, meaning: str, mistakes: Mapping[Shape, str] = NO_GUESS) -> None:
    """Raises a ValueError unless `x` has the shape wanted; `mistakes` tells what some other shapes are likely to be."""
    try:
        chex.assert_shape(x, want)
    except AssertionError:
        got = np.shape(x)
        guess = mistakes.get(got, "")
        raise ValueError(f"`{name}` must have shape {want}, {meaning}; got {got}. {guess}".rstrip()) from None


def check_unit_interval(name: str, x: Any) -> None:
    """Raises unless `x` is a number in [0, 1]; a value that only a run will know passes."""
    if x is None or isinstance(x, (bool, str)):
        raise TypeError(f"`{name}` must be a number in [0, 1]; got {x!r}")
    if isinstance(x, (int, float, np.number, np.ndarray)) and not np.all((np.asarray(x) >= 0) & (np.asarray(x) <= 1)):
        raise ValueError(f"`{name}` must lie in [0, 1]; got {x}")


def _check_shapes(arrays: Mapping[str, Array], axis: int) -> None:
    rows = arrays["rewards"].shape
    longer = (*rows[:axis], rows[axis] + 1, *rows[axis + 1 :])
    batch = rows[:axis] + rows[axis + 1 :]
    if rows[axis] == 0:
        raise ValueError(f"`rewards` must hold at least one transition; got shape {rows}, so T = 0 on axis {axis}")

    swapped = "Time and batch look swapped: all arrays are [T, *B], or with time_axis=1 all are [N, T]."
    mistakes = {longer: "It has a row too many: one row a transition.", rows[::-1]: swapped}
    for name in arrays.keys() & {"terminated", "truncated", "final_values"}:
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


def _numbers(name: str, x: ArrayLike) -> Array:
    array = _array(name, x)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must hold floating-point numbers or integers; got dtype {array.dtype}")
    return array


def _flags(name: str, x: ArrayLike) -> Array:
    array = _array(name, x)
    if array.dtype == jnp.bool_:
        return array
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must hold flags, bool or 0 and 1; got dtype {array.dtype}")
    return array != 0


def _array(name: str, x: Any) -> Array:
    if not isinstance(x, (Array, np.ndarray, np.generic, int, float)):
        raise TypeError(f"`{name}` must be an array; got {type(x).__name__}")
    return jnp.asarray(x)


def _promoted(dtypes: Iterable[Any]) -> Any:
    """The type that the floating ones among the types promote to."""
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    # Mixed inputs are part of the contract, also where the caller forbids implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*floating) if floating else jnp.result_type(float)
