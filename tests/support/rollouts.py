"""Random rollouts, as NumPy arrays: every kind of end of an episode, and parameters that vary along any axes."""

import dataclasses
from collections.abc import Callable
from typing import Any

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
    mask: np.ndarray | None
    gamma: Any  # a number, or an array that broadcasts to [T, *B]
    lambda_: Any

    @property
    def steps(self) -> int:
        return len(self.rewards)

    @property
    def live(self) -> np.ndarray:
        return np.ones(self.rewards.shape, bool) if self.mask is None else self.mask

    @property
    def dropped(self) -> np.ndarray:
        if self.truncated is None or self.final_values is not None:
            return np.zeros(self.rewards.shape, bool)
        return self.truncated & ~self.terminated & self.live

    def replace(self, **changes: Any) -> "Rollout":
        return dataclasses.replace(self, **changes)

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def full(self, parameter: float | np.ndarray) -> np.ndarray:
        """Returns a parameter as an array [T, *B]."""
        return np.broadcast_to(np.float32(parameter), self.rewards.shape)

    def map_arrays(self, fn: Callable[[np.ndarray], Any]) -> "Rollout":
        """Returns the rollout with `fn` applied to each of its arrays, each written out to [T, *B] or [T+1, *B]."""
        parameters = {k: self.full(x) for k, x in self.arguments().items() if k in PARAMETERS and np.ndim(x)}
        return self.replace(
            **{k: fn(x) for k, x in (self.arguments() | parameters).items() if isinstance(x, np.ndarray)}
        )


PARAMETERS = ("gamma", "lambda_")
FLAGS = ("terminated", "truncated", "mask")


def random_rollout(
    seed: int,
    *,
    steps: int = 8,
    batch: tuple[int, ...] = (),
    ends: float = 0.25,
    truncation: str | None = "final_values",
    masked_share: float = 0.0,
    gamma: Any = 0.9,
    lambda_: Any = 0.8,
) -> Rollout:
    """Returns a rollout of random numbers.

    Args:
      seed: of the random numbers.
      steps: T.
      batch: the batch axes.
      ends: the share of rows that are terminated, and the share of rows that are truncated.
      truncation: None: no time limits. "dropped": truncated rows, without final values. "final_values": with them.
      masked_share: the share of rows that are masked.
      gamma: a number, or the axes that it varies along: "step", "worker" or "both".
      lambda_: likewise.
    """
    rng = np.random.default_rng(seed)
    shape = (steps, *batch)
    varying = {"step": (steps, *(1 for _ in batch)), "worker": batch, "both": shape}
    gamma, lambda_ = (
        np.float32(rng.uniform(0.3, 1, varying[x])) if isinstance(x, str) else x for x in (gamma, lambda_)
    )
    return Rollout(
        rewards=rng.normal(size=shape).astype(np.float32),
        values=rng.normal(size=(steps + 1, *batch)).astype(np.float32),
        terminated=rng.random(shape) < ends,
        truncated=None if truncation is None else rng.random(shape) < ends,
        final_values=rng.normal(size=shape).astype(np.float32) if truncation == "final_values" else None,
        mask=rng.random(shape) >= masked_share if masked_share else None,
        gamma=gamma,
        lambda_=lambda_,
    )


parameters = st.sampled_from([0.0, 0.5, 0.95, 1.0, "step", "worker", "both"]) | st.floats(0, 1, width=32)

rollouts = st.builds(
    random_rollout,
    st.integers(0, 2**32 - 1),
    steps=st.sampled_from([1, 8]),  # few shapes, since each is compiled; the contents vary
    batch=st.sampled_from([(), (2, 2)]),
    ends=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    truncation=st.sampled_from([None, "dropped", "final_values"]),
    masked_share=st.sampled_from([0.0, 0.3, 1.0]),
    gamma=parameters,
    lambda_=parameters,
)

# Rollouts with every kind of argument. With these seeds, each has every kind of flag, and long episodes.
EXAMPLES = [
    random_rollout(
        seed, steps=6, batch=(3,), ends=0.2, truncation=ends, masked_share=masked, gamma=varying, lambda_=varying
    )
    for varying, seed in (("both", 2), (0.8, 16), ("step", 59))
    for masked in (0.3, 0.0)
    for ends in ("final_values", "dropped", None)
]
