"""affine_scan: `jax.lax.scan` for steps that are affine in their carry, in parallel where that is faster."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import get_abstract_mesh
from jax.typing import ArrayLike

from gae_jax._affine_scan.affinity import check_affine
from gae_jax._affine_scan.primitive import IMPLEMENTATIONS, bind, row_types
from gae_jax._affine_scan.sharded import sharded


def affine_scan(
    step: Callable[[Array, Any], tuple[Array, Any]],
    init: ArrayLike,
    xs: Any,
    *,
    reverse: bool = False,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> tuple[Array, Any]:
    """Scans a step that is elementwise and affine in its carry over the rows of `xs`.

        carry_t, y_t = step(carry_{t-1}, x_t),    carry_t = a(x_t) carry_{t-1} + b(x_t)

    The result is that of `jax.lax.scan(step, init, xs, reverse=reverse)`, up to rounding. But such steps compose: two
    of them are again one, with a = a_2 a_1 and b = a_2 b_1 + b_2. So time need not be gone through row by row. `T` is
    the number of rows, at least 1; `*B` are any batch axes.

    Args:
      step: from the carry `[*B]` and a row of `xs` to the new carry `[*B]` and a row of the result. Of the carry it may
        make anything in the result, but the new carry must be affine in it, and each of its elements may depend on the
        same element only. It may close over arrays, tracers too.
      init: `[*B]`, floating-point: the carry before the first row; with `reverse`, after the last.
      xs: a pytree of arrays `[T, ...]`.
      reverse: go from the last row to the first.
      axis_name: inside `jax.shard_map`, the axis of the mesh that time is split over: device i holds the i-th piece of
        xs, and gets that piece of ys. `init` is read on the device where the scan begins. Exchanged is one all-gather
        of two arrays `[*B]` a device, whatever the length.
      implementation: one of
        - "scan": `jax.lax.scan` itself, row by row: what None means on CPUs.
        - "blocked": no loop; blocks of rows are composed, the blocks' maps are scanned, and then all rows are done at
          once. A few kernels whatever the length, for any platform: what None means on GPUs.
        - "pallas": one kernel, for TPUs, with the carry kept on the chip; the step must be elementwise throughout, on
          float32, int32 and bool, and xs and results in the shape of the carry, or scalars a row. What None means on
          TPUs, where it can; else "blocked". It can be split over devices inside `jax.shard_map`, or by the types of a
          mesh with Explicit axes, but not by the compiler, as under `jax.jit` over Auto axes.
        None chooses when the program is compiled, for the platform that it is compiled for. It has been measured on
        CPUs. For GPUs and TPUs it is compiled, and what is compiled is tested, but not yet measured.

    Returns:
      (carry, ys): the last carry `[*B]`, of all time on every device, and the rows `[T, ...]` of the step's results.

    Call it inside `jax.jit`: outside, every call compiles. It is differentiable in `init`, `xs` and what the step
    closes over, forward and in reverse, to any order; a gradient remembers at most one carry a row. Where a is 0, a
    carry that is not finite is forgotten. Products of a's over parts of the scan must not overflow.

    That the carry is affine is seen from the derivative of the step, which must not depend on the carry. It cannot be
    seen of a function whose derivative hides it: one that is constant by pieces, such as `jnp.floor` or a comparison
    turned into a number, or is said to have another derivative, as by `jax.lax.stop_gradient`. Nor can it be seen that
    a step mixes elements, as `carry[::-1]` does. These give wrong results. A step with effects, `jax.debug.print` say,
    is not looked at: it runs row by row.

    Raises:
      ValueError: the step is not affine in the carry, T is 0, or there is no such implementation or axis.
      TypeError: the carry is not one floating-point array, or the step does not return one like it.
      NotImplementedError: "pallas" cannot run this step, not on the platform that the program is compiled for, or not
        on arrays that the compiler splits over devices; or a step with effects is not to run row by row, on one device.

    Source: Blelloch, 1990, "Prefix Sums and Their Applications", section 1.4.

    >>> import jax.numpy as jnp
    >>> def discounted_sum(carry, row):
    ...     reward, discount = row
    ...     carry = reward + discount * carry
    ...     return carry, carry
    >>> rewards, discounts = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.5, 0.0])
    >>> _, returns = affine_scan(discounted_sum, 0.0, (rewards, discounts), reverse=True)
    >>> print(returns)
    [2.75 3.5  3.  ]
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        names = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` must be None or one of {names}; got {implementation!r}")
    xs = jax.tree.map(jnp.asarray, xs)
    if any(len(x) == 0 for x in jax.tree.leaves(xs) if x.ndim > 0):
        raise ValueError("`xs` must hold at least one row; got T = 0")
    if get_abstract_mesh().manual_axes:
        init = _as_varying(init, jax.make_jaxpr(step)(init, row_types(xs)).out_avals[0])
    # What lax.scan refuses is refused in its words; and it tells how an `init` without a type of its own comes out.
    carry, _ = jax.eval_shape(functools.partial(lax.scan, step), init, xs)
    if not (isinstance(carry, jax.ShapeDtypeStruct) and jnp.issubdtype(carry.dtype, jnp.floating)):
        raise TypeError(f"`init`, the carry, must be one floating-point array; got {carry}")
    init = lax.convert_element_type(init, carry.dtype)
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(init, row_types(xs))
    if not closed.effects:
        check_affine(closed)
    elif implementation in (None, "scan") and axis_name is None:
        implementation = "scan"
    else:
        raise NotImplementedError(
            f"`step` has effects, {closed.effects}; only implementation='scan' on one device has them in order"
        )
    if implementation == "scan" and axis_name is None:
        return lax.scan(step, init, xs, reverse=reverse)

    def open_step(parameters: list[Any], carry: Array, row: Any) -> tuple[Array, Any]:
        outputs = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, parameters))(carry, *jax.tree.leaves(row))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    scan = bind if axis_name is None else functools.partial(sharded, axis_name=axis_name)
    return scan(open_step, list(closed.consts), init, xs, reverse=reverse, implementation=implementation)


def _as_varying(init: ArrayLike, carry: Any) -> ArrayLike:
    """Inside `jax.shard_map`: `init`, said to vary over the axes of the mesh that the carry will vary over."""
    axes = carry.manual_axis_type.varying - jax.typeof(init).manual_axis_type.varying
    return lax.pcast(init, tuple(axes), to="varying")
