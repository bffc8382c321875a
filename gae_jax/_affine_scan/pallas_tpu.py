"""The same scan as one TPU kernel: every row is read once, and the carry stays on the chip.

The grid is blocks of lanes (the batch, flattened) by blocks of time; the blocks of time run one after the other, the
carry waiting in scratch memory. In a block, a loop runs the step row by row. The last blocks may hang over the edge:
the loop ends where the rows end, and of lanes beyond the edge nothing is kept.

The step has been traced for `[*B]` and must run on a row of lanes: it can, if all that it does is elementwise.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

MOST_LANES = 2048  # in a block: with fewer, the loop itself costs more than its work; with more, registers run out
VMEM = 8 * 2**20  # bytes for the blocks in flight: half of what the smaller chips have
TILE = 32  # rows in a tile of the narrowest type, int8
CALLS = {"jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call"}
RESHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}
ELEMENTWISE = {
    *("abs", "neg", "sign", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "logistic", "tanh", "square"),
    *("add", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "add_any", "copy", "convert_element_type"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "select_n", "clamp", "is_finite"),
}


def pallas_tpu(step: Callable[..., Any], init: Array, xs: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step row by row in one kernel.

    Raises:
      NotImplementedError: something in the step is not elementwise, or neither bool nor 32 bits wide; or the arrays
        are split over devices by the compiler, which cannot split a kernel.
    """
    mesh = jax.typeof(init).sharding.mesh
    if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
        raise NotImplementedError(
            "the compiler cannot split a kernel over the devices of a mesh: call it inside jax.shard_map, or make the "
            f"axes of the mesh Explicit; got {dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}"
        )
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(init, jax.tree.map(lambda x: jax.typeof(x[0]), xs))
    if any(y.shape != init.shape or y.dtype.itemsize != 4 for y in closed.out_avals):
        raise NotImplementedError(f"the kernel writes 32 bits in the shape of the carry; got {closed.out_avals}")

    kernel = functools.partial(_kernel, closed.jaxpr, [y.dtype for y in closed.out_avals[1:]], reverse=reverse)
    operands: Any = init, [jnp.asarray(x) for x in closed.consts], jax.tree.leaves(xs)
    if mesh.explicit_axes:
        kernel, operands = _split(kernel, *operands)
    last, ys = kernel(*operands)
    return last, jax.tree.unflatten(jax.tree.structure(shapes[1]), ys)


def _split(kernel: Callable[..., Any], init: Array, parameters: list[Array], rows: list[Array]) -> tuple[Any, Any]:
    """The kernel on every device, for its part of the batch: that is split as the carry is; and the operands, split."""
    mesh, batch = jax.typeof(init).sharding.mesh, jax.typeof(init).sharding.spec
    all_rows = PartitionSpec(None, *batch)
    parameter_specs = [batch if x.shape == init.shape else PartitionSpec() for x in parameters]
    row_specs = [all_rows if x.shape[1:] == init.shape else PartitionSpec() for x in rows]
    specs = batch, parameter_specs, row_specs
    kernel = jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=(batch, all_rows), check_vma=False)
    shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
    return kernel, jax.reshard((init, parameters, rows), shardings)


def _kernel(
    step: Jaxpr, dtypes: list[Any], init: Array, parameters: list[Array], rows: list[Array], *, reverse: bool
) -> tuple[Array, list[Array]]:
    """The last carry `[*B]`, and the rows of the results, of these dtypes: `[T, *B]`."""
    length, lanes = len(rows[0]), init.size
    parameters, rows = [_lanes(x, init.shape) for x in parameters], [_lanes(x, init.shape, length) for x in rows]
    inputs = parameters, _lanes(init, init.shape), rows
    struct = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(init).manual_axis_type)
    outputs = struct((1, lanes), init.dtype), [struct((length, lanes), dtype) for dtype in dtypes]

    # Two blocks of every array are in flight, and flags are widened to 32 bits besides.
    row_bytes = sum(8 if x.dtype.itemsize == 4 else 2 + 4 for x in jax.tree.leaves((inputs, outputs)))
    lanes_in_block = min(lanes, MOST_LANES, VMEM // (row_bytes * TILE * 128) * 128)
    rows_in_block = min(length, VMEM // (row_bytes * pl.cdiv(lanes_in_block, 128) * 128) // TILE * TILE)
    grid = pl.cdiv(lanes, lanes_in_block), pl.cdiv(length, rows_in_block)

    def block_of_time(j: Any) -> Any:
        return grid[1] - 1 - j if reverse else j

    def spec(x: Any) -> pl.BlockSpec:
        per_row, per_lane = x.shape[0] > 1, x.shape[1] > 1
        block = rows_in_block if per_row else 1, lanes_in_block if per_lane else 1
        return pl.BlockSpec(block, lambda i, j: (block_of_time(j) if per_row else 0, i if per_lane else 0))

    def kernel(parameters: Any, init: Any, rows: Any, last: Any, ys: Any, carry: Any, widened: Any) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            carry[...] = init[...]

        for narrow, wide in zip(rows, widened, strict=True):
            if wide is not None:  # a single row of bytes is not to be had
                wide[...] = narrow[...].astype(jnp.int32)
        wide_rows = [narrow if wide is None else wide for narrow, wide in zip(rows, widened, strict=True)]
        rows_here = jnp.minimum(rows_in_block, length - block_of_time(pl.program_id(1)) * rows_in_block)

        def run_row(i: Array, h: Array) -> Array:
            t = pl.ds(rows_here - 1 - i if reverse else i, 1)
            arguments = [*(x[...] for x in parameters), h, *(x[t, :] for x in wide_rows)]
            h, *y = (jnp.broadcast_to(x, carry.shape) for x in _elementwise(step, arguments))
            for ref, x in zip(ys, y, strict=True):
                ref[t, :] = x
            return h

        carry[...] = lax.fori_loop(0, rows_here, run_row, carry[...])
        last[...] = carry[...]

    def widened(x: Array) -> Any:
        shape = min(rows_in_block, x.shape[0]), min(lanes_in_block, x.shape[1])
        return pltpu.VMEM(shape, jnp.int32) if x.dtype == jnp.int8 else None

    last, ys = pl.pallas_call(
        kernel,
        name="affine_scan",
        grid=grid,
        in_specs=jax.tree.map(spec, inputs),
        out_specs=jax.tree.map(spec, outputs),
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM((1, lanes_in_block), init.dtype), [widened(x) for x in rows]],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(*inputs)
    return last.reshape(init.shape), [y.reshape(length, *init.shape) for y in ys]


def _lanes(x: Array, batch: tuple[int, ...], length: int = 1) -> Array:
    """From `[*B]`, or `[length, *B]`, to `[length, N]`; to `[length, 1]` if the batch shares it. Flags become bytes."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.int8)
    elif x.dtype.itemsize != 4:
        raise NotImplementedError(f"the kernel reads flags and 32 bits; got {x.dtype}")
    if x.size != length and x.shape[x.ndim - len(batch) :] != batch:
        raise NotImplementedError(f"the kernel reads rows in the shape of the carry, {batch}; got {x.shape}")
    return x.reshape(length, -1)


def _elementwise(jaxpr: Jaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Runs a program traced for `[*B]` on rows of lanes, `[1, N]`, or `[1, 1]` for what the batch shares."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], arguments, strict=True))

    def read(x: Any) -> Any:
        dtype = x.aval.dtype
        value = jnp.full((1, 1), x.val, dtype) if isinstance(x, Literal) else values[x]
        return value != 0 if dtype == jnp.bool_ and value.dtype != jnp.bool_ else value

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [read(x) for x in equation.invars]
        [output, *others] = equation.outvars
        if name in CALLS:
            [inner] = jaxprs_in_params(equation.params)
            results = _elementwise(inner, inputs)
        elif name in RESHAPES and (inputs[0].size == 1 or equation.invars[0].aval == output.aval):
            results = inputs[:1]
        elif name == "pvary":  # says of a value that it varies over a mesh, and does nothing
            results = inputs
        elif name == "select_n" and inputs[1].dtype == jnp.bool_:  # which the compiler does not take
            which, first, second = jnp.broadcast_arrays(*inputs)
            results = [(~which & first) | (which & second)]
        elif name in ELEMENTWISE and not others:
            results = [equation.primitive.bind(*jnp.broadcast_arrays(*inputs), **equation.params)]
        else:
            raise NotImplementedError(f"the kernel runs elementwise operations only; got `{name}`")
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]
