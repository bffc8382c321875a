"""What the package shows: its version."""

import importlib.metadata

import gae_jax


def test_version_is_the_version_of_the_distribution():
    assert gae_jax.__version__ == importlib.metadata.version("gae_jax")
