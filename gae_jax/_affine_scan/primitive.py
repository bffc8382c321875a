"""The affine scan as a primitive of JAX: what it is lowered to, and what the transformations make of it.

A transformed affine scan is an affine scan again. So there is one rule a transformation, and none knows of an
implementation:

- vmap: the batch axis becomes the first of the carry, and the second of the rows;
- jvp: the carry's tangent is the carry; a row holds what it did, its tangent and, where the derivative depends on it,
  the carry that had entered it;
- transposition: the transposed step, run the other way.

A gradient is as parallel as the scan itself, and remembers at most one carry a row.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from gae_jax._affine_scan.blocked import blocked
from gae_jax._affine_scan.pallas_tpu import pallas_tpu
from gae_jax._affine_scan.scan import scan

Step = Callable[[Any, Any, Any], tuple[Any, Any]]  # (parameters, carry, row) -> (new carry, ys)
IMPLEMENTATIONS = {"scan": scan, "blocked": blocked, "pallas": pallas_tpu}
PLATFORMS = ("cpu", "gpu", "tpu")

affine_scan_p = Primitive("affine_scan")
affine_scan_p.multiple_results = True


class How(NamedTuple):
    """The primitive's parameters; its operands are the step's, one after the other, with time first in the rows."""

    step: ClosedJaxpr
    n_parameters: int
    reverse: bool
    implementation: str | None

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], Any, list[Any]]:
        """Into parameters, carry, and row or rows."""
        n = self.n_parameters
        return list(operands[:n]), operands[n], list(operands[n + 1 :])

    def call(self, parameters: list[Any], carry: Any, row: list[Any]) -> tuple[Any, list[Any]]:
        """The step as a function of these."""
        carry, *ys = jaxpr_as_fun(self.step)(*parameters, carry, *row)
        return carry, ys


def bind(step: Step, parameters: Any, init: Any, xs: Any, *, reverse: bool, implementation: str | None) -> Any:
    """Scans the step over xs, with the same parameters for every row; returns (carry, ys)."""
    operands, n_parameters = jax.tree.leaves((parameters, init, xs)), len(jax.tree.leaves(parameters))
    jaxpr, used, tree = _trace(step, parameters, init, row_types(xs))
    how = How(jaxpr, sum(used[:n_parameters]), reverse, implementation)
    outputs = affine_scan_p.bind(*(x for x, is_used in zip(operands, used, strict=True) if is_used), **how._asdict())
    return jax.tree.unflatten(tree, outputs)


def _trace(step: Step, parameters: Any, carry: Any, row: Any) -> tuple[ClosedJaxpr, list[bool], Any]:
    """The step as a program without what nothing depends on, which operands it reads, and its results' structure."""
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(parameters, carry, row)
    before_rows = len(jax.tree.leaves((parameters, carry)))
    needed = [i == before_rows - 1 for i in range(len(closed.in_avals))]  # the carry
    jaxpr, used = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), needed)
    if not any(used[before_rows:]):  # one row at least says how many there are
        needed[-1] = True
        jaxpr, used = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), needed)
    return ClosedJaxpr(jaxpr, closed.consts), used, jax.tree.structure(shapes)


def row_types(xs: Any) -> Any:
    """The type of a row of each array."""
    leaves, tree = jax.tree.flatten(xs)
    first = jax.make_jaxpr(lambda xs: [lax.index_in_dim(x, 0, keepdims=False) for x in xs])(leaves)
    return jax.tree.unflatten(tree, first.out_avals)


def _lower(*operands: Any, platform: str, **params: Any) -> list[Array]:
    how = How(**params)
    parameters, init, xs = how.split(operands)
    step = functools.partial(how.call, parameters)
    if how.implementation is None:
        how = how._replace(implementation=_best(platform, step, init, xs))
    elif how.implementation == "pallas" and platform != "tpu":
        raise NotImplementedError(f"implementation='pallas' is for TPUs; this program is compiled for {platform}")
    last, ys = IMPLEMENTATIONS[str(how.implementation)](step, init, xs, reverse=how.reverse)
    return [last, *ys]


def _best(platform: str, step: Callable[..., Any], init: Array, xs: Any) -> str:
    """The choice, by what was measured on CPUs, and by what the compilers make of each for GPUs and TPUs.

    CPU: the loop. The other forms go through memory more often. GPU: no loop, which is some five kernels a row. TPU:
    the kernel, if it can run the step. But of its vectors of 128 lanes a narrow batch leaves most empty, and with fewer
    than 16 takes more than eight times the memory.
    """
    if platform == "cpu":
        return "scan"
    if platform == "tpu" and init.size >= 16:
        try:
            jax.eval_shape(functools.partial(pallas_tpu, step, reverse=False), init, xs)
        except NotImplementedError:
            return "blocked"
        return "pallas"
    return "blocked"


def _run(*operands: Any, **params: Any) -> list[Array]:
    config: Any = jax.config
    if config.jax_disable_jit:
        return _lower(*operands, platform="cpu", **params)
    return jax.jit(functools.partial(affine_scan_p.bind, **params))(*operands)


def _abstract_eval(*avals: Any, **params: Any) -> list[Any]:
    specification = functools.partial(_lower, platform="cpu", **params | {"implementation": "scan"})
    return jax.make_jaxpr(specification)(*avals).out_avals


def _batch(operands: Sequence[Any], axes: Sequence[int | None], **params: Any) -> tuple[list[Any], list[int]]:
    how = How(**params)
    a_batch = next((x, axis) for x, axis in zip(operands, axes, strict=True) if axis is not None)
    wanted = [0] * (how.n_parameters + 1) + [1] * (len(operands) - how.n_parameters - 1)
    operands = [x if a is None else jnp.moveaxis(x, a, to) for x, a, to in zip(operands, axes, wanted, strict=True)]
    parameters, init, xs = how.split(operands)
    parameter_axes, init_axis, row_axes = how.split([None if axis is None else 0 for axis in axes])
    if init_axis is None:  # as often as there are others, and split over devices as they are
        init = jax.vmap(lambda _: init, in_axes=a_batch[1])(a_batch[0])
    step = jax.vmap(how.call, in_axes=(parameter_axes, 0, row_axes))
    last, ys = bind(step, parameters, init, xs, reverse=how.reverse, implementation=how.implementation)
    return [last, *ys], [0] + [1] * len(ys)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Any], list[Any]]:
    how = How(**params)
    parameters, init, xs = how.split(primals)
    d_parameters, d_init, d_xs = how.split([None if type(dx) is ad.Zero else dx for dx in tangents])
    d_init = jnp.zeros_like(init) if d_init is None else d_init
    scanned = functools.partial(bind, reverse=how.reverse)

    def derivative(parameters: Any, d_carry: Any, row: Any) -> tuple[Any, Any]:
        (parameters, d_parameters), (carry, row, d_row) = parameters, row
        at, direction = (parameters, carry, row), (d_parameters, d_carry, d_row)

        def along(moving: Any) -> tuple[Any, Any]:
            new_carry, ys = how.call(*jax.tree.map(lambda x, moved: x if moved is None else moved, at, moving))
            return new_carry, [y for y in ys if _is_float(y)]

        moving = jax.tree.map(lambda x, dx: None if dx is None else x, at, direction)
        return jax.jvp(along, (moving,), (direction,))[1]

    def remembering(parameters: Any, carry: Any, row: Any) -> tuple[Any, Any]:
        new_carry, ys = how.call(parameters, carry, row)
        return new_carry, (ys, carry)

    row = jax.typeof(init), row_types(xs), row_types(d_xs)
    _, used, _ = _trace(derivative, (parameters, d_parameters), d_init, row)
    if used[-len(jax.tree.leaves(row))]:
        last, (ys, carries) = scanned(remembering, parameters, init, xs, implementation=how.implementation)
    else:  # it is the same from any carry
        last, ys = scanned(how.call, parameters, init, xs, implementation=how.implementation)
        carries = jnp.zeros_like(init, shape=(len(xs[0]), *init.shape))
    # The kernel runs what is elementwise, and a derivative may not be: its implementation is chosen anew.
    by = "blocked" if how.implementation == "blocked" else None
    d_last, d_ys = scanned(derivative, (parameters, d_parameters), d_init, (carries, xs, d_xs), implementation=by)
    d_ys = iter(d_ys)
    zeros = [ad.Zero(jax.typeof(y).to_tangent_aval()) for y in ys]
    return [last, *ys], [d_last, *(next(d_ys) if _is_float(y) else zero for y, zero in zip(ys, zeros, strict=True))]


def _transpose(cotangents: Sequence[Any], *operands: Any, **params: Any) -> list[Any]:
    how = How(**params)
    known = how.split([None if ad.is_undefined_primal(x) else x for x in operands])
    linear = how.split([x.aval if ad.is_undefined_primal(x) else None for x in operands])
    ct_last, *ct_ys = [None if type(ct) is ad.Zero else ct for ct in cotangents]
    if ct_last is None:
        ct_last = ad.instantiate_zeros(cotangents[0])

    def transposed(parameters: Any, ct_carry: Any, row: Any) -> tuple[Any, Any]:
        row, ct_ys = row

        def linear_step(linear_parameters: Any, carry: Any, linear_row: Any) -> tuple[Any, Any]:
            both = (parameters, row), (linear_parameters, linear_row)
            merged = jax.tree.map(lambda known, x: x if known is None else known, *both, is_leaf=lambda x: x is None)
            new_carry, ys = how.call(merged[0], carry, merged[1])
            return new_carry, [None if ct is None else y for y, ct in zip(ys, ct_ys, strict=True)]

        transpose = jax.linear_transpose(linear_step, linear[0], ct_carry, row_types(linear[2]))
        ct_parameters, ct_carry, ct_row = transpose((ct_carry, ct_ys))
        return ct_carry, (ct_parameters, ct_row)

    ct_init, (ct_parameters, ct_xs) = bind(
        transposed, known[0], ct_last, (known[2], ct_ys), reverse=not how.reverse, implementation=how.implementation
    )
    ct_parameters = [None if ct is None else jnp.sum(ct, axis=0) for ct in ct_parameters]
    return [*ct_parameters, None if linear[1] is None else ct_init, *ct_xs]


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


affine_scan_p.def_impl(_run)
affine_scan_p.def_abstract_eval(_abstract_eval)
for platform in PLATFORMS:
    rule = mlir.lower_fun(functools.partial(_lower, platform=platform), multiple_results=True)
    mlir.register_lowering(affine_scan_p, rule, platform=platform)
batching.primitive_batchers[affine_scan_p] = _batch
ad.primitive_jvps[affine_scan_p] = _jvp
ad.primitive_transposes[affine_scan_p] = _transpose
