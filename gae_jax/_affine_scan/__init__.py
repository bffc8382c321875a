"""`jax.lax.scan` for a step that is elementwise and affine in its carry, in parallel where that is faster.

    h_t, y_t = step(h_{t-1}, x_t, shared),    h_t = a_t h_{t-1} + b_t

Affine maps compose to affine maps, so rows can be combined in parallel (Blelloch, 1990, "Prefix Sums and Their
Applications", section 1.4). Every implementation calls the same function `step`:

- "scan": `jax.lax.scan` over the rows. The specification, and the choice on CPUs.
- "blocked": no loop, plain JAX. The choice on GPUs, and on TPUs if the batch is narrow or the kernel cannot run.
- "pallas": one kernel with a loop over the rows. The choice on TPUs otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import get_abstract_mesh

from gae_jax._affine_scan.affine_map import maps_of_rows
from gae_jax._affine_scan.blocked import blocked
from gae_jax._affine_scan.linear import linear_scan
from gae_jax._affine_scan.pallas_tpu import is_narrow, pallas_tpu, why_not
from gae_jax._affine_scan.placement import zeros_placed_like as zeros_placed_like
from gae_jax._affine_scan.sharded import shard_index_and_count as shard_index_and_count
from gae_jax._affine_scan.sharded import sharded

Step = Callable[[Array, Any, Any], tuple[Array, Any]]
IMPLEMENTATIONS = ("scan", "blocked", "pallas")


def affine_scan(
    step: Step,
    init: Array,
    xs: Any,
    shared: Any,
    *,
    reverse: bool = False,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> tuple[Array, Any]:
    """Scans `step` over the rows of `xs`, as `jax.lax.scan` does.

    Args:
      step: `(carry, row, shared) -> (carry, y)`, elementwise, and affine in the carry. The step closes over nothing
        that JAX traces. `y` is a pytree of arrays in the shape of the carry, and need not be affine.
      init: `[*B]`, the carry before the first row; with `reverse`, after the last.
      xs: a pytree of arrays `[T, *B]`, T at least 1.
      shared: a pytree of arrays `[*B]`, which every row reads. An axis of length 1 broadcasts.
      reverse: go from the last row to the first.
      axis_name: inside `jax.shard_map`, the mesh axis that time is split over: device i holds the i-th shard of `xs`.
        `init` is read on the device where the scan begins.
      implementation: "scan", "blocked" or "pallas"; None chooses by the platform that the program is compiled for.

    Returns:
      The last carry `[*B]`, the same on every device, and the outputs `[T, *B]`.

    Raises:
      ValueError: there is no such implementation or axis.
      NotImplementedError: the implementation cannot run on these arrays.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        names = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` must be None or one of {names}; got {implementation!r}")
    if axis_name is not None:
        scan = functools.partial(affine_scan, implementation=implementation)
        return sharded(scan, step, init, xs, shared, reverse=reverse, axis_name=axis_name)
    if get_abstract_mesh().manual_axes:  # inside shard_map the carry must vary over the axes that the rows vary over
        first_row = jax.tree.map(lambda x: x[0], xs)
        init = init + zeros_placed_like(step(init, first_row, shared)[0])
    if implementation == "scan":
        return scan_rows(step, init, xs, shared, reverse=reverse)
    return _differentiable(step, init, xs, shared, reverse, implementation)


def check_implementation(implementation: str | None, operands: Any) -> None:
    """Raises if "pallas" is named for concrete arrays without a TPU. The platform of tracers is not known yet."""
    is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(operands))
    if implementation == "pallas" and not is_traced and jax.default_backend() != "tpu":
        raise NotImplementedError(
            f"implementation='pallas' is for TPUs; this program is compiled for {jax.default_backend()}"
        )


def scan_rows(step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step row by row: one loop, whose body XLA fuses."""
    return lax.scan(lambda carry, row: step(carry, row, shared), init, xs, reverse=reverse)


def _differentiable(
    step: Step, init: Array, xs: Any, shared: Any, reverse: bool, implementation: str | None
) -> tuple[Array, Any]:
    """Scans, with a rule for the derivative, which is an affine scan too."""

    @jax.custom_jvp
    def scan(init: Array, xs: Any, shared: Any) -> tuple[Array, Any]:
        return _batchable(step, init, xs, shared, reverse, implementation)

    def jvp(primals: Any, tangents: Any) -> Any:
        init, xs, shared = primals
        remember = functools.partial(_with_entering_carry, step)
        last, (entering, ys) = _differentiable(remember, init, xs, shared, reverse, implementation)
        return (last, ys), _tangents(step, entering, primals, tangents, reverse, implementation)

    scan.defjvp(jvp, symbolic_zeros=True)
    return scan(init, xs, shared)


def _with_entering_carry(step: Step, carry: Array, row: Any, shared: Any) -> tuple[Array, Any]:
    new_carry, y = step(carry, row, shared)
    return new_carry, (carry, y)


def _tangents(
    step: Step, entering: Array, primals: Any, tangents: Any, reverse: bool, implementation: str | None
) -> tuple[Array, Any]:
    """Returns the tangents of the last carry and of the outputs; `entering` holds the carry that enters each row.

    h_t = step(h_{t-1}, x_t, s) = a_t h_{t-1} + b_t, where a_t and b_t depend on x_t and s. So the tangents are an
    affine scan, too:

        dh_t = a_t dh_{t-1} + c_t,    c_t = da_t h_{t-1} + db_t

    and c_t is the derivative of the step's carry along (dx_t, ds), with the carry h_{t-1} held.
    """
    (init, xs, shared), (d_init, d_xs, d_shared) = primals, tangents
    all_rows = jax.vmap(step, in_axes=(0, 0, None))

    # Save the rows for a gradient, and not a_t: flags are smaller than floats.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(entering: Array, xs: Any, shared: Any, d_init: Array, d_inputs: Any) -> tuple[Array, Any]:
        primals = entering, xs, shared
        a = maps_of_rows(step, init, xs, shared).a
        c, _ = _jvp(all_rows, primals, (None, *d_inputs))
        d_last, d_entering = linear_scan(_batchable, a, c, d_init, reverse=reverse, implementation=implementation)
        _, d_ys = _jvp(all_rows, primals, (d_entering, *d_inputs))
        return d_last, d_ys

    d_init = zeros_placed_like(init) if isinstance(d_init, SymbolicZero) else d_init
    d_inputs = jax.tree.map(lambda dx: None if isinstance(dx, SymbolicZero) else dx, (d_xs, d_shared))
    return linear(entering, xs, shared, d_init, d_inputs)


def _jvp(fn: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """Returns the tangent of `fn(*primals)`; an input whose tangent is None is a constant."""
    leaves, tree = jax.tree.flatten(primals)
    d_leaves = tree.flatten_up_to(tangents)
    moving = [i for i, dx in enumerate(d_leaves) if dx is not None]

    def along(*moved: Array) -> Any:
        inputs = dict(enumerate(leaves)) | dict(zip(moving, moved, strict=True))
        return fn(*jax.tree.unflatten(tree, inputs.values()))

    return jax.jvp(along, [leaves[i] for i in moving], [d_leaves[i] for i in moving])[1]


def _batchable(
    step: Step, init: Array, xs: Any, shared: Any, reverse: bool, implementation: str | None
) -> tuple[Array, Any]:
    """Scans, where `jax.vmap` adds an axis to `*B`: an implementation sees one batch `[*B]`."""

    @custom_vmap
    def scan(init: Array, xs: Any, shared: Any) -> tuple[Array, Any]:
        return _choose(step, init, xs, shared, reverse, implementation)

    @scan.def_vmap
    def _(axis_size: int, is_batched: Any, init: Array, xs: Any, shared: Any) -> Any:
        def mapped(x: Array, batched: bool) -> Array:
            return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

        init = mapped(init, is_batched[0])
        xs = jax.tree.map(lambda x, batched: jnp.moveaxis(mapped(x, batched), 0, 1), xs, is_batched[1])
        shared = jax.tree.map(lambda x, batched: x if batched else x[None], shared, is_batched[2])
        last, ys = _batchable(step, init, xs, shared, reverse, implementation)
        return (last, jax.tree.map(lambda y: jnp.moveaxis(y, 1, 0), ys)), (True, jax.tree.map(lambda _: True, ys))

    return scan(init, xs, shared)


def _choose(
    step: Step, init: Array, xs: Any, shared: Any, reverse: bool, implementation: str | None
) -> tuple[Array, Any]:
    """Runs the implementation that was named, or else the best for the platform.

    The best was measured on CPUs, and inferred from compiled programs for other chips. CPU: the loop, since the other
    forms go through memory more often. GPU: no loop, since a loop launches some five kernels per row. TPU: the kernel
    where it can run, unless the batch is narrow.
    """
    rows, blocks, kernel = (functools.partial(scan, step, reverse=reverse) for scan in (scan_rows, blocked, pallas_tpu))
    if not isinstance(jax.tree.leaves(xs)[0].shape[0], int):
        raise NotImplementedError("a symbolic number of steps needs implementation='scan'")
    obstacle = why_not(init, xs, shared)
    if implementation == "pallas":
        if obstacle:
            raise NotImplementedError(f"implementation='pallas' cannot run here: {obstacle}")
        return kernel(init, xs, shared)
    if implementation == "blocked":
        return blocks(init, xs, shared)
    on_tpu = blocks if obstacle or is_narrow(init) else kernel
    return lax.platform_dependent(init, xs, shared, cpu=rows, tpu=on_tpu, default=blocks)
