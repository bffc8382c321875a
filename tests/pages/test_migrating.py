"""The calls of examples/guides/migrating.md, as printed: against the definition of GAE, and the agents' own functions.

tests/support/peers.py has what the agents store. A package that cannot be imported is skipped; the extra `peers` has
those that can be installed together.
"""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support import pages, peers
from support.laws import assert_close
from support.oracle import oracle, standardized
from support.peers import AGENTS, PACKAGES

import gae_jax
from gae_jax import normalize

PURE_JAX_RL = [f"PureJaxRL, {file}, with time limits" for file in ("ppo.py", "ppo_rnn.py")]
SB3 = "stable_baselines3.common.buffers"
WHITENED, TENSORS = "whitened by n - 1", "any dtype and device, with or without a gradient"


def rollouts_of(agent):
    parameters = [(0, 0.99, 0.95), (1, 0.9, 0.0)]
    return [peers.kind_of_rollout(AGENTS[agent], *each) for each in parameters]


@pytest.mark.parametrize("agent", AGENTS)
def test_call_matches_definition(agent, fast_compilation):
    """On arrays of NumPy; and JAX can trace the call."""
    for rollout in rollouts_of(agent):
        ours, wanted = peers.run_call(agent, rollout), peers.wanted(agent, rollout)
        assert_close([ours[rollout.live]], [wanted[rollout.live]])
        jax.eval_shape(*peers.call_of(agent, rollout))


@pytest.mark.parametrize("agent", PACKAGES)
def test_call_matches_package(agent, fast_compilation):
    for rollout in rollouts_of(agent):
        with peers.skip_import_errors():
            theirs = peers.run_package(agent, rollout)
        assert_close([peers.run_call(agent, rollout)[rollout.live]], [theirs[rollout.live]])


def test_every_block_has_a_test_and_every_agent_a_row_of_conformance():
    tested = {agent.removesuffix(", its default") for agent in AGENTS}
    assert set(peers.calls()) == tested | {*PURE_JAX_RL, WHITENED, TENSORS}
    head = "| agent | compared with | the call differs by | the agent differs from GAE by |"
    assert [row[0] for row in pages.table("tests/README.md", head)] == list(AGENTS)


# What was wrong on the page, or goes wrong without an error.


def test_call_of_brax_is_detached():
    """Brax calls its estimator inside the loss; without `stop_gradient`, the gradient of the critic is wrong."""
    names, block = peers.names_of("Brax", rollouts_of("Brax")[0]), peers.calls()["Brax"]

    def gradient(block):
        scope = names | pages.imports(peers.PAGE)
        return jax.grad(lambda values: pages.run(block, scope | {"values": values})["targets"].sum())(names["values"])

    assert not gradient(block).any()
    assert gradient(block.replace("jax.lax.stop_gradient", "")).any()


def test_check_gae_names_the_flag_of_the_step_before(capsys):
    (block,) = [block for block in pages.blocks(peers.PAGE) if "check_gae" in block]
    pages.run(block, pages.imports(peers.PAGE))
    mistake, printed = "the flag of the step before", capsys.readouterr().out
    assert f'"{mistake}"' in " ".join(pages.read(peers.PAGE).split())
    assert printed.count(mistake) >= 2


# Time limits in PureJaxRL.


@pytest.mark.parametrize("agent", PURE_JAX_RL)
def test_time_limits_in_purejaxrl(agent):
    """The lines of the block on whole rollouts, with V(s) = sin(s), or the sine of s and the hidden state."""
    rollout, rng = peers.kind_of_rollout("final_values", 0, 0.99, 0.95), np.random.default_rng(0)
    in_env_step, after = peers.calls()[agent].split("# In the place of")
    recurrent, ends = "rnn" in agent, rollout.terminated | rollout.truncated
    hidden, final_obs = rng.normal(size=(2, *ends.shape)).astype(np.float32)

    def apply(params, *inputs):
        if not recurrent:
            return None, jnp.sin(*inputs)
        hidden, (observation, reset) = inputs
        return None, None, jnp.sin(jnp.where(reset, 0, hidden[None]) + observation)

    info = {"terminated": rollout.terminated, "final_obs": final_obs}
    names = {"network": SimpleNamespace(apply=apply), "train_state": SimpleNamespace(params=None), "info": info}
    pages.run(in_env_step, pages.imports(peers.PAGE) | names | {"hstate": hidden, "done": ends})
    done = peers.HELPERS["before"](ends) if recurrent else ends
    batch = SimpleNamespace(done=done, value=rollout.values[:-1], reward=rollout.rewards, info=info)
    names = {"traj_batch": batch, "last_val": rollout.values[-1], "last_done": ends[-1]}
    names["config"] = {"GAMMA": rollout.gamma, "GAE_LAMBDA": rollout.lambda_}
    scope = pages.run(f"#{after}", pages.imports(peers.PAGE) | names)
    wanted = oracle(**rollout.replace(final_values=np.sin(recurrent * hidden + final_obs)).arguments())
    assert_close([scope["advantages"], scope["targets"]], wanted)


# The functions that examples/guides/agents.md puts in the place of a package's own, and whitening.


def swap(function, name="", **modules):
    """A name in the block of a function; the packages that the block changes are mocks, but for `modules`."""
    (block,) = [block for block in pages.blocks("examples/guides/agents.md") if f"def {function}(" in block]
    mocks = {package: mock.MagicMock() for package in ("registry", "PPOConfig", "sbx", "env", "skrl")}
    names = {"gae": gae_jax.gae, "normalize": normalize, "jnp": jnp, "np": np, "jax": jax, "lax": lax}
    return pages.run(block, names | mocks | modules)[name or function]


@pytest.mark.parametrize("agent", ["tunix", "skrl, JAX"])
def test_swap_matches_definition_and_package(agent):
    """Both whiten the advantages; tunix returns them first."""
    rollout, _ = rollouts_of(agent)
    x, live = SimpleNamespace(**peers.names_of(agent, rollout)), rollout.live
    advantages, targets = oracle(**rollout.arguments())
    if agent == "tunix":
        package, ours, wanted = peers.TUNIX_GAE, swap("tunix_gae"), [standardized(advantages, live, 1), targets]
    else:
        package, ours, wanted = peers.SKRL_GAE, swap("skrl_gae"), [targets, standardized(advantages, live, 0)]
    answers = [peers.in_rows(answer, rollout)[live] for answer in peers.call_by_name(ours, x)]
    assert_close(answers, [each[live] for each in wanted])
    whitening = {"normalize": normalize, "advantages": advantages, "mask": live}
    if agent == "tunix":
        assert_close([pages.run(peers.calls()[WHITENED], whitening)["whitened"][live]], [answers[0]])
    with peers.skip_import_errors(), peers.as_peers_want():
        theirs = peers.ask(package, x)
    assert_close(answers, [peers.in_rows(answer, rollout)[live] for answer in theirs])


def test_swapped_buffer_matches_stable_baselines3():
    x = SimpleNamespace(**peers.names_of("stable-baselines3", rollouts_of("stable-baselines3")[0]))
    with peers.skip_import_errors():
        theirs = peers.sb3_buffer(x)
        modules = {"stable_baselines3": SimpleNamespace(common=SimpleNamespace(buffers=peers.load(SB3)))}
        ours = peers.sb3_buffer(x, swap("sbx_gae", "GAEBuffer", **modules))
    assert_close([ours.advantages, ours.returns], [theirs.advantages, theirs.returns])


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int64"])
def test_line_for_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([1, 0, 2], dtype=getattr(torch, dtype), requires_grad="float" in dtype)
    array = pages.run(peers.calls()[TENSORS], {"tensor": tensor})["array"]
    np.testing.assert_array_equal(array, np.array([1, 0, 2], np.float32), strict=True)
