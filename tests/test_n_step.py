"""`n_step_advantages`: its laws, its memory, and its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimator_laws
from support.estimators import GOOD, advantages_by
from support.laws import matches_oracle
from support.rollouts import EXAMPLES, random_rollout

import gae_jax
from gae_jax import n_step_advantages


@pytest.mark.parametrize("law", estimator_laws.LAWS_OF_ALL, ids=lambda law: law.__name__)
@pytest.mark.usefixtures("fast_compilation")
def test_law(law):
    estimate, reference = estimator_laws.n_steps_of(gae_jax), estimator_laws.n_steps_reference()
    for rollout in EXAMPLES[::8]:
        law(estimate, rollout, reference)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_any_n_and_two_batch_axes(n):
    rollout = random_rollout(1, steps=5, batch=(2, 2), gamma="worker", masked_share=0.2)
    matches_oracle(estimator_laws.n_steps_of(gae_jax, n), rollout, estimator_laws.n_steps_reference(n))


def test_memory_does_not_depend_on_n():
    """One loop over n, whose body holds the targets of all rows."""
    rows = jax.ShapeDtypeStruct((1024, 4), jnp.float32)

    def compiled(n) -> Any:
        fn = jax.jit(lambda r, v, e, last: n_step_advantages(r, v, e, n=n, gamma=0.9, bootstrap_value=last))
        return fn.lower(rows, rows, rows, jax.ShapeDtypeStruct((4,), jnp.float32)).compile()

    few, many = compiled(16), compiled(512)
    assert few.as_text().count(" while(") == many.as_text().count(" while(") == 1
    assert many.memory_analysis().temp_size_in_bytes == few.memory_analysis().temp_size_in_bytes


@pytest.mark.versions
def test_bad_number_of_steps():
    def call(n: Any):
        return advantages_by(n_step_advantages, GOOD | {"n": n})

    for n in (1.5, True, None, "1", np.float32(1), np.array(2.0), jnp.array(2.0)):
        with pytest.raises(TypeError, match="`n` must be an integer; got"):
            call(n)
    with pytest.raises(TypeError, match="`n` must be an integer that is known while tracing; got"):
        jax.jit(call)(2)
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        call(np.int64(0))
    assert call(jnp.array(2)).shape == (5, 3)
