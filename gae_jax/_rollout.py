"""The arguments of an estimator: checked with chex, and brought to one canonical form.

The checks run while JAX traces, so a compiled call pays nothing for them. Every error names the argument, and shows
what was wanted, what was got and, where it can be guessed, what went wrong.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from gae_jax._affine_scan import shard_index_and_count

Shape = tuple[int, ...]
NO_GUESS: Mapping[Shape, str] = MappingProxyType({})


class Rollout(NamedTuple):
    """The arguments of an estimator, under their public names. `canonical` checks them, and says what they become."""

    rewards: Any
    values: Any
    terminated: Any
    truncated: Any = None
    bootstrap_value: Any = None
    final_values: Any = None
    mask: Any = None
    log_rhos: Any = None  # of V-trace
    gamma: Any = None
    lambda_: Any = 1.0


FLAGS = ("terminated", "truncated", "mask")
PARAMETERS = ("gamma", "lambda_")
REQUIRED = ("rewards", "values", "terminated", *PARAMETERS)


def check_types(rollout: Rollout, *also_required: str) -> None:
    """Raises for what is known before tracing: an argument that is no array, and gamma or lambda_ outside [0, 1]."""
    for name, x in rollout._asdict().items():
        if x is not None or name in (*REQUIRED, *also_required):
            check_is_array(name, x)
    if rollout.final_values is not None and rollout.truncated is None:
        raise ValueError("`final_values` is read only where `truncated` is set: pass `truncated`, too")
    for name in PARAMETERS:
        x = getattr(rollout, name)
        if isinstance(x, (int, float, np.number, np.ndarray)) and np.ndim(x) == 0 and not 0 <= x <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1]; got {x}")


def check_is_array(name: str, x: Any) -> None:
    """Raises unless `x` is one number, or an array of numbers or flags, and JAX can hold its integers."""
    is_array = isinstance(x, (Array, np.ndarray, np.generic, int, float)) or hasattr(x, "__jax_array__")
    is_numpy = isinstance(x, (np.ndarray, np.generic))
    is_strange = is_numpy and not (x.dtype == np.bool_ or jnp.issubdtype(x.dtype, jnp.number))
    if not is_array or is_strange or isinstance(x, np.ma.MaskedArray):
        got = f"dtype {x.dtype}" if type(x) is np.ndarray else type(x).__name__
        raise TypeError(f"`{name}` must be an array of {'flags' if name in (*FLAGS, 'done') else 'numbers'}; got {got}")
    if is_numpy and jnp.issubdtype(x.dtype, jnp.integer):
        narrow = jax.dtypes.canonicalize_dtype(x.dtype)
        if narrow != x.dtype and np.any(x.astype(narrow) != x):
            raise ValueError(
                f"`{name}` holds integers that {narrow} cannot hold, and JAX reads {x.dtype} as {narrow} unless x64 is "
                "enabled; convert them to floating point"
            )


def as_number(name: str, x: Any) -> float | Array:
    """Returns `x` as a Python number if it is one real number, and as it is if only a run knows it."""
    is_number = isinstance(x, (int, float, Array, np.ndarray, np.generic)) and not isinstance(x, bool)
    if not is_number or (hasattr(x, "dtype") and not _is_real(x)):
        raise TypeError(f"`{name}` must be a number; got {x!r}")
    if np.ndim(x) != 0:
        raise ValueError(f"`{name}` must be one number; got shape {np.shape(x)}")
    if isinstance(x, Tracer):
        return x
    try:
        return float(x)
    except OverflowError:
        raise ValueError(f"`{name}` must be a number that float64 can hold; got {x}") from None


def check_is_name(name: str, x: Any) -> None:
    """Raises unless `x` is a string or None."""
    if not (x is None or isinstance(x, str)):
        raise TypeError(f"`{name}` must be a string; got {x!r}")


def canonical(
    rollout: Rollout, time_axis: int, axis_name: str | None = None
) -> tuple[Rollout, Callable[[Array], Array]]:
    """Checks every shape with chex, and returns the rollout in canonical form.

    In canonical form time is the first axis, flags are bool, and numbers have the dtype that the recursion runs in,
    float32 or wider. `values` is `[T, *B]`, beside `bootstrap_value` `[*B]`, which is 0 on all devices but the last
    where time is split over devices. gamma and lambda_ have the axes of `rewards`, of length 1 where they do not vary.

    Returns:
      The rollout, and a function that brings a result `[T, *B]` to the caller's layout: its axis of time, its dtype.

    Raises:
      TypeError: an argument is not an array of real numbers, or not an array of flags.
      ValueError: a shape, `time_axis` or `axis_name` is wrong, or there is no transition at all.
    """
    given = {name: x for name, x in rollout._asdict().items() if x is not None}
    arrays = {name: as_flags(name, x) if name in FLAGS else as_numbers(name, x) for name, x in given.items()}
    axis = axis_from_front(time_axis, arrays["rewards"].shape)
    _assert_shapes(rollout._replace(**arrays), axis)

    dtype = promoted(*(x for name, x in arrays.items() if name not in PARAMETERS))
    # A long sum in bfloat16 loses its digits: the recursion never runs below float32.
    wide = promoted(dtype, jnp.float32)
    arrays = {name: x.astype(bool if name in FLAGS else wide) for name, x in arrays.items()}
    arrays |= {name: _with_axes_of(arrays["rewards"], arrays[name]) for name in PARAMETERS}
    arrays = {name: x if name == "bootstrap_value" else jnp.moveaxis(x, axis, 0) for name, x in arrays.items()}
    arrays.setdefault("bootstrap_value", arrays["values"][-1])
    arrays["values"] = arrays["values"][: arrays["rewards"].shape[0]]
    if axis_name is not None:  # every other shard of time is followed by the next shard
        index, count = shard_index_and_count(axis_name)
        arrays["bootstrap_value"] = jnp.where(index == count - 1, arrays["bootstrap_value"], 0)
    return rollout._replace(**arrays), functools.partial(_to_caller_layout, time_axis=axis, dtype=dtype)


def _to_caller_layout(x: Array, *, time_axis: int, dtype: Any) -> Array:
    return jnp.moveaxis(x, 0, time_axis).astype(dtype)


def check_shape(name: str, x: ArrayLike, want: Shape, meaning: str, guesses: Mapping[Shape, str] = NO_GUESS) -> None:
    """Raises a ValueError unless `x` has the wanted shape; `guesses` says what some wrong shapes are likely to be."""
    try:
        chex.assert_shape(x, want)
    except AssertionError:
        got = np.shape(x)
        guess = guesses.get(got, "")
        raise ValueError(f"`{name}` must have shape {want}, {meaning}; got {got}. {guess}".rstrip()) from None


def _assert_shapes(rollout: Rollout, axis: int) -> None:
    rows = rollout.rewards.shape
    longer = (*rows[:axis], rows[axis] + 1, *rows[axis + 1 :])
    batch = rows[:axis] + rows[axis + 1 :]
    if rows[axis] == 0:
        raise ValueError(f"`rewards` must hold at least one transition; got shape {rows}, so T = 0 on axis {axis}")

    swapped = "Time and batch look swapped: all arrays are [T, *B], or with time_axis=1 all are [N, T]."
    guesses = {longer: "It has a row too many: there is one row a transition.", rows[::-1]: swapped}
    for name in ("terminated", "truncated", "final_values", "mask", "log_rhos"):
        if getattr(rollout, name) is not None:
            check_shape(name, getattr(rollout, name), rows, "the shape of `rewards`", guesses)
    if rollout.bootstrap_value is None:
        guesses = {rows: "Append V(s_T), the value of the state after the last transition, or pass `bootstrap_value`."}
        guesses |= {longer[::-1]: swapped, (*rows[:-1], rows[-1] + 1): swapped}
        check_shape("values", rollout.values, longer, "the shape of `rewards` with T + 1 rows of time", guesses)
    else:
        guesses |= {longer: "Its last row would be V(s_T), and so is `bootstrap_value`: pass one of the two."}
        check_shape("values", rollout.values, rows, "the shape of `rewards` beside `bootstrap_value`", guesses)
        guesses = dict.fromkeys([(1, *batch), (*batch, 1)], "Drop its axis of length 1.")
        check_shape("bootstrap_value", rollout.bootstrap_value, batch, "the shape of `rewards` without time", guesses)
    for name in PARAMETERS:
        _assert_broadcastable(name, getattr(rollout, name), rows)


def _assert_broadcastable(name: str, x: Array, rows: Shape) -> None:
    try:
        chex.assert_is_broadcastable(x.shape, rows)
    except AssertionError:
        raise ValueError(
            f"`{name}` must broadcast to the shape of `rewards`, {rows}; got {x.shape}. Shapes align from the "
            f"last axis: where arrays are [T, N], one per worker is [N] and one per step is [T, 1]."
        ) from None


def _with_axes_of(rewards: Array, x: Array) -> Array:
    return x.reshape((1,) * (rewards.ndim - x.ndim) + x.shape)


def axis_from_front(time_axis: int, shape: Shape) -> int:
    """Returns `time_axis`, an axis of `rewards` of this shape, counted from the front."""
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
    """Returns `x` as an array of floating-point numbers or integers."""
    array = jnp.asarray(x)
    if not _is_real(array):
        raise TypeError(f"`{name}` must hold floating-point numbers or integers; got dtype {array.dtype}")
    return array


def as_flags(name: str, x: Any) -> Array:
    """Returns `x` as an array of flags, of whatever dtype."""
    array = jnp.asarray(x)
    if not (array.dtype == jnp.bool_ or _is_real(array)):
        raise TypeError(f"`{name}` must hold flags, bool or 0 and 1; got dtype {array.dtype}")
    return array


def _is_real(x: Any) -> bool:
    """Whether JAX promotes the dtype: it does not promote floating-point numbers of 8 bits or less."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.finfo(x.dtype).bits >= 16
    return jnp.issubdtype(x.dtype, jnp.integer)


def promoted(*arrays_or_dtypes: Any) -> Any:
    """Returns the dtype that the floating-point ones promote to."""
    floating = [x for x in arrays_or_dtypes if jnp.issubdtype(getattr(x, "dtype", x), jnp.floating)]
    # Mixed inputs are part of the contract, also where the caller forbids implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(floating or [float]))
