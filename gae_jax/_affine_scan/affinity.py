"""Is a step affine in its carry? Read off its program: if it is, the derivative does not depend on the carry."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun, jaxprs_in_params
from jax.extend.source_info_util import summarize
from jax.interpreters import partial_eval as pe


def check_affine(step: ClosedJaxpr) -> None:
    """Raises a ValueError unless the step's first output, the new carry, is affine in its first argument."""

    def derivative(carry: Array, *row: Array) -> Array:
        return jax.jvp(lambda h: jaxpr_as_fun(step)(h, *row)[0], (carry,), (jnp.ones_like(carry),))[1]

    needed, _ = pe.dce_jaxpr(jax.make_jaxpr(derivative)(*step.in_avals).jaxpr, [True], instantiate=True)
    culprit = _first_use(needed, needed.invars[0])
    if culprit is not None:
        raise ValueError(
            f"`step` must be affine in its carry, h -> a h + b with a and b from the row alone, but the derivative of "
            f"the new carry depends on the carry: {culprit}"
        )


def _first_use(jaxpr: Jaxpr, x: Var, caller: str = "") -> str | None:
    """The first operation that reads `x`, in words: its name and the line that it comes from."""
    for equation in jaxpr.eqns:
        if x in equation.invars:
            # What JAX has traced before, jnp.clip say, does not know of the line: its caller does.
            line = summarize(equation.source_info) or caller
            inner = list(jaxprs_in_params(equation.params))
            if len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
                return _first_use(inner[0], inner[0].invars[equation.invars.index(x)], line)
            return f"`{equation.primitive}` at {line}"
    return None
