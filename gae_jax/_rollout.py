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
    """The arguments of an estimator, under their public names. `canonical` checks them, and says what they become.

    An argument without a default must not be None.
    """

    rewards: Any
    values: Any
    terminated: Any
    gamma: Any
    lambda_: Any
    truncated: Any = None
    bootstrap_value: Any = None
    final_values: Any = None
    mask: Any = None
    log_rhos: Any = None  # of V-trace


ENDS = ("terminated", "truncated")
FLAGS = ("mask", *ENDS)
PARAMETERS = {"gamma": (-1, 1), "lambda_": (0, 1)}  # and the range of each
ONE_IS_ENOUGH = (*ENDS, "bootstrap_value", "final_values")
BY_ROW = ("terminated", "truncated", "final_values", "mask", "log_rhos")
TWO_LAST_VALUES = "Its last row would be V(s_T), and so is `bootstrap_value`: pass one of the two."
NO_LAST_VALUE = (
    "The T + 1 rows are V(s_0) ... V(s_T). If V(s_T) is missing, the value of the state after the last transition, "
    "append it or pass `bootstrap_value`; if the rows are V(s_1) ... V(s_T), put V(s_0) first."
)


def check_before_jit(
    rollout: Rollout, time_axis: int, *, time_axis_name: str | None = None, implementation: str | None = None
) -> int:
    """Raises for what is wrong before jit, and returns `time_axis` counted from the front: one program for 1 and -1."""
    for name, x in rollout._asdict().items():
        if x is not None or name not in Rollout._field_defaults:
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
    float32 or wider. `values` is `[T, *B]`, beside `bootstrap_value` `[*B]`. One number or flag that stands for all, as
    `terminated=False` or `bootstrap_value=0.0`, is repeated. gamma and lambda_ have the axes of `rewards`, of length 1
    where they do not vary.

    Returns:
      The rollout, and a function that brings a result `[T, *B]` to the caller's layout: its axis of time, its dtype.

    Raises:
      ValueError: a shape is wrong, or there is no transition at all.
    """
    rollout = jax.tree.map(jnp.asarray, rollout, is_leaf=lambda x: isinstance(x, float))
    _assert_shapes(rollout, axis)
    shapes = _shapes(rollout.rewards.shape, axis)
    # Neither flags nor gamma and lambda_ decide the dtype of the results. A long sum in bfloat16 would lose its digits.
    dtype = promoted(*jax.tree.leaves(rollout._replace(**dict.fromkeys((*FLAGS, *PARAMETERS)))))
    wide = promoted(dtype, jnp.float32)

    def converted(name: str, x: Array) -> Array:
        x = x.astype(bool if name in FLAGS else wide)
        if name in ONE_IS_ENOUGH:
            x = jnp.broadcast_to(x, shapes[name])
        if name == "bootstrap_value":  # it has no axis of time
            return x
        return jnp.moveaxis(x.reshape((1,) * (rollout.rewards.ndim - x.ndim) + x.shape), axis, 0)

    def to_caller_layout(x: Array) -> Array:
        return jnp.moveaxis(x, 0, axis).astype(dtype)

    rows = rollout._replace(**{name: converted(name, x) for name, x in rollout._asdict().items() if x is not None})
    last_value = rows.values[-1] if rows.bootstrap_value is None else rows.bootstrap_value
    rows = rows._replace(values=rows.values[: rows.rewards.shape[0]], bootstrap_value=last_value)
    return placed_alike(rows), to_caller_layout


def _shapes(rows: Shape, axis: int, *, one_value_more: bool = False) -> dict[str, Shape]:
    """Returns the shape of each array beside rewards of the shape `rows`, if time is that axis."""
    values = _longer(rows, axis) if one_value_more else rows
    return dict.fromkeys(BY_ROW, rows) | {"values": values, "bootstrap_value": rows[:axis] + rows[axis + 1 :]}


def _longer(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])


def _assert_shapes(rollout: Rollout, axis: int) -> None:
    rows, split = rollout.rewards.shape, rollout.bootstrap_value is not None
    others = {x.shape for name in BY_ROW if (x := getattr(rollout, name)) is not None and x.ndim > axis}
    if {_shapes(x, axis, one_value_more=not split)["values"] for x in others} == {rollout.values.shape}:
        [want] = others  # all arrays but `rewards` fit together
        check_shape("rewards", rollout.rewards, want, "the shape of the other arrays", _guesses(want, axis))
    if rows[axis] == 0:
        raise ValueError(f"`rewards` must hold at least one transition; got shape {rows}, so T = 0 on axis {axis}")

    shapes = [_shapes(rows, k, one_value_more=not split) for k in range(len(rows))]
    batch, last_value = shapes[axis]["bootstrap_value"], "It looks like V(s_T): pass it as `bootstrap_value=`."
    likely: dict[str, dict[Shape, str]] = {
        "values": {_longer(rows, axis): TWO_LAST_VALUES} if split else {rows: NO_LAST_VALUE},
        "bootstrap_value": {rows: "If these are V(s_{t+1}) of every row, pass the last row alone."},
        **{name: {batch: "It has no axis of time: there is one flag per transition."} for name in ENDS},
    }
    meanings = {"values": " beside `bootstrap_value`" if split else " with T + 1 rows of time"}
    meanings["bootstrap_value"] = " without time"
    for name, want in shapes[axis].items():
        x = getattr(rollout, name)
        if name in ENDS and x is not None and jnp.issubdtype(x.dtype, jnp.floating):
            # The fourth of gae(rewards, values, done, last_value), as in PureJaxRL.
            likely[name] = dict.fromkeys(((), batch, (1, *batch)), last_value)
        elif x is None or (x.ndim == 0 and name in ONE_IS_ENOUGH):
            continue
        guesses = {} if name == "bootstrap_value" else _guesses(want, axis)
        guesses |= {s[name]: f"If time is axis {k} of all arrays, pass time_axis={k}." for k, s in enumerate(shapes)}
        guesses |= likely.get(name, {})
        check_shape(name, x, want, "the shape of `rewards`" + meanings.get(name, ""), guesses)
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
