"""Generalized Advantage Estimation in JAX."""

from gae_jax._affine_scan import affine_scan as affine_scan
from gae_jax._gae import GAE as GAE
from gae_jax._gae import GAEOutput as GAEOutput
from gae_jax._gae import gae as gae
