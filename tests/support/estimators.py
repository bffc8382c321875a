"""One way to call every estimator, and the smallest arguments that all of them accept."""

import inspect
from typing import Any

import numpy as np
import pytest

from gae_jax import gae, n_step_advantages, vtrace

T, N = 5, 3
ESTIMATORS = (gae, vtrace, n_step_advantages)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


GOOD: dict[str, Any] = {
    "rewards": zeros(T, N),
    "values": zeros(T + 1, N),
    "terminated": zeros(T, N, dtype=bool),
    "gamma": 0.99,
    "lambda_": 0.95,
}


def advantages_by(estimator: Any, arguments: dict[str, Any]) -> Any:
    """Returns the advantages for the arguments of `gae`; arguments that the estimator does not take are left out."""
    arguments = {"log_rhos": np.zeros_like(arguments["rewards"]), "n": 3} | arguments
    output = estimator(**{k: x for k, x in arguments.items() if k in inspect.signature(estimator).parameters})
    return output if estimator is n_step_advantages else output.advantages
