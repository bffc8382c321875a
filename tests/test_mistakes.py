"""The reference of `check_gae` is right, and each of its mistakes is wrong."""

import numpy as np
from support.laws import assert_close
from support.oracle import oracle

from gae_jax.testing import MISTAKES, advantages, cases


def test_reference_matches_the_oracle():
    for case in cases().values():
        want, _ = oracle(**case)
        live = case.get("mask", True) & np.isfinite(want)
        assert_close([np.where(live, advantages(**case), 0)], [np.where(live, want, 0)], rtol=1e-12)


def test_every_mistake_is_one():
    """Its answer differs from the reference in some case."""
    for make in MISTAKES.values():
        finite = [case for name, case in cases().items() if "NaN" not in name]
        assert any(np.abs(make(case) - advantages(**case)).max() > 0.1 for case in finite)
