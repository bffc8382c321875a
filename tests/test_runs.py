"""Files and options of a training run: examples/checkpoints.py and examples/run_options.py."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys

import checkpoints
import jax.numpy as jnp
import numpy as np
import pytest
import run_options
from brax_ppo import Config

pytestmark = pytest.mark.examples
ROOT = pathlib.Path(__file__).parents[1]
TREE = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "key": np.array([1, 2], np.uint32)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, dataclasses.asdict(Config()), TREE)
    return path


def complaint_of(call, *arguments, capsys):
    """The one line on standard error with which a call refuses."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def recall(line, config_type=Config):
    return run_options.recall(config_type, *run_options.read("", config_type, line.split()))


def test_what_is_saved_is_read(saved):
    config, arrays = checkpoints.read(saved)
    assert config == dataclasses.asdict(Config())
    tree = checkpoints.fill(saved, arrays, TREE)
    assert tree["params"]["kernel"].tobytes() == TREE["params"]["kernel"].tobytes()
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.npz"]
    with np.load(saved, allow_pickle=False) as stored:
        assert set(stored.files) == {"config", "params/kernel", "key"}


def test_a_device_array_is_saved_as_a_numpy_array(tmp_path):
    checkpoints.save(tmp_path / "x.npz", {}, {"x": jnp.arange(3)})
    assert checkpoints.read(tmp_path / "x.npz")[1]["x"].tolist() == [0, 1, 2]


def test_damage_is_found_or_harmless(saved, capsys):
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.choice(len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        saved.write_bytes(damaged)
        try:
            config, arrays = checkpoints.read(saved)
            tree = checkpoints.fill(saved, arrays, TREE)
        except SystemExit:
            found += 1
            assert capsys.readouterr().err.count("\n") == 1
            continue
        assert config == dataclasses.asdict(Config())
        assert tree["params"]["kernel"].tobytes() == TREE["params"]["kernel"].tobytes()
        assert tree["key"].tobytes() == TREE["key"].tobytes()
    assert found > 200


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_cut_file_is_one_line(saved, size, capsys):
    saved.write_bytes(saved.read_bytes()[:size])
    assert "damaged" in complaint_of(checkpoints.read, saved, capsys=capsys)


def test_pickled_objects_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", config=np.array({"evil": 1}, dtype=object))
    assert "damaged" in complaint_of(checkpoints.read, tmp_path / "x.npz", capsys=capsys)


def test_options_that_are_a_list_are_one_line(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", config=np.array(json.dumps([1, 2])))
    assert "the options are a list" in complaint_of(checkpoints.read, tmp_path / "x.npz", capsys=capsys)


def test_another_kind_of_file_is_one_line(saved, capsys):
    _, arrays = checkpoints.read(saved)
    want = {**TREE, "rows": np.zeros((1, 7))}
    assert "has no rows" in complaint_of(checkpoints.fill, saved, arrays, want, capsys=capsys)
    want = {**TREE, "key": np.zeros(3, np.uint32)}
    assert "key of uint32[2] where the run needs uint32[3]" in complaint_of(
        checkpoints.fill, saved, arrays, want, capsys=capsys
    )


def test_a_full_disk_keeps_the_file_of_before(saved, capsys):
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond
    try:
        large = {**TREE, "more": np.zeros(10_000)}
        complaint = complaint_of(checkpoints.save, saved, {}, large, capsys=capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert complaint.endswith(f"{saved} is as it was before\n")
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.npz"]


HOLD = """
import pathlib, sys, time
import checkpoints
with checkpoints.lock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_a_directory(tmp_path, capsys):
    command, path = [sys.executable, "-c", HOLD, str(tmp_path)], os.pathsep.join([str(ROOT / "examples"), str(ROOT)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        complaint = complaint_of(checkpoints.lock, tmp_path, capsys=capsys)
        assert re.search(rf"another run writes to {tmp_path}: process {other.pid} on \S+;", complaint)
        other.send_signal(signal.SIGKILL)  # it cannot tidy up
    checkpoints.lock(tmp_path).close()
    checkpoints.lock(tmp_path).close()


def test_a_directory_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--out: cannot write to" in complaint_of(checkpoints.lock, tmp_path / "file" / "run", capsys=capsys)


def test_a_run_is_not_overwritten_unasked(saved, capsys):
    results = [saved, *(saved.parent / name for name in ("policy.npz", "replay.gif", "notes.txt"))]
    for path in results[1:]:
        path.write_text("")
    assert "has a run in it" in complaint_of(run_options.clear, saved.parent, False, capsys=capsys)
    assert all(path.exists() for path in results)
    run_options.clear(saved.parent, True)
    assert [path.name for path in saved.parent.iterdir()] == ["notes.txt"]
    run_options.clear(saved.parent, False)


def test_resume_takes_the_options_of_the_run(saved, tmp_path, capsys):
    config, run = recall(f"--resume --out {tmp_path} --gamma 0.99")
    assert config == Config()
    assert set(run.stored or ()) == {"params/kernel", "key"}
    assert (
        complaint_of(recall, f"--resume --out {tmp_path} --gamma 0.9", capsys=capsys)
        == f"error: --gamma: the run in {tmp_path} has 0.99; got 0.9\n"
    )
    assert "there is no" in complaint_of(recall, f"--resume --out {tmp_path / 'none'}", capsys=capsys)
    assert not (tmp_path / "none").exists()


def test_play_takes_the_options_of_the_run(tmp_path, capsys):
    checkpoints.save(tmp_path / "policy.npz", dataclasses.asdict(Config(gamma=0.5, devices=8)), TREE)
    config, run = recall(f"--play {tmp_path} --seed 3 --eval-envs 2")
    assert config == Config(gamma=0.5, devices=1, seed=3, eval_envs=2)
    assert run.directory == tmp_path
    assert "--gamma: the run in" in complaint_of(recall, f"--play {tmp_path} --gamma 0.99", capsys=capsys)


@pytest.mark.parametrize(("change", "complaint"), [({"gamma": 2}, "got 2"), ({"steps": "x"}, "got x"), ({}, "'env'")])
def test_stored_options_are_checked(tmp_path, change, complaint, capsys):
    stored = dataclasses.asdict(Config()) | change if change else {}
    checkpoints.save(tmp_path / "checkpoint.npz", stored, TREE)
    assert complaint in complaint_of(recall, f"--resume --out {tmp_path}", capsys=capsys)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--env no-such", "--env: must be one of ant, fast,"),
        ("--gamma 1.5", "--gamma: must be a number from 0 to 1; got 1.5"),
        ("--gamma nan", "--gamma: must be a number from 0 to 1; got nan"),
        ("--lambda -0.1", "--lambda: must be a number from 0 to 1; got -0.1"),
        ("--steps 0", "--steps: must be a whole number, at least 1; got 0"),
        ("--steps 1e6", "--steps: must be a whole number, at least 1; got 1e6"),
        ("--seed -1", "--seed: must be a whole number from 0 to 2^32 - 1; got -1"),
        ("--learning-rate inf", "--learning-rate: must be a positive number; got inf"),
        ("--minibatches 7", "--minibatches must divide --num-envs × --num-steps / --devices; got 7 for 4096"),
        ("--devices 3", "--devices must divide --num-envs; got 3 for 64 environments"),
        ("--processes 2", "--processes must divide --devices; got 2 for 1 devices"),
        ("--process 1", "--process must be less than --processes, 1; got 1"),
        ("--resume --overwrite", "--overwrite: not allowed with argument --resume"),
        ("--num-env 3", "unrecognized arguments: --num-env 3"),
    ],
)
def test_bad_options_are_one_line(line, complaint, capsys):
    assert complaint_of(recall, line, capsys=capsys).startswith(f"error: {complaint}")


def test_options_and_fields_of_the_config_are_one():
    given, _ = run_options.read("", Config, ["--lambda", "0.5", "--num-envs", "2"])
    assert given == {"gae_lambda": 0.5, "num_envs": 2}


@pytest.mark.parametrize("script", ["brax_ppo.py", "benchmark.py", "scaling_out.py"])
def test_help_needs_no_extra(script, tmp_path):
    for name in ("brax", "flax", "matplotlib", "optax", "PIL", "rich", "rlax", "numba"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('an extra is imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(ROOT / "examples" / script), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout
