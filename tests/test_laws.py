"""The library obeys every law of Generalized Advantage Estimation.

`pytest tests/test_laws.py --hypothesis-profile=slow --hypothesis-show-statistics` looks longer, and prints the worst
relative error that it found.
"""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laws import LAWS
from support.oracle import oracle
from support.rollouts import FLAGS, rollouts

import gae_jax

EXAMPLES = hypothesis.settings().max_examples


@given(
    rollout=rollouts,
    time_axis=st.integers(0, 2),
    split=st.booleans(),
    flag_dtype=st.sampled_from([bool, np.int32, np.float32]),
    implementation=st.sampled_from([None, "scan", "blocked"]),
)
@hypothesis.settings(max_examples=max(1, EXAMPLES // 2))
def test_all_arguments_at_once(rollout, time_axis, split, flag_dtype, implementation):
    """Whatever is passed, in whatever form: within 1e-5 of the oracle, relative to the largest advantage."""
    want = oracle(**rollout.arguments())
    time_axis %= rollout.rewards.ndim
    moved = rollout.map_arrays(lambda x: np.moveaxis(x, 0, time_axis)) if time_axis else rollout
    arguments = moved.arguments()
    arguments |= {k: x.astype(flag_dtype) for k, x in arguments.items() if k in FLAGS and x is not None}
    if split:
        arguments |= {"values": np.moveaxis(rollout.values[:-1], 0, time_axis), "bootstrap_value": rollout.values[-1]}

    output = gae_jax.gae(**arguments, time_axis=time_axis, implementation=implementation)

    got = [np.moveaxis(np.asarray(x), time_axis, 0) for x in output]
    scale = max(1.0, np.abs(want[0]).max())
    errors = [np.abs(g - w).max() / scale for g, w in zip(got, want, strict=True)]
    hypothesis.target(float(max(errors)), label="relative error")
    assert max(errors) < 1e-5


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law):
    check = given(rollouts)(lambda rollout: law(gae_jax, rollout))
    hypothesis.settings(max_examples=max(1, EXAMPLES // 8))(check)()
