"""`jax.lax.scan` for a step that is elementwise and affine in its carry, in parallel where that is faster.

    h_t, y_t = step(h_{t-1}, x_t, shared),    h_t = a_t h_{t-1} + b_t

Affine maps compose to affine maps, so rows can be combined in parallel (Blelloch, 1990, "Prefix Sums and Their
Applications", section 1.4). Every implementation calls the same function `step`, on the whole batch:

- "scan": `jax.lax.scan` over the rows of one worker, vmapped over workers. The specification, and the choice on CPUs.
- "blocked": no loop, plain JAX. The choice on GPUs, and on TPUs if the batch is narrow or the kernel cannot run.
- "pallas": one kernel with a loop over the rows. The choice on TPUs otherwise.

The choices were inferred from compiled programs. On a GPU, a loop launches some five kernels per row.

The derivative of every implementation is the derivative of the loop.
"""

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import get_abstract_mesh

from gae_jax._affine_scan.affine_map import Scan, Step
from gae_jax._affine_scan.blocked import beside_all_rows, blocked
from gae_jax._affine_scan.pallas_tpu import FEWEST_LANES, obstacle_to_kernel, pallas_tpu
from gae_jax._affine_scan.sharded import sharded
from gae_jax._arguments import Implementation
from gae_jax._placement import zeros_placed_like

IMPLEMENTATIONS = get_args(Implementation)


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
      shared: a pytree of arrays `[*B]`, or of numbers, which every row reads.
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
    if not isinstance(jax.tree.leaves(xs)[0].shape[0], int):
        raise NotImplementedError("a symbolic number of steps needs implementation='scan'")
    obstacle = None if implementation == "blocked" else obstacle_to_kernel(init, xs, shared)  # which imports Pallas
    if implementation == "pallas" and obstacle:
        raise NotImplementedError(f"implementation='pallas' cannot run here: {obstacle}")
    blocks, kernel = (
        with_derivative_of(loop, functools.partial(scan, step, reverse=reverse)) for scan in (blocked, pallas_tpu)
    )
    kernel = not_split(kernel, step)
    branches = {
        "blocked": {"default": blocks},
        # For any other platform, JAX raises a NotImplementedError that quotes the names of these branches.
        "pallas": {"tpu": kernel, "implementation='pallas' is for TPUs": kernel},
        None: {"cpu": loop, "default": blocks} | ({} if obstacle or init.size < FEWEST_LANES else {"tpu": kernel}),
    }
    return lax.platform_dependent(init, xs, shared, **branches[implementation])


def scan_rows(step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step row by row: one worker's `jax.lax.scan`, vmapped over workers, once for each batch axis."""

    def scan_one_worker(init: Array, xs: Any, shared: Any) -> tuple[Array, Any]:
        return lax.scan(lambda carry, row: step(carry, row, shared), init, xs, reverse=reverse)

    scan = scan_one_worker
    for _ in init.shape:
        of_each_worker = jax.tree.map(lambda x: 0 if x.ndim else None, shared)
        scan = jax.vmap(scan, in_axes=(0, 1, of_each_worker), out_axes=(0, 1))
    return scan(init, xs, shared)


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


def not_split(scan: Scan, step: Step) -> Scan:
    """Returns `scan` in a `cond` that is always true, and that XLA removes.

    To differentiate a loop around `scan`, JAX splits the body of the loop into what varies between iterations and what
    does not. Before jax 0.12, `custom_jvp` is lost where the body varies, and a second derivative meets the bare
    kernel, which has no derivative. JAX does not look into a `cond` whose predicate varies.
    """
    if jax.__version_info__ >= (0, 12):
        return scan

    def zeros(init: Array, xs: Any, shared: Any) -> tuple[Array, Any]:
        before_each_row = jnp.broadcast_to(init, jax.tree.leaves(xs)[0].shape)
        last, ys = step(before_each_row, xs, beside_all_rows(shared))
        return jax.tree.map(zeros_placed_like, (last[0], ys))

    def conditional(*operands: Any) -> tuple[Array, Any]:
        varies = [jnp.where(False, jnp.any(x), False) for x in jax.tree.leaves(operands)]
        return lax.cond(~functools.reduce(jnp.logical_or, varies), scan, zeros, *operands)

    return conditional
