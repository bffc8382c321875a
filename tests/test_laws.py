"""The library obeys every law of Generalized Advantage Estimation."""

import pytest
from hypothesis import given, settings
from laws import LAWS, matches_oracle
from rollouts import rollouts

import gae_jax


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law):
    examples = settings().max_examples // (1 if law is matches_oracle else 4)
    settings(max_examples=examples)(given(rollouts)(lambda rollout: law(gae_jax, rollout)))()
