"""What one argument may be: an array of numbers or flags, a number, an integer, a name; and the text of its errors."""

import contextlib
import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

Shape = tuple[int, ...]
Implementation = Literal["scan", "blocked", "pallas"]
LARGEST = float(np.finfo(np.float32).max)
CPU = 1  # in DLPack, kDLCPU


@jax.tree_util.register_static
class Constant(float):
    """A number that `jax.jit` compiles in: no call transfers it to the device, which a transfer guard may forbid."""


def constant_if_default(x: Any, default: float | None) -> Any:
    """Returns the default as a Constant. Other numbers stay as they are: no number is to compile another program."""
    return Constant(x) if isinstance(x, float) and x == default else x


def check_is_array(name: str, x: Any, *, flags: bool = False) -> None:
    """Raises unless `x` is a number, or an array of numbers or, with `flags`, of flags, and JAX keeps its values."""
    if not _is_array(x):
        kind = "flags" if flags else "numbers"
        raise TypeError(f"`{name}` must be an array of {kind}; got {type(x).__name__}{_how_to_convert(name, x)}")
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
    return x.dtype if hasattr(x, "dtype") else np.dtype(float if isinstance(x, float) else type(x))


def _how_to_convert(name: str, x: Any) -> str:
    if isinstance(x, np.ma.MaskedArray):
        return ""
    if hasattr(x, "advantages"):
        return ". Pass its `.advantages`."
    if hasattr(x, "__dlpack__"):
        detached = ".detach()" if getattr(x, "requires_grad", False) else ""
        on_cpu = ".cpu()" if jax.default_backend() == "cpu" and x.__dlpack_device__()[0] != CPU else ""
        return f". Convert it with jnp.from_dlpack(x{detached}{on_cpu})."
    if type(x) in (list, tuple) or hasattr(x, "__array__") or hasattr(x, "__jax_array__"):
        return ". Convert it with jnp.asarray(x)."
    return ". Pass False if no episode ends." if name == "terminated" and x is None else ""


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
    got = np.shape(x)
    with contextlib.suppress(AssertionError):
        chex.assert_shape(x, want)
        if got == want:  # `chex.disable_asserts()` lets every shape pass
            return
    guess = _guess(got, want, guesses or {})
    raise ValueError(f"`{name}` must have shape {want}, {meaning}; got {got}. {guess}".rstrip())


def _guess(got: Shape, want: Shape, guesses: Mapping[Shape, str]) -> str:
    if got in guesses:
        return guesses[got]
    if is_broadcastable(got, want):
        return f"If one entry stands for many, pass jnp.broadcast_to(x, {want})."
    known = {**guesses, want: ""}
    without = [got[:i] + got[i + 1 :] for i, size in enumerate(got) if size == 1]
    return next((f"Drop its axis of length 1. {known[shape]}" for shape in without if shape in known), "")


def is_broadcastable(got: Shape, want: Shape) -> bool:
    """Whether an array broadcasts to the wanted shape; sizes may be symbolic, which NumPy cannot compare."""
    return len(got) <= len(want) and all(a in (1, b) for a, b in zip(reversed(got), reversed(want), strict=False))


def as_number(name: str, x: Any, least: float = 0.0, default: float | None = None) -> float | Array:
    """Returns `x`, one number of at least `least`: a JAX array as it is, and any other as a Python number."""
    if not _is_array(x) or not is_real(_dtype(x)):
        raise TypeError(f"`{name}` must be a number; got {x!r}")
    if np.ndim(x) != 0:
        raise ValueError(f"`{name}` must be one number; got shape {np.shape(x)}")
    number = value_of(x)
    if number is not None and not number >= least:
        raise ValueError(f"`{name}` must be at least {least:.2g}; got {x}")
    if number is None or isinstance(x, Array):
        return x
    # JAX would warn of an overflow. The first comparison spares most numbers the second, which is slower.
    if number > LARGEST and number > float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).max):
        return math.inf
    return constant_if_default(float(number), default)


def value_of(x: Any) -> Any:
    """Returns one number as a Python number, or None if only a run knows it."""
    if isinstance(x, Tracer):
        return None
    x = jax.device_get(x) if isinstance(x, Array) else x  # an explicit transfer, which a transfer guard lets pass
    return x if isinstance(x, (int, float)) else x.item()


def as_integer(name: str, x: Any) -> int:
    """Returns `x` as a Python integer."""
    with contextlib.suppress(TypeError):
        if not isinstance(x, bool):
            return operator.index(x)
    known = " that is known while tracing" if isinstance(x, Tracer) else ""
    raise TypeError(f"`{name}` must be an integer{known}; got {x!r}")


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
            want = "name mesh axes of a jax.shard_map around this call"
            raise ValueError(f"`{argument}` must {want}; got {name!r}") from None
    if len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must not repeat a name; got {names!r}")
