"""The specification: `jax.lax.scan`, one step after the other."""

from collections.abc import Callable
from typing import Any

from jax import Array, lax


def scan(step: Callable[..., Any], init: Array, xs: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step row by row: one loop, whose body XLA fuses into a kernel or a few."""
    return lax.scan(step, init, xs, reverse=reverse)
