"""Checks for users: `check_gae` of a GAE implementation, and `check_rollout` of the numbers in a rollout."""

from gae_jax.testing._check_gae import Report as Report
from gae_jax.testing._check_gae import Verdict as Verdict
from gae_jax.testing._check_gae import check_gae as check_gae
from gae_jax.testing._check_rollout import check_rollout as check_rollout
