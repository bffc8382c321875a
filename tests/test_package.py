"""What the package shows: its version, and an import without Pallas, which takes longer than all the rest."""

import importlib.metadata
import subprocess
import sys

import gae_jax


def test_version_is_the_version_of_the_distribution():
    assert gae_jax.__version__ == importlib.metadata.version("gae_jax")


def test_import_leaves_pallas_out():
    code = "import sys, gae_jax, gae_jax.testing; sys.exit('jax.experimental.pallas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
