"""Every test runs as strictly as JAX allows, on several devices: CPUs, unless JAX_PLATFORMS says otherwise."""

import os

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Every new shape compiles, so a slow example is no sign of a slow test.
# `--hypothesis-profile=slow` looks ten times longer.
hypothesis.settings.register_profile("default", deadline=None, max_examples=200)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.register_profile("slow", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("default")
