"""The tables of examples/guides/migrating.md against the real packages; what a package computes where it is not GAE.

tests/support/peers.py calls the packages. A package that cannot be imported is skipped; the extra `peers` installs all
that can be installed together. Agents whose code is copied are compared with their formula.
"""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages, peers
from support.laws import assert_close
from support.oracle import oracle
from support.peers import AGENTS, DEVIATIONS, PEERS

from gae_jax import gae, normalize

SEEDS = range(5)
PARAMETERS = [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)]
OF_TOKENS = [peer for peer in PEERS if peer.rollouts == "tokens"]
OF_EPISODES = [peer for peer in PEERS if peer.rollouts != "tokens"]
MASKED_STEPS = [agent for agent in AGENTS if agent.remark == peers.MASKED_STEP]


def each(entries):
    return pytest.mark.parametrize("peer", entries, ids=peers.slug)


@contextlib.contextmanager
def skip_import_errors():
    try:
        yield
    except ImportError as error:
        pytest.skip(f"cannot be imported: {error}")


def ask(peer, rollout):
    """The peer's arrays and its advantages, or a skip with the reason."""
    with skip_import_errors():
        names = peer.arrays(rollout)
        return names, peers.run_peer(peer, names)


def gae_of(rollout):
    return np.asarray(gae(**rollout.arguments()).advantages)


# The rows.


@each(PEERS)
@pytest.mark.parametrize(("gamma", "lambda_"), PARAMETERS)
def test_package_row_and_gae_agree(peer, gamma, lambda_):
    """The package, the row on the package's arrays, and `gae` on the rollout."""
    if peer.name == "torchrl, `vec_`" and lambda_ == 0:
        with pytest.raises(IndexError):  # its series of powers of 0 has an axis too few
            ask(peer, peers.kind_of_rollout(peer.rollouts, 0, gamma, lambda_))
        return
    for seed in SEEDS:
        rollout = peers.kind_of_rollout(peer.rollouts, seed, gamma, lambda_)
        names, theirs = ask(peer, rollout)
        assert_close([peers.advantages_by_page(peer.row, names)], [theirs])
        assert_close([gae_of(rollout)], [peers.time_major(theirs, rollout)])


@each(AGENTS)
@pytest.mark.parametrize(("gamma", "lambda_"), PARAMETERS)
def test_agent_row_agrees_with_its_formula(peer, gamma, lambda_):
    """And the formula with the sum over an episode, where it is GAE."""
    for seed in SEEDS:
        rollout = peers.kind_of_rollout(peer.rollouts, seed, gamma, lambda_)
        names, theirs = ask(peer, rollout)
        assert_close([peers.advantages_by_page(peer.row, names)], [theirs])
        if peer.is_gae:
            assert_close([peers.time_major(theirs, rollout)], [oracle(**rollout.arguments())[0]])


@pytest.mark.slow
@each([*PEERS, *AGENTS])
def test_row_runs_inside_jit(peer):
    with skip_import_errors():
        names = peer.arrays(peers.kind_of_rollout(peer.rollouts, 0, 0.99, 0.95))
    inside = peers.advantages_of(peers.run_adapter_inside_jit(peer.row, names))
    assert isinstance(inside, jax.Array)
    assert_close([inside], [peers.advantages_by_page(peer.row, names)])


def test_every_row_has_a_test():
    assert set(peers.adapters()) == {peer.row for peer in [*PEERS, *AGENTS]}


def test_every_row_is_found_by_the_name_of_an_agent():
    names, rows = zip(*pages.table(peers.PAGE, "| your agent | row |"), strict=True)
    assert set(rows) == set(peers.adapters())
    libraries = [re.split(r"[:;,] | in ", name)[0].lower() for name in names]
    assert libraries == sorted(libraries)
    for name in ("xland-minigrid", "navix", "_scan`", "`mappo_ff_hanabi`", "MuJoCo Playground", "`ppo_rnd`", "Mava"):
        assert any(name in cell for cell in names), name


def test_table_of_conformance_has_a_row_for_each_peer():
    """The largest differences are of one run, and not compared."""
    rows = pages.table("tests/README.md", "| peer | version | largest difference | what differs and why |")
    printed = {name: remark for name, _, _, remark in rows}
    assert printed == {peers.title(entry): entry.remark for entry in [*PEERS, *DEVIATIONS, *AGENTS]}


# What goes wrong without an error.


@each([agent for agent in AGENTS if agent.row.startswith(("JaxMARL with", "PureJaxRL, recurrent"))])
def test_feed_forward_row_is_wrong_for_a_recurrent_agent(peer):
    """`traj_batch.done` is the flag of the step before there: wrong by more than the root mean square, no error."""
    names, theirs = ask(peer, peers.kind_of_rollout("terminated", 0, 0.99, 0.95))
    wrong = peers.run_adapter("PureJaxRL", names)
    assert np.abs(wrong.advantages - theirs).max() > np.sqrt(np.mean(theirs**2))


def test_check_gae_names_the_flag_of_the_step_before(capsys):
    """The lines of the page, and what it says of their output."""
    pages.run(peers.block_with("before"), pages.imports(peers.PAGE))
    mistake, printed = "the flag of the step before", capsys.readouterr().out
    assert f'prints "{mistake}"' in pages.read(peers.PAGE)
    assert sum(mistake in line for line in printed.splitlines()) >= 2


def test_easydel_ends_an_answer_at_a_hole():
    """The row of verl skips the hole; the two agree where the mask has no hole."""
    (easydel,) = [agent for agent in AGENTS if agent.row == "EasyDeL"]
    rollout = peers.kind_of_rollout("tokens", 0, 0.99, 0.95)
    _, theirs = ask(easydel, rollout)
    assert np.abs(theirs.T - gae_of(rollout))[rollout.live].max() > 0.5
    padded = rollout.replace(mask=np.arange(64)[:, None] < np.arange(8, 64, 7))
    _, theirs = ask(easydel, padded)
    assert_close([theirs.T], [gae_of(padded)])


def test_skrl_jax_without_bootstrap_does_not_read_truncated():
    """Its own flag, in its own estimator and in the row."""
    (peer,) = [peer for peer in PEERS if peer.name == "skrl, JAX"]
    with skip_import_errors():
        names = peer.arrays(peers.kind_of_rollout("final_values", 0, 0.99, 0.95)) | {"time_limit_bootstrap": False}
        theirs = peers.run_peer(peer, names)
    assert_close([peers.advantages_by_page(peer.row, names)], [theirs])
    nothing = names | {"truncated": np.zeros_like(names["truncated"])}
    assert_close([peers.advantages_by_page(peer.row, nothing)], [theirs])


@each(MASKED_STEPS)
def test_masked_tokens_are_steps_in_openrlhf_and_trl(peer):
    """The row reproduces them; the row of verl skips them, by far another result, unless all of them are at the end."""
    rollout = peers.kind_of_rollout("tokens", 0, 0.99, 0.95)
    _, theirs = ask(peer, rollout)
    assert np.abs(theirs.T - gae_of(rollout))[rollout.live].max() > 0.5
    padded = rollout.replace(mask=np.arange(64)[:, None] < np.arange(8, 64, 7))
    _, theirs = ask(peer, padded)
    assert_close([theirs.T], [gae_of(padded)])


@each(DEVIATIONS)
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (0.9, 0.5)])
def test_deviation_is_not_gae_and_is_explained(peer, gamma, lambda_):
    """Its result is not GAE, by far, and is what `gae` returns with the same mistake in its arguments."""
    for seed in SEEDS:
        rollout = peers.kind_of_rollout(peer.rollouts, seed, gamma, lambda_)
        names, theirs = ask(peer, rollout)
        assert_close([peer.as_if(**names)], [theirs])
        assert np.abs(peers.time_major(theirs, rollout) - gae_of(rollout)).max() > 0.05


def test_advantages_of_brax_skip_lambda_on_the_first_hop():
    """They are delta_t + gamma A_{t+1}: too much by gamma (1 - lambda) A_{t+1}, within an episode."""
    (brax,) = [x for x in DEVIATIONS if x.peer == "Brax"]
    rollout = peers.kind_of_rollout("dropped", 0, 0.9, 0.5)
    _, theirs = ask(brax, rollout)
    advantages = gae_of(rollout)
    goes_on = ~(rollout.terminated | rollout.truncated)[:-1]
    too_much = 0.9 * (1 - 0.5) * goes_on * advantages[1:]
    assert_close([theirs[:-1] - advantages[:-1], theirs[-1]], [too_much, advantages[-1]])
    _, theirs = ask(brax, rollout.replace(lambda_=1.0))  # the one case where they are GAE
    assert_close([theirs], [gae_of(rollout.replace(lambda_=1.0))])


def test_lines_for_the_advantages_of_brax_run_inside_jit():
    with skip_import_errors():
        rollout = peers.kind_of_rollout("dropped", 0, 0.9, 0.5)
        names = peers.brax_arrays(rollout)
        advantages, targets = peers.run_adapter("Brax", names)
        arrays = {name: x for name, x in names.items() if np.ndim(x)} | {"advantages": advantages, "targets": targets}
        code = peers.block_with("brax_advantages")
        inside = jax.jit(lambda arrays: pages.run(code, names | arrays | {"jnp": jnp})["brax_advantages"])(arrays)
        assert_close([inside], [peers.brax_advantages(**names)])


@each(OF_EPISODES)
def test_package_reads_past_the_end_of_an_episode(peer):
    """It multiplies by 0 the value that a terminated row must not read, and 0 * NaN is NaN. `gae` does not read it."""
    rollout = peers.kind_of_rollout("terminated", 0, 0.99, 0.95)
    rollout.terminated[-1] = True
    if peer.rollouts != "terminated":
        rollout = rollout.replace(
            truncated=np.zeros_like(rollout.terminated), final_values=np.zeros_like(rollout.rewards)
        )
    want = gae_of(rollout)
    rollout.values[-1] = np.nan
    names, theirs = ask(peer, rollout)
    ours = peers.advantages_by_page(peer.row, names)
    assert np.isnan(peers.time_major(theirs, rollout)[-1]).all()
    assert_close([peers.time_major(ours, rollout)], [want])


@each(OF_TOKENS)
def test_package_reads_padding(peer):
    """A NaN in the padding spoils every token before it, in the same way."""
    rollout = peers.kind_of_rollout("tokens", 0, 0.99, 0.95)
    padding = ~rollout.live
    padding[-4:] = True
    rollout = rollout.replace(mask=~padding)
    want = gae_of(rollout)
    rollout.values[:-1][padding] = np.nan
    rollout.rewards[padding] = np.nan
    names, theirs = ask(peer, rollout)
    ours = peers.advantages_by_page(peer.row, names)
    assert np.isnan(peers.time_major(theirs, rollout)[~padding]).all()
    assert_close([peers.time_major(ours, rollout)], [want])


# Whitening.


def whitened_by_page(advantages, mask):
    names = {"normalize": normalize, "advantages": advantages, "mask": mask}
    return jax.jit(lambda: pages.run(peers.block_with("whitened"), names)["whitened"])()


def whitened_as_skrl(advantages, language):
    """By the expression that the page has for this language."""
    (code,) = re.findall(f"skrl in {language}[^`]*`(normalize[^`]*)`", pages.read(peers.PAGE).partition("## Whit")[2])
    return eval(code, {"normalize": normalize, "advantages": advantages})


@pytest.mark.parametrize("name", ["tunix", "verl"])
def test_whitening_of_tokens(name):
    (peer,) = [peer for peer in PEERS if peer.name == name]
    rollout = peers.kind_of_rollout("tokens", 0, 0.99, 0.95)
    names, theirs = ask(peer, rollout)
    with skip_import_errors(), peers.as_peers_want():
        whitened = np.asarray(peers.whitened(peer.name, names))
    live = rollout.live.T
    assert_close([whitened_by_page(theirs, live)[live]], [whitened[live]])


def test_whitening_of_skrl():
    rollout = peers.kind_of_rollout("terminated", 0, 0.99, 0.95)
    rollout = rollout.replace(truncated=np.zeros_like(rollout.terminated), final_values=np.zeros_like(rollout.rewards))
    with skip_import_errors():
        names = peers.skrl_arrays(rollout)
        whitened, theirs = peers.whitened("skrl", names), peers.skrl_by_default(**names)
    assert_close([whitened_as_skrl(theirs, "PyTorch")], [whitened])


def test_whitening_of_skrl_in_jax():
    (peer,) = [peer for peer in PEERS if peer.name == "skrl, JAX"]
    with skip_import_errors(), peers.as_peers_want():
        names = peer.arrays(peers.kind_of_rollout("final_values", 0, 0.99, 0.95))
        _, whitened = peers.load("skrl.agents.jax.ppo.ppo")._compute_gae(**names)
    assert_close([whitened_as_skrl(peers.advantages_by_page(peer.row, names), "JAX")], [whitened])


def test_tunix_whitens_one_token_to_nan():
    """With one live token in the batch the variance is 0 / 0. `gae` leaves whitening to the caller."""
    one = np.ones((1, 1), np.float32)
    with skip_import_errors(), peers.as_peers_want():
        advantages, returns = peers.load("tunix.rl.algo_core").compute_gae_advantages(one, one / 2, one, 0.99, 0.95)
    assert np.isnan(advantages).all()
    assert_close(returns, one)


# Torch tensors.


def test_line_for_torch_tensors():
    """For every dtype, and with a gradient; plain `numpy()` fails for bfloat16 and where there is a gradient."""
    torch = pytest.importorskip("torch")
    numbers = [1.0, 0.0, 2.0]
    tensors = [torch.tensor(numbers, dtype=dtype) for dtype in (torch.bfloat16, torch.float64, torch.int64)]
    with_gradient = torch.tensor(numbers, dtype=torch.bfloat16, requires_grad=True)
    for tensor in [*tensors, with_gradient, 2 * with_gradient]:
        array = pages.run(peers.block_with("array"), {"tensor": tensor})["array"]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.array(numbers, np.float32) * (2 if tensor.grad_fn else 1))
    for tensor in (tensors[0], torch.tensor(numbers, requires_grad=True)):
        with pytest.raises((TypeError, RuntimeError)):
            tensor.numpy()


def test_torch_tensor_by_dlpack():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([1.0, 0.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert "jnp.from_dlpack(tensor.detach())" in pages.read(peers.PAGE)
    array = jnp.from_dlpack(tensor.detach())
    assert array.dtype == jnp.bfloat16
    np.testing.assert_array_equal(array, jnp.array([1.0, 0.0, 2.0], jnp.bfloat16))
