"""`vtrace` and `n_step_advantages` with the signature of `gae`, for the laws of `support.laws`."""

import jax
import jax.numpy as jnp
import numpy as np

from support.laws import any_time_axis, gradients_match_oracle, matches_oracle
from support.laws import unused_entries_affect_nothing as unused_entries
from support.oracle import oracle, vtrace_oracle

UNEQUAL_CLIPS = {"clip_rho": 2.0, "clip_c": 0.8, "clip_pg_rho": 1.5}


def gae_of(lib, **how):
    return lambda *arrays, **others: lib.gae(*arrays, **others, **how)


def vtrace_of(lib, **how):
    """Returns `vtrace` with log ratios that are a function of the values."""

    def estimate(rewards, values, *flags, time_axis=0, **others):
        values = jnp.asarray(values)
        steps = jnp.shape(rewards)[time_axis]
        log_rhos = jnp.sin(jax.lax.slice_in_dim(jax.lax.stop_gradient(values), 0, steps, axis=time_axis))
        return lib.vtrace(rewards, values, *flags, log_rhos=log_rhos, time_axis=time_axis, **others, **how)

    return estimate


def n_steps_of(lib, n=4):
    def estimate(*arrays, lambda_=None, **others):
        del lambda_
        return (lib.n_step_advantages(*arrays, n=n, **others),)

    return estimate


def vtrace_reference(clips):
    return lambda values, **others: vtrace_oracle(values=values, log_rhos=np.sin(values[:-1]), **others, **clips)


def n_steps_reference(n=4):
    return lambda **arguments: oracle(**arguments | {"lambda_": 1.0}, n=n)[:1]


ESTIMATORS = {  # functions of a library that return an estimator, and the reference for each
    "gae": (gae_of, oracle),
    "vtrace": (vtrace_of, vtrace_reference({})),
    "vtrace with unequal clips": (lambda lib: vtrace_of(lib, **UNEQUAL_CLIPS), vtrace_reference(UNEQUAL_CLIPS)),
    "n_step_advantages": (n_steps_of, n_steps_reference()),
}
LAWS_OF_ALL = [any_time_axis, unused_entries, gradients_match_oracle]  # `any_time_axis` contains `matches_oracle`


# Mistakes in the package: the estimator and the law that must detect them, a name, a file, and what changes there.
N_STEP, VTRACE = "_n_step.py", "_vtrace.py"
MUTANTS = {
    ("n_step_advantages", matches_oracle): [
        ("one step too few", N_STEP, "fori_loop(0, n,", "fori_loop(1, n,"),
        ("masked rows count", N_STEP, "jnp.where(mask, steps, len(mask))", "jnp.broadcast_to(steps, mask.shape)"),
        ("V(s_{T-1}) for V(s_T)", N_STEP, "rollout.bootstrap_value[None]", "rollout.values[-1:]"),
    ],
    ("vtrace with unequal clips", matches_oracle): [
        ("rho is not clipped", VTRACE, "jnp.exp(log_rho_clipped), ", "jnp.exp(log_rho), "),
        ("c of its own row", VTRACE, "before(rollout._replace(lambda_=c_over_rho))", "c_over_rho"),
        ("bootstraps from vs", VTRACE, "lambda_before * (targets - value)", "(targets - value)"),
    ],
    ("vtrace", unused_entries): [
        ("log ratio of a masked row", VTRACE, "unmasked(rollout.log_rhos)", "rollout.log_rhos")
    ],
}
