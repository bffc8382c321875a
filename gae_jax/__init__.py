"""Generalized Advantage Estimation in JAX."""

from gae_jax._gae import GAE as GAE
from gae_jax._gae import GAEOutput as GAEOutput
from gae_jax._gae import gae as gae
from gae_jax._n_step import n_step_advantages as n_step_advantages
from gae_jax._normalize import normalize as normalize
from gae_jax._vtrace import vtrace as vtrace

__version__ = "0.4.0"
