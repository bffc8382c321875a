"""What one argument may be: an array of numbers or flags, a number, an integer, a name; and the text of its errors."""

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

Shape = tuple[int, ...]
LARGEST = float(np.finfo(np.float32).max)


def check_is_array(name: str, x: Any, *, flags: bool = False) -> None:
    """Raises unless `x` is a number, or an array of numbers or, with `flags`, of flags, and JAX keeps its values."""
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
    if dtype.kind in "iu" and not isinstance(x, Array):
        held = np.iinfo(jax.dtypes.canonicalize_dtype(dtype))
        is_wide = held.dtype != dtype or isinstance(x, int)
        if is_wide and np.size(x) and not (held.min <= np.min(x) and np.max(x) <= held.max):
            raise ValueError(
                f"`{name}` holds integers that {held.dtype} cannot hold, and JAX reads them as {held.dtype}; "
                "convert them to floating point"
            )


def _is_array(x: Any) -> bool:
    return isinstance(x, (int, float, np.ndarray, np.generic, Array)) and not isinstance(x, np.ma.MaskedArray)


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else np.dtype(type(x))


def _how_to_convert(x: Any) -> str:
    if isinstance(x, np.ma.MaskedArray):
        return ""
    if hasattr(x, "advantages"):
        return ". Pass its `.advantages`."
    if hasattr(x, "__dlpack__"):
        return ". Convert it with jnp.from_dlpack."
    is_convertible = type(x) in (list, tuple) or hasattr(x, "__array__") or hasattr(x, "__jax_array__")
    return ". Convert it with jnp.asarray." if is_convertible else ""


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


def check_shape(name: str, x: ArrayLike, want: Shape, meaning: str, guesses: Mapping[Shape, str] | None = None) -> None:
    """Raises a ValueError unless `x` has the wanted shape; `guesses` says what some wrong shapes are likely to be."""
    try:
        chex.assert_shape(x, want)
    except AssertionError:
        got, known = np.shape(x), {**(guesses or {}), want: ""}
        guess = known.get(got, "")
        if _is_broadcastable(got, want):
            guess = f"If one entry stands for many, pass jnp.broadcast_to(x, {want})."
        for without in (got[:i] + got[i + 1 :] for i, size in enumerate(got) if size == 1):
            if without in known and not _is_broadcastable(got, want):
                guess = f"Drop its axis of length 1. {known[without]}"
        raise ValueError(f"`{name}` must have shape {want}, {meaning}; got {got}. {guess}".rstrip()) from None


def _is_broadcastable(got: Shape, want: Shape) -> bool:
    try:
        return np.broadcast_shapes(got, want) == want
    except ValueError:
        return False


def as_number(name: str, x: Any, least: float = 0.0) -> float | Array:
    """Returns `x`, one number of at least `least`, as a Python number, or as it is if it is traced."""
    if not _is_array(x) or not is_real(_dtype(x)):
        raise TypeError(f"`{name}` must be a number; got {x!r}")
    if np.ndim(x) != 0:
        raise ValueError(f"`{name}` must be one number; got shape {np.shape(x)}")
    if isinstance(x, Tracer):
        return x
    if not x >= least:
        raise ValueError(f"`{name}` must be at least {least:.2g}; got {x}")
    if x > LARGEST and jax.dtypes.canonicalize_dtype(float) == np.float32:  # JAX would warn of an overflow
        return math.inf
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
    """Raises unless `x` is a string."""
    if not isinstance(x, str):
        raise TypeError(f"`{name}` must be a string; got {x!r}")


def check_axis_names(argument: str, *names: Any) -> None:
    """Raises unless these are names of mesh axes that a `jax.shard_map` around this call maps over."""
    for name in names:
        check_is_name(argument, name)
        try:
            lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"`{argument}` must name mesh axes of a jax.shard_map around this call; got {name!r}"
            ) from None
    if len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must not repeat a name; got {names!r}")
