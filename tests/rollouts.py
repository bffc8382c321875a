"""Random rollouts, as NumPy arrays, with every way for an episode to end."""

import dataclasses

import numpy as np
from hypothesis import strategies as st


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The arguments of one call: float32 arrays [T, *B] and bool flags."""

    rewards: np.ndarray
    values: np.ndarray  # [T+1, *B]
    terminated: np.ndarray
    truncated: np.ndarray | None
    final_values: np.ndarray | None
    gamma: float
    lambda_: float

    @property
    def steps(self):
        return len(self.rewards)

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def arguments(self):
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def map_arrays(self, fn):
        """The same rollout with `fn` done to each of its arrays."""
        arrays = {k: fn(v) for k, v in self.arguments().items() if isinstance(v, np.ndarray)}
        return self.replace(**arrays)

    def rows(self, start, stop):
        """The piece of the rollout from row `start` to row `stop`."""
        piece = self.map_arrays(lambda x: x[start:stop])
        return piece.replace(values=self.values[start : stop + 1])


def random_rollout(seed, *, steps=8, batch=(), ends=0.25, truncation="final_values", gamma=0.9, lambda_=0.8):
    """A rollout in which this share of rows terminates and, unless truncation is None, as many truncate."""
    rng = np.random.default_rng(seed)
    shape = (steps, *batch)
    return Rollout(
        rewards=rng.normal(size=shape).astype(np.float32),
        values=rng.normal(size=(steps + 1, *batch)).astype(np.float32),
        terminated=rng.random(shape) < ends,
        truncated=None if truncation is None else rng.random(shape) < ends,
        final_values=rng.normal(size=shape).astype(np.float32) if truncation == "final_values" else None,
        gamma=gamma,
        lambda_=lambda_,
    )


unit_interval = st.sampled_from([0.0, 0.5, 0.95, 1.0]) | st.floats(0, 1, width=32)

rollouts = st.builds(
    random_rollout,
    st.integers(0, 2**32 - 1),
    steps=st.sampled_from([1, 2, 5, 8]),  # few shapes, each compiled once; what varies is what is in them
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    ends=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    truncation=st.sampled_from([None, "dropped", "final_values"]),
    gamma=unit_interval,
    lambda_=unit_interval,
)
