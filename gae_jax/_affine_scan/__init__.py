"""`jax.lax.scan` for a step that is elementwise and affine in its carry, in parallel where that is faster.

    h_t, y_t = step(h_{t-1}, x_t, shared),    h_t = a_t h_{t-1} + b_t

Affine maps compose to affine maps, so rows can be combined in parallel (Blelloch, 1990, "Prefix Sums and Their
Applications", section 1.4). Every implementation calls the same function `step`:

- "scan": `jax.lax.scan` over the rows. The specification, and the choice on CPUs.
- "blocked": no loop, plain JAX. The choice on GPUs, and on TPUs if the batch is narrow or the kernel cannot run.
- "pallas": one kernel with a loop over the rows. The choice on TPUs otherwise.

The derivative of every implementation is the derivative of the loop.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import get_abstract_mesh

from gae_jax._affine_scan.affine_map import Scan, Step
from gae_jax._affine_scan.blocked import blocked
from gae_jax._affine_scan.pallas_tpu import is_narrow, obstacle_to_kernel, pallas_tpu
from gae_jax._affine_scan.sharded import sharded

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
      ValueError: there is no such implementation.
      NotImplementedError: the implementation cannot run on these arrays, or on this platform.
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

    loop = functools.partial(scan_rows, step, reverse=reverse)
    if implementation == "scan":
        return loop(init, xs, shared)
    parallel = functools.partial(kernel_or_blocks, step, reverse=reverse, implementation=implementation)
    parallel = with_derivative_of(loop, with_mapped_axes_in_batch(parallel))
    if implementation is None:
        return lax.platform_dependent(init, xs, shared, cpu=loop, default=parallel)
    return parallel(init, xs, shared)


def scan_rows(step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step row by row: one loop, whose body XLA fuses."""
    return lax.scan(lambda carry, row: step(carry, row, shared), init, xs, reverse=reverse)


def with_derivative_of(loop: Scan, scan: Scan) -> Scan:
    """Returns `scan` with the derivative of `loop`, which computes the same results."""
    scan = jax.custom_jvp(scan)

    def jvp(primals: Any, tangents: Any) -> Any:
        leaves, tree = jax.tree.flatten(primals)
        d_leaves = tree.flatten_up_to(tangents)
        # An input with a tangent becomes a residual of the loop: inputs without one stay constants.
        moving = [i for i, dx in enumerate(d_leaves) if not isinstance(dx, SymbolicZero)]

        def loop_along(*moved: Array) -> tuple[Array, Any]:
            inputs = dict(enumerate(leaves)) | dict(zip(moving, moved, strict=True))
            return loop(*jax.tree.unflatten(tree, inputs.values()))

        _, d_results = jax.jvp(loop_along, [leaves[i] for i in moving], [d_leaves[i] for i in moving])
        return scan(*primals), d_results

    scan.defjvp(jvp, symbolic_zeros=True)
    return scan


def with_mapped_axes_in_batch(scan: Scan) -> Scan:
    """Returns `scan`, called once for an axis of `jax.vmap`, with the axis in `*B`: the scan sees the whole batch."""
    scan_of_batch = custom_vmap(scan)

    @scan_of_batch.def_vmap
    def _(axis_size: int, is_batched: Any, init: Array, xs: Any, shared: Any) -> Any:
        def mapped(x: Array, batched: bool) -> Array:
            return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

        init = mapped(init, is_batched[0])
        xs = jax.tree.map(lambda x, batched: jnp.moveaxis(mapped(x, batched), 0, 1), xs, is_batched[1])
        shared = jax.tree.map(lambda x, batched: x if batched else x[None], shared, is_batched[2])
        last, ys = with_mapped_axes_in_batch(scan)(init, xs, shared)
        return (last, jax.tree.map(lambda y: jnp.moveaxis(y, 1, 0), ys)), (True, jax.tree.map(lambda _: True, ys))

    return scan_of_batch


def kernel_or_blocks(
    step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool, implementation: str | None
) -> tuple[Array, Any]:
    """Runs the parallel implementation that was named, or else the best for the platform and the batch.

    The best was inferred from compiled programs. GPU: no loop, since a loop launches some five kernels per row. TPU:
    the kernel where it can run, unless the batch is narrow.
    """
    blocks, kernel = (functools.partial(scan, step, reverse=reverse) for scan in (blocked, pallas_tpu))
    if not isinstance(jax.tree.leaves(xs)[0].shape[0], int):
        raise NotImplementedError("a symbolic number of steps needs implementation='scan'")
    obstacle = obstacle_to_kernel(init, xs, shared)
    if implementation == "blocked" or (implementation is None and (obstacle or is_narrow(init))):
        return blocks(init, xs, shared)
    if obstacle:
        raise NotImplementedError(f"implementation='pallas' cannot run here: {obstacle}")
    if implementation is None:
        return lax.platform_dependent(init, xs, shared, tpu=kernel, default=blocks)
    # For any other platform, JAX raises a NotImplementedError that quotes the names of these branches.
    only_tpus = {"tpu": kernel, "implementation='pallas' is for TPUs": kernel}
    return lax.platform_dependent(init, xs, shared, **only_tpus)


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that lie on a mesh as `x` does. `jnp.zeros_like` forgets the axes of a shard_map around it."""
    return jnp.where(False, lax.stop_gradient(x), jnp.zeros((), x.dtype))
