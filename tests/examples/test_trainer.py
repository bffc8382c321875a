"""A training run around the algorithm: examples/brax_ppo/trainer.py and examples/brax_ppo/checkpoints.py."""

import dataclasses
import importlib.util
import os
import random
import re
import resource
import sys
from typing import Any

import jax
import numpy as np
import pytest

for package in ("brax", "matplotlib", "optax", "orbax.checkpoint", "rich", "tyro"):
    pytest.importorskip(package, reason="the script needs the extra `examples`")
checkpoints, runs = map(pytest.importorskip, ("checkpoints", "runs"))
Config: Any = pytest.importorskip("ppo").Config

pytestmark = pytest.mark.examples
CONFIG = dataclasses.asdict(Config())
KERNEL = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)  # a smaller one has no file of its own
TREE = {"params": {"kernel": KERNEL}, "iteration": np.array(3, np.int32)}


def save(directory, config=CONFIG, **changes):
    with checkpoints.manager(directory) as manager:
        checkpoints.save(manager, 3, config, [[1.0, float("nan")]], TREE | changes)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    """As many as there are devices in a test: JAX makes them once in a process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.fixture
def saved(tmp_path):
    save(tmp_path)
    return tmp_path


def complaint_of(call, *arguments, capsys):
    """What a call prints on standard error before it exits with status 2, without the frame that tyro draws."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split())


def line_of(call, *arguments, capsys):
    """The one line with which a call refuses."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def read(line):
    return trainer.read_options("", Config, line.split(" "))


def test_what_is_saved_is_loaded(saved):
    loaded = checkpoints.load(saved)
    assert loaded.config == CONFIG
    np.testing.assert_array_equal(loaded.rows, [[1.0, float("nan")]])
    state = checkpoints.fill(TREE, loaded.arrays)
    assert jax.tree.structure(state) == jax.tree.structure(TREE)
    assert [x.tobytes() for x in jax.tree.leaves(state)] == [x.tobytes() for x in jax.tree.leaves(TREE)]


def test_damage_is_one_line_or_harmless(saved, capsys):
    files = [path for path in saved.rglob("*") if path.is_file() and path.stat().st_size]
    rng, refused = random.Random(0), 0
    for turn in range(4 * len(files)):
        path = files[turn % len(files)]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged if turn % 4 else whole[: len(whole) // 2])
        try:
            loaded = checkpoints.load(saved)
        except SystemExit:
            refused += 1
            assert re.fullmatch(r"error: the checkpoint in .* is damaged.*\n", capsys.readouterr().err)
        else:
            assert loaded.config == CONFIG
            assert {name: x.tobytes() for name, x in loaded.arrays.items()} == {
                name: x.tobytes() for name, x in checkpoints.named_leaves(TREE).items()
            }
        path.write_bytes(whole)
    assert refused > len(files) / 2


def test_a_flipped_bit_of_a_parameter_is_found(saved, capsys, monkeypatch):
    """Orbax restores some flipped bits, so a checksum of the arrays is stored beside them."""
    whole = checkpoints.load(saved)
    kernel = whole.arrays["params.kernel"].copy()
    kernel.view(np.uint8)[0, 0] ^= 1
    flipped = whole._replace(arrays=whole.arrays | {"params.kernel": kernel})
    assert checkpoints.checksum(flipped) != checkpoints.checksum(whole)
    monkeypatch.setattr(checkpoints, "checksum", lambda checkpoint: 0)
    assert "wrong checksum" in line_of(checkpoints.load, saved, capsys=capsys)


def test_another_kind_of_checkpoint_is_one_line(saved, capsys):
    arrays = checkpoints.load(saved).arrays
    for change in ({"key": np.zeros(2)}, {"iteration": np.array(3.0)}, {"iteration": np.zeros(2, np.int32)}):
        assert "it is not one of this program" in line_of(checkpoints.fill, TREE | change, arrays, capsys=capsys)


def test_a_full_disk_keeps_the_checkpoint_of_before(saved, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints.manager(saved) as manager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond
        try:
            large = TREE | {"more": np.random.default_rng(0).random(10_000)}
            complaint = line_of(checkpoints.save, manager, 4, {}, [], large, capsys=capsys)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot save a checkpoint" in complaint
    assert checkpoints.load(saved).config == CONFIG


def test_foreign_directories_are_one_line(tmp_path, capsys):
    assert "there is no run in" in line_of(read, f"--resume --out {tmp_path / 'none'}", capsys=capsys)
    assert "there is no run in" in line_of(read, f"--play {tmp_path}", capsys=capsys)
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint" in line_of(read, f"--play {tmp_path}", capsys=capsys)
    (tmp_path / "checkpoints" / "7").mkdir()
    (tmp_path / "checkpoints" / "7" / "state").write_text("")
    assert "damaged, or not one of this program" in line_of(read, f"--play {tmp_path}", capsys=capsys)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"config": CONFIG | {"gamma": 2.0}}, "--gamma must be a number from 0.0 to 1.0; got 2.0"),
        ({"config": CONFIG | {"steps": "many"}}, "--steps must be a whole number"),
        ({"config": CONFIG | {"num_envs": 10**12}}, "--num-envs must be a whole number"),
        ({"config": CONFIG | {"env": "no-such"}}, "--env must be one of"),
        ({"config": CONFIG | {"eval_envs": 10**12}}, "unexpected keyword argument 'eval_envs'"),
        ({"iteration": np.array(-3, np.int32)}, "iteration must be from 0 to 256; got -3"),
        ({"iteration": np.array(10**6, np.int32)}, "iteration must be from 0 to 256; got 1000000"),
        ({"params": {"kernel": np.array([1.0, np.nan])}}, "the parameters are not finite"),
    ],
)
@pytest.mark.parametrize("mode", ["--play", "--resume --out"])
def test_what_is_stored_is_checked(tmp_path, changes, complaint, mode, capsys):
    save(tmp_path, **changes)
    assert complaint in line_of(read, f"{mode} {tmp_path}", capsys=capsys)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--env no-such", "invalid choice 'no-such' for argument '--env'"),
        ("--gamma 1.5", "--gamma must be a number from 0.0 to 1.0; got 1.5"),
        ("--gamma nan", "--gamma must be a number from 0.0 to 1.0; got nan"),
        ("--steps 0", "--steps must be a whole number from 1 to 1000000000; got 0"),
        ("--steps 1e6", "Error parsing --steps"),
        ("--steps 99999999999999999999999", "--steps must be a whole number from 1 to 1000000000"),
        ("--num-envs 99999999999", "--num-envs must be a whole number from 1 to 1000000; got 99999999999"),
        ("--num-envs 1000000", "--num-envs × --num-steps must be at most 4194304; got 64000000"),
        ("--seed -1", "--seed must be a whole number from 0 to 4294967295; got -1"),
        ("--learning-rate inf", "--learning-rate must be a number"),
        ("--minibatches 7", "--minibatches must divide --num-envs × --num-steps / --devices; got 7 for 4096"),
        ("--devices 3", "--devices must divide --num-envs; got 3 for 64"),
        ("--out ", "the name of a directory is empty"),
        ("--play ", "the name of a directory is empty"),
        ("--resume --overwrite", "--resume and --overwrite are not allowed together"),
        ("--num-env 3", "Unrecognized options: --num-env"),
    ],
)
def test_bad_options_are_refused(line, complaint, capsys):
    assert complaint in complaint_of(read, line, capsys=capsys)


def test_resume_takes_the_options_of_the_run(tmp_path, capsys):
    save(tmp_path, CONFIG | {"gamma": 0.5, "devices": 8})
    config, _, loaded = read(f"--resume --out {tmp_path} --gamma 0.5")
    assert config == Config(gamma=0.5, devices=8)
    assert loaded is not None
    assert (
        line_of(read, f"--resume --out {tmp_path} --gamma 0.9", capsys=capsys)
        == f"error: --gamma: the run in {tmp_path} has 0.5; got 0.9\n"
    )
    config, run, _ = read(f"--play {tmp_path} --seed 3")  # in another evaluation episodes may begin otherwise
    assert (config, run.play) == (Config(gamma=0.5, devices=8, seed=3), str(tmp_path))


def test_a_run_is_not_overwritten_unasked(saved, capsys):
    for name in ("replay.gif", "notes.txt"):
        (saved / name).write_text("")
    assert "has a run in it" in line_of(trainer.clear, saved, False, capsys=capsys)
    assert (saved / "replay.gif").exists()
    trainer.clear(saved, True)
    assert [path.name for path in saved.iterdir()] == ["notes.txt"]
    trainer.clear(saved, False)


def test_a_directory_that_cannot_be_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["brax_ppo.py", "--out", str(tmp_path / "file" / "run")])
    complaint = line_of(trainer.main, "", Config, None, capsys=capsys)
    assert complaint == f"error: cannot write to {tmp_path / 'file' / 'run'}: Not a directory\n"


@pytest.mark.parametrize(("cores", "num_envs", "devices"), [(1, 64, 1), (2, 64, 2), (8, 64, 8), (64, 64, 8), (8, 6, 6)])
def test_by_default_there_is_a_device_per_core(cores, num_envs, devices, monkeypatch):
    settings = {}
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    assert trainer.with_devices(Config(num_envs=num_envs)).devices == devices
    assert settings == {"jax_num_cpu_devices": min(cores, 8)}
    assert trainer.with_devices(Config(devices=16)) == Config(devices=16)
    assert settings == {"jax_num_cpu_devices": 16}


@pytest.mark.parametrize(("missing", "target"), [("gae_jax", "."), ("tyro", "'.[examples]'")])
def test_what_is_not_installed_is_named(missing, target, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    for name in ("command_line", "brax_env"):
        monkeypatch.delitem(sys.modules, name)
    complaint = line_of(importlib.import_module, "brax_env", capsys=capsys)  # the first import of brax_ppo.py
    assert complaint == f"error: {missing} not installed; run: pip install -e {target}\n"
