"""What one argument may be: an array of numbers or flags, a number, an integer, a name; and the text of its errors."""

import functools
import math
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

Shape = tuple[int, ...]
NO_GUESS: Mapping[Shape, str] = MappingProxyType({})


def check_is_array(name: str, x: Any, *, flags: bool = False) -> None:
    """Raises unless `x` is an array of numbers, or of flags, or one of these; and JAX reads it as what it is."""
    if not _is_array(x):
        kind = "flags" if flags else "numbers"
        raise TypeError(f"`{name}` must be an array of {kind}; got {type(x).__name__}{_how_to_convert(x)}")
    dtype = _dtype(x)
    if not (is_real(dtype) or (flags and dtype == np.bool_)):
        want = "flags, bool or 0 and 1" if flags else "floating-point numbers of 16 to 64 bits or integers"
        raise TypeError(f"`{name}` must hold {want}; got dtype {dtype}")
    if not dtype.isnative:
        native = dtype.newbyteorder("=")
        raise TypeError(f"`{name}` must be in native byte order; got dtype {dtype.str}. Convert it to {native}.")
    if not isinstance(x, Array) and jnp.issubdtype(dtype, jnp.integer):
        narrow = jax.dtypes.canonicalize_dtype(dtype)
        if (narrow != dtype or isinstance(x, int)) and not _lie_in(x, np.iinfo(narrow).min, np.iinfo(narrow).max):
            raise ValueError(
                f"`{name}` holds integers that {narrow} cannot hold, and JAX reads them as {narrow}; "
                "convert them to floating point"
            )


def _is_array(x: Any) -> bool:
    return isinstance(x, (Array, np.ndarray, np.generic, int, float)) and not isinstance(x, np.ma.MaskedArray)


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else np.dtype(type(x))


def _how_to_convert(x: Any) -> str:
    if isinstance(x, np.ma.MaskedArray):
        return ""
    if hasattr(x, "__dlpack__"):
        return ". Convert it with jnp.from_dlpack."
    is_convertible = type(x) in (list, tuple) or hasattr(x, "__array__") or hasattr(x, "__jax_array__")
    return ". Convert it with jnp.asarray." if is_convertible else ""


def _lie_in(x: Any, low: int, high: int) -> bool:
    return np.size(x) == 0 or (low <= np.min(x) and np.max(x) <= high)


@functools.cache
def is_real(dtype: Any) -> bool:
    """Whether JAX promotes the dtype: it does not promote floating-point numbers of 8 bits or less."""
    if jnp.issubdtype(dtype, jnp.floating):
        return 16 <= jnp.finfo(dtype).bits <= 64
    return bool(jnp.issubdtype(dtype, jnp.integer))


def promoted(*arrays_or_dtypes: Any) -> Any:
    """Returns the dtype that the floating-point ones promote to."""
    floating = [x for x in arrays_or_dtypes if jnp.issubdtype(getattr(x, "dtype", x), jnp.floating)]
    # Mixed inputs are part of the contract, also where the caller forbids implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(floating or [float]))


def check_shape(name: str, x: ArrayLike, want: Shape, meaning: str, guesses: Mapping[Shape, str] = NO_GUESS) -> None:
    """Raises a ValueError unless `x` has the wanted shape; `guesses` says what some wrong shapes are likely to be."""
    try:
        chex.assert_shape(x, want)
    except AssertionError:
        got = np.shape(x)
        known = {**guesses, want: ""}
        guess = known.get(got, "")
        for i, size in enumerate(got):
            without = got[:i] + got[i + 1 :]
            if size == 1 and without in known:
                guess = f"Drop its axis of length 1. {known[without]}"
        raise ValueError(f"`{name}` must have shape {want}, {meaning}; got {got}. {guess}".rstrip()) from None


def as_number(name: str, x: Any) -> float | Array:
    """Returns `x` as a Python number if it is one real number, and as it is if only a run knows it."""
    if not _is_array(x) or not is_real(_dtype(x)):
        raise TypeError(f"`{name}` must be a number; got {x!r}")
    if np.ndim(x) != 0:
        raise ValueError(f"`{name}` must be one number; got shape {np.shape(x)}")
    if isinstance(x, Tracer):
        return x
    if abs(x) > float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).max):  # JAX would warn of an overflow
        return math.inf if x > 0 else -math.inf
    return float(x)


def as_integer(name: str, x: Any) -> int:
    """Returns `x` as a Python integer."""
    if isinstance(x, Tracer):
        raise TypeError(f"`{name}` must be an integer that is known while tracing; got {x!r}")
    try:
        integer = operator.index(x)
    except TypeError:
        integer = None
    if integer is None or isinstance(x, bool):
        raise TypeError(f"`{name}` must be an integer; got {x!r}")
    return integer


def check_is_name(name: str, x: Any) -> None:
    """Raises unless `x` is a string or None."""
    if not (x is None or isinstance(x, str)):
        raise TypeError(f"`{name}` must be a string; got {x!r}")


def check_is_mapped(axis_name: str | tuple[str, ...]) -> None:
    """Raises unless a `jax.shard_map` around this call maps over the axes."""
    try:
        lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"`axis_name` must name mesh axes of a jax.shard_map around this call; got {axis_name!r}"
        ) from None
