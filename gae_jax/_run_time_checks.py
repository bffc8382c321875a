"""Checks of what only a run can know: errors under `checkify.checkify` and `chex.chexify`, and free without them.

`checkify.debug_check` compiles to nothing, but marks the program that it is in as one with effects, and JAX calls such
a program by a slow path: some 0.3 ms a call where a small one takes 0.01. So the checks hide in a primitive that is the
identity to everything but checkify, and leaves no mark.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

try:
    from jax._src.checkify import error_checks  # there is no public way to tell checkify of a primitive
except ImportError:
    error_checks: dict[Primitive, Any] = {}

_guarded_p = Primitive("guarded")


def guarded(x: Array, check: Callable[..., None], *operands: Any) -> Array:
    """Returns `x`; under checkify, first calls `check(*operands)`, which makes the `checkify.debug_check`s."""
    leaves, tree = jax.tree.flatten(operands)
    return _guarded_p.bind(
        x, *leaves, check=lambda *leaves: check(*jax.tree.unflatten(tree, leaves)), count=len(leaves)
    )


def _batch(operands: Any, axes: Any, *, check: Callable[..., None], count: int) -> tuple[Array, Any]:
    batched_check = check
    if any(axis is not None for axis in axes[1:]):
        batched_check = jax.vmap(check, in_axes=tuple(axes[1:]))
    return _guarded_p.bind(*operands, check=batched_check, count=count), axes[0]


def _checkify(*arguments: Any, check: Callable[..., None], count: int) -> tuple[Any, Array]:
    """Has checkify treat the check as it treats any jitted function; its rules take arguments of their own first."""
    own, (x, *operands) = arguments[: -count - 1], arguments[-count - 1 :]
    [call] = jax.make_jaxpr(jax.jit(check))(*operands).eqns
    error, _ = error_checks[call.primitive](*own, *operands, **call.params)
    return error, x


_guarded_p.def_impl(lambda x, *_, check, count: x)
_guarded_p.def_abstract_eval(lambda x, *_, check, count: x)
mlir.register_lowering(_guarded_p, lambda _, x, *__, check, count: [x])
batching.primitive_batchers[_guarded_p] = _batch
ad.primitive_jvps[_guarded_p] = lambda primals, tangents, **params: (_guarded_p.bind(*primals, **params), tangents[0])
ad.primitive_transposes[_guarded_p] = lambda cotangent, x, *operands, check, count: [cotangent] + [None] * count
error_checks[_guarded_p] = _checkify
