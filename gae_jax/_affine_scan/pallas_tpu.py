"""The affine scan as one TPU kernel: every row is read once, and the carry stays on the chip.

The batch, flattened, lies in lanes. The grid is blocks of lanes by blocks of time; the blocks of time run one after the
other, with the carry in scratch memory. Within a block, a loop calls `step` row by row. The last blocks may hang over
the edge: the loop ends where the rows end, and lanes beyond the edge are not kept.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from gae_jax._affine_scan.affine_map import Scan, Step
from gae_jax._placement import KERNELS_ON_EXPLICIT_AXES, VARYING, reshard

MOST_LANES = 2048  # in a block: with fewer, the loop costs more than its work; with more, registers run out
FEWEST_LANES = 16  # in a batch: a vector has 128 lanes, and a narrower batch leaves most of them empty
VMEM_BYTES = 8 * 2**20  # bytes for the blocks in flight: half the memory of the smaller chips
ELEMENT_BYTES = 2 * 4  # of an element: it has 32 bits, and two blocks of every array are in flight
SUBLANES = 8  # rows in a tile


def obstacle_to_kernel(init: Array, xs: Any, shared: Any) -> str | None:
    """Says what keeps the kernel from running on these arrays, if anything does."""
    mesh = jax.typeof(init).sharding.mesh
    if auto := [axis for axis in mesh.auto_axes if mesh.shape[axis] > 1]:
        return (
            "the compiler cannot split a kernel over the devices of a mesh: call it inside jax.shard_map, or make the "
            f"axes of the mesh Explicit; got Auto axes {auto}"
        )
    if mesh.explicit_axes and mesh.manual_axes:
        return f"inside jax.shard_map, all axes of the mesh must be Manual; got Explicit axes {mesh.explicit_axes}"
    if mesh.explicit_axes and not KERNELS_ON_EXPLICIT_AXES:
        return "on a mesh with Explicit axes, the kernel needs jax 0.9 or newer"
    for x in jax.tree.leaves((init, xs, shared)):
        if not all(isinstance(n, int) for n in x.shape):
            return f"the kernel needs known shapes; got {x.shape}"
        if x.dtype != jnp.bool_ and x.dtype.itemsize != 4:
            return f"the kernel reads flags and 32 bits; got {x.dtype}"
    try:
        importlib.import_module("jax.experimental.pallas.tpu")
    except ImportError as error:
        return f"the kernel needs Pallas for TPUs: {error}"
    return None


def pallas_tpu(step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step row by row in one kernel."""
    shared = jax.tree.map(lambda x: jnp.broadcast_to(x, init.shape), shared)
    kernel = functools.partial(_on_lanes, step, reverse=reverse)
    if jax.typeof(init).sharding.mesh.explicit_axes:
        kernel = _on_every_device(kernel, init, xs, shared)
    return kernel(init, xs, shared)


def _on_every_device(kernel: Scan, init: Array, xs: Any, shared: Any) -> Scan:
    """Returns the kernel for arrays on a mesh with Explicit axes: each device runs it on its part of the batch."""
    mesh, batch = jax.typeof(init).sharding.mesh, jax.typeof(init).sharding.spec
    rows = PartitionSpec(None, *batch)
    specs = batch, jax.tree.map(lambda _: rows, xs), jax.tree.map(lambda _: batch, shared)
    split = jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=(batch, rows), check_vma=False)
    shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
    return lambda *operands: split(*jax.tree.map(reshard, operands, shardings))


def _on_lanes(step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the kernel on arrays `[T, lanes]`, with flags as integers, and gives the results the shape of the batch."""
    is_flag = jax.tree.map(lambda x: x.dtype == jnp.bool_, (xs, shared))

    def step_on_lanes(h: Array, row: Any, shared: Any) -> tuple[Array, Any]:
        return step(h, *jax.tree.map(lambda x, flag: x != 0 if flag else x, (row, shared), is_flag))

    def in_lanes(x: Array, length: int = 1) -> Array:
        return (x.astype(jnp.int32) if x.dtype == jnp.bool_ else x).reshape(length, -1)

    length = jax.tree.leaves(xs)[0].shape[0]
    rows, shared = jax.tree.map(lambda x: in_lanes(x, length), xs), jax.tree.map(in_lanes, shared)
    last, ys = _call_kernel(step_on_lanes, in_lanes(init), rows, is_flag[0], shared, reverse=reverse)
    return last.reshape(init.shape), jax.tree.map(lambda y: y.reshape(length, *init.shape), ys)


def _call_kernel(step: Step, init: Array, rows: Any, is_flag: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Returns the last carry `[1, lanes]`, and the outputs `[T, lanes]`."""
    from jax.experimental import pallas as pl  # takes most of the time of `import gae_jax`, where it is imported there
    from jax.experimental.pallas import tpu as pltpu

    length, lanes = jax.tree.leaves(rows)[0].shape
    _, y = jax.eval_shape(step, init, jax.tree.map(lambda x: x[:1], rows), shared)
    varying = {VARYING: getattr(jax.typeof(init), VARYING)}  # over the mesh axes of a shard_map, as the carry does
    last = jax.ShapeDtypeStruct((1, lanes), init.dtype, **varying)
    outputs = last, jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, lanes), x.dtype, **varying), y)
    inputs = init, rows, shared
    flag_count = sum(jax.tree.leaves(is_flag))
    row_bytes = ELEMENT_BYTES * (len(jax.tree.leaves((inputs, outputs))) + flag_count)
    lanes_in_block = min(lanes, MOST_LANES, VMEM_BYTES // (row_bytes * SUBLANES * 128) * 128)
    rows_in_block = min(length, VMEM_BYTES // (row_bytes * pl.cdiv(lanes_in_block, 128) * 128) // SUBLANES * SUBLANES)
    grid = pl.cdiv(lanes, lanes_in_block), pl.cdiv(length, rows_in_block)

    def block_of_time(j: Any) -> Any:
        return grid[1] - 1 - j if reverse else j

    def spec(x: Any) -> pl.BlockSpec:
        if x.shape[0] == 1:
            return pl.BlockSpec((1, lanes_in_block), lambda i, j: (0, i))
        return pl.BlockSpec((rows_in_block, lanes_in_block), lambda i, j: (block_of_time(j), i))

    def kernel(init: Any, rows: Any, shared: Any, last: Any, ys: Any, carry: Any, flag_copies: Any) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            carry[...] = init[...]

        def copied(rows: Any, copy: Any) -> Any:
            if copy is None:
                return rows
            copy[...] = rows[...]
            return copy

        # allow_input_fusion: the compiler converts flags to int32 as it reads a block, so memory holds no int32 array.
        # Such a block can only be read whole, not row by row: copy it into scratch memory, and read the copy by rows.
        rows = jax.tree.map(copied, rows, flag_copies, is_leaf=lambda x: x is None)
        shared_values = jax.tree.map(lambda ref: ref[...], shared)
        local_rows = jnp.minimum(rows_in_block, length - block_of_time(pl.program_id(1)) * rows_in_block)

        def run_row(i: Array, h: Array) -> Array:
            t = pl.ds(local_rows - 1 - i if reverse else i, 1)
            h, y = step(h, jax.tree.map(lambda ref: ref[t, :], rows), shared_values)
            for ref, x in zip(jax.tree.leaves(ys), jax.tree.leaves(y), strict=True):
                ref[t, :] = x
            return h

        carry[...] = lax.fori_loop(0, local_rows, run_row, carry[...])
        last[...] = carry[...]

    flag_block = pltpu.VMEM((rows_in_block, lanes_in_block), jnp.int32)
    flag_blocks = jax.tree.map(lambda flag: flag_block if flag else None, is_flag)
    fused = jax.tree.leaves((True, is_flag, jax.tree.map(lambda _: True, shared)))
    return pl.pallas_call(
        kernel,
        name="affine_scan",
        grid=grid,
        in_specs=jax.tree.map(spec, inputs),
        out_specs=jax.tree.map(spec, outputs),
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM((1, lanes_in_block), init.dtype), flag_blocks],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), allow_input_fusion=fused),
    )(*inputs)
