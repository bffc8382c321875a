"""The library obeys every law of Generalized Advantage Estimation."""

import pytest
from hypothesis import given
from laws import LAWS
from rollouts import rollouts

import gae_jax


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law):
    given(rollouts)(lambda rollout: law(gae_jax, rollout))()
