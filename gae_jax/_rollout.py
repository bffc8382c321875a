"""How the arguments of an estimator fit together: checked, and brought to one canonical form.

Every error names the argument, and shows what was wanted, what was got and, where it can be guessed, what went wrong.

- `check_before_jit` runs at every call. It checks what `jax.jit` would hide, or refuse in its own words: an argument
  that is no array, numbers that JAX would read as other numbers, gamma and lambda_ outside their range, and static
  arguments, which must be hashable.
- `canonical` runs inside jit. It checks shapes, with chex. They are known while JAX traces, so a compiled call pays
  nothing for these checks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gae_jax._arguments import (
    Constant,
    Shape,
    as_integer,
    check_axis_names,
    check_is_array,
    check_is_name,
    check_shape,
    is_broadcastable,
    promoted,
    value_of,
)
from gae_jax._placement import placed_alike


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
    lambda_: Any = Constant(1.0)


ENDS = ("terminated", "truncated")
FLAGS = (*ENDS, "mask")
PARAMETERS = {"gamma": (-1, 1), "lambda_": (0, 1)}  # and the range of each
ONE_IS_ENOUGH = (*ENDS, "bootstrap_value", "final_values")
BY_ROW = ("terminated", "truncated", "final_values", "mask", "log_rhos")
NUMBERS = ("rewards", "values", "bootstrap_value", "final_values", "log_rhos")
REQUIRED = ("rewards", "values", "terminated", *PARAMETERS)


def check_before_jit(
    rollout: Rollout,
    time_axis: int,
    *also_required: str,
    time_axis_name: str | None = None,
    implementation: str | None = None,
) -> int:
    """Raises for what is wrong before jit, and returns `time_axis` counted from the front: one program for 1 and -1."""
    for name, x in rollout._asdict().items():
        if x is not None or name in (*REQUIRED, *also_required):
            check_is_array(name, x, flags=name in FLAGS)
    for name, (low, high) in PARAMETERS.items():
        x = getattr(rollout, name)
        number = value_of(x) if np.ndim(x) == 0 else None
        if number is not None and not low <= number <= high:
            raise ValueError(f"`{name}` must lie in [{low}, {high}]; got {x}")
    if rollout.final_values is not None and rollout.truncated is None:
        raise ValueError("`final_values` is read only where `truncated` is set: pass `truncated`, too")
    if implementation is not None:
        check_is_name("implementation", implementation)
    if time_axis_name is not None:
        check_axis_names("time_axis_name", time_axis_name)
    rows, axis = np.shape(rollout.rewards), as_integer("time_axis", time_axis)
    if not rows:
        raise ValueError("`rewards` must have an axis of time, shape [T, *B]; got a scalar, shape ()")
    if not -len(rows) <= axis < len(rows):
        raise ValueError(f"`time_axis` must be an axis of `rewards`, whose shape is {rows}; got {axis}")
    return axis % len(rows)


def canonical(rollout: Rollout, axis: int) -> tuple[Rollout, Callable[[Array], Array]]:
    """Checks every shape with chex, and returns the rollout in canonical form.

    In canonical form time is the first axis, flags are bool, and numbers have the dtype that the recursion runs in,
    float32 or wider. `values` is `[T, *B]`, beside `bootstrap_value` `[*B]`. gamma and lambda_ have the axes of
    `rewards`, of length 1 where they do not vary.

    Returns:
      The rollout, and a function that brings a result `[T, *B]` to the caller's layout: its axis of time, its dtype.

    Raises:
      ValueError: a shape is wrong, or there is no transition at all.
    """
    rollout = jax.tree.map(jnp.asarray, rollout, is_leaf=lambda x: isinstance(x, float))
    _assert_rewards_fit(rollout, axis)
    _assert_shapes(rollout, axis)
    rollout = with_numbers_repeated(rollout, axis)
    # Neither flags nor gamma and lambda_ decide the dtype of the results.
    dtype = promoted(*jax.tree.leaves([getattr(rollout, name) for name in NUMBERS]))

    def to_caller_layout(x: Array) -> Array:
        return jnp.moveaxis(x, 0, axis).astype(dtype)

    return placed_alike(_with_time_first(_widened(rollout, dtype), axis)), to_caller_layout


def with_numbers_repeated(rollout: Rollout, axis: int) -> Rollout:
    """Returns arrays where one number or flag stands for all: `terminated=False`, `bootstrap_value=0.0`."""
    rows = np.shape(rollout.rewards)
    shapes = dict.fromkeys(ONE_IS_ENOUGH, rows) | {"bootstrap_value": _without(rows, axis)}
    numbers = {name: x for name in ONE_IS_ENOUGH if (x := getattr(rollout, name)) is not None and np.ndim(x) == 0}
    return rollout._replace(**{name: jnp.broadcast_to(x, shapes[name]) for name, x in numbers.items()})


def _widened(rollout: Rollout, dtype: Any) -> Rollout:
    """Returns the flags as bool, and the numbers in float32 or wider: a long sum in bfloat16 loses its digits."""
    wide = promoted(dtype, jnp.float32)
    given = {name: x for name, x in rollout._asdict().items() if x is not None}
    return rollout._replace(**{name: x.astype(bool if name in FLAGS else wide) for name, x in given.items()})


def _with_time_first(rollout: Rollout, axis: int) -> Rollout:
    """Returns arrays with the axes of `rewards`, time first, and V(s_T) apart."""
    count = rollout.rewards.ndim

    def moved(x: Array) -> Array:
        return jnp.moveaxis(x.reshape((1,) * (count - x.ndim) + x.shape), axis, 0)

    rows, last_value = jax.tree.map(moved, rollout._replace(bootstrap_value=None)), rollout.bootstrap_value
    if last_value is None:
        last_value = rows.values[-1]
    return rows._replace(values=rows.values[: rows.rewards.shape[0]], bootstrap_value=last_value)


def _assert_rewards_fit(rollout: Rollout, axis: int) -> None:
    """Raises if all other arrays have one shape and `rewards` has another: then it is `rewards` that is wrong."""
    others = {x.shape for name in BY_ROW if (x := getattr(rollout, name)) is not None and x.ndim > axis}
    if others and rollout.values.ndim > axis:
        want = rollout.values.shape if rollout.bootstrap_value is not None else _longer(rollout.values.shape, axis, -1)
        if others == {want}:
            check_shape("rewards", rollout.rewards, want, "the shape of the other arrays", _guesses(want, axis))


def _assert_shapes(rollout: Rollout, axis: int) -> None:
    rows, values, last_value = rollout.rewards.shape, rollout.values, rollout.bootstrap_value
    if rows[axis] == 0:
        raise ValueError(f"`rewards` must hold at least one transition; got shape {rows}, so T = 0 on axis {axis}")
    longer, batch, guesses = _longer(rows, axis), _without(rows, axis), _guesses(rows, axis)
    for name in BY_ROW:
        x = getattr(rollout, name)
        if x is None:
            continue
        may_be_value, likely = name in ENDS and jnp.issubdtype(x.dtype, jnp.floating), {}
        if may_be_value:  # the fourth of gae(rewards, values, done, last_value), as in PureJaxRL
            likely = dict.fromkeys(((), batch, (1, *batch)), "It looks like V(s_T): pass it as `bootstrap_value=`.")
        elif name in ENDS:
            likely = {batch: "It has no axis of time: there is one flag per transition."}
        if x.ndim or may_be_value or name not in ONE_IS_ENOUGH:
            check_shape(name, x, rows, "the shape of `rewards`", guesses | likely)

    other_axis = {k: f"If time is axis {k} of all arrays, pass time_axis={k}." for k in range(len(rows)) if k != axis}
    if last_value is None:
        guesses = _guesses(longer, axis) | {_longer(rows, k): guess for k, guess in other_axis.items()}
        guesses[rows] = (
            "The T + 1 rows are V(s_0) ... V(s_T). If V(s_T) is missing, the value of the state after the last "
            "transition, append it or pass `bootstrap_value`; if the rows are V(s_1) ... V(s_T), put V(s_0) first."
        )
        check_shape("values", values, longer, "the shape of `rewards` with T + 1 rows of time", guesses)
    else:
        guesses[longer] = "Its last row would be V(s_T), and so is `bootstrap_value`: pass one of the two."
        check_shape("values", values, rows, "the shape of `rewards` beside `bootstrap_value`", guesses)
    if last_value is not None and last_value.ndim:
        guesses = {_without(rows, k): guess for k, guess in other_axis.items()}
        guesses[rows] = "If these are V(s_{t+1}) of every row, pass the last row alone."
        check_shape("bootstrap_value", last_value, batch, "the shape of `rewards` without time", guesses)
    for name in PARAMETERS:
        got = getattr(rollout, name).shape
        if not is_broadcastable(got, rows):
            raise ValueError(
                f"`{name}` must broadcast to the shape of `rewards`, {rows}; got {got}. Shapes align from the last "
                "axis: where arrays are [T, N], one per worker is [N] and one per step is [T, 1]."
            )


def _guesses(want: Shape, axis: int) -> dict[Shape, str]:
    """Returns what is likely to be wrong with an array that should have the shape `want`, by the shape it has."""
    swapped = "Time and batch look swapped: all arrays are [T, *B], or with time_axis=1 all are [N, T]."
    too_long = "It has a row too many: there is one row per transition."
    likely = {_longer(want, axis): too_long, want[1::-1] + want[2:]: swapped}
    for k in range(axis + 1, len(want)):
        like = f"x[...{', None' * (len(want) - k)}]"
        likely[want[:k]] = f"If the last axes share it, pass jnp.broadcast_to({like}, {want})."
    return likely


def _longer(shape: Shape, axis: int, by: int = 1) -> Shape:
    return (*shape[:axis], shape[axis] + by, *shape[axis + 1 :])


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]
