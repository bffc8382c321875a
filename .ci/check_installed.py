"""Imports the installed package and makes one call; run outside of the checkout."""

import importlib.metadata

import numpy as np

import gae_jax
import gae_jax.testing

assert "site-packages" in gae_jax.__file__, gae_jax.__file__
advantages, _ = gae_jax.gae(np.ones(3), np.zeros(4), np.zeros(3, bool), gamma=0.5, lambda_=1.0)
assert advantages.tolist() == [1.75, 1.5, 1.0], advantages
print(f"gae_jax {importlib.metadata.version('gae_jax')}, jax {importlib.metadata.version('jax')}: one call is right")
