"""The README's loop over the pieces of a rollout: cut anywhere, it makes no difference."""

import itertools
import pathlib
import re
import types

import hypothesis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.laws import assert_close
from support.oracle import oracle
from support.rollouts import random_rollout

from gae_jax import gae

README = pathlib.Path(__file__).parents[1] / "README.md"
STEPS = 12


@hypothesis.settings(max_examples=max(1, hypothesis.settings().max_examples // 8))
@given(seed=st.integers(0, 2**32 - 1), cuts=st.sets(st.integers(1, STEPS - 1)), ends=st.sampled_from([0.0, 0.2]))
def test_any_number_of_pieces(seed, cuts, ends):
    rollout = random_rollout(seed, steps=STEPS, batch=(2,), ends=ends, truncation=None)
    want = oracle(**rollout.arguments())
    edges = [0, *sorted(cuts), STEPS]
    fields = {"rewards": rollout.rewards, "values": rollout.values[:-1], "terminated": rollout.terminated}
    pieces = [
        types.SimpleNamespace(**{name: x[start:stop] for name, x in fields.items()})
        for start, stop in itertools.pairwise(edges)
    ]
    [code] = re.findall(r"^```python\n(h = bootstrap_value.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    names = {"gamma": rollout.gamma, "lambda_": rollout.lambda_, "bootstrap_value": rollout.values[-1]}
    exec(code, {"gae": gae, "pieces": pieces} | names)
    for name, expected in zip(("advantages", "targets"), want, strict=True):
        assert_close([np.concatenate([getattr(piece, name) for piece in pieces])], [expected])
