"""A training run around the algorithm: examples/brax_ppo/options.py, environment.py, processes.py and trainer.py."""

import dataclasses
import importlib.util
import json
import os
import socket
import sys
from typing import Any

import jax
import pytest

for package in ("brax", "flax", "matplotlib", "optax", "orbax.checkpoint", "rich", "tyro"):
    pytest.importorskip(package, reason="the script needs the extra `examples`")
environment, options, processes, trainer = map(pytest.importorskip, ("environment", "options", "processes", "trainer"))
Config: Any = pytest.importorskip("ppo").Config

pytestmark = pytest.mark.examples
CONFIG = dataclasses.asdict(Config())


def read(line):
    return options.read("", Config, line.split(" "))


def complaint_of(call, *arguments, capsys):
    """The one line with which a call refuses."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    complaint = complaint_of(trainer.restore, tmp_path, {}, capsys=capsys)
    assert complaint.startswith(f"error: the checkpoint in {tmp_path} is missing, damaged, or not one of this program")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--gamma 1.5", "--gamma must be a number from 0.0 to 1.0; got 1.5"),
        ("--gamma nan", "--gamma must be a number from 0.0 to 1.0; got nan"),
        ("--steps 0", "--steps must be a whole number from 1 to 1000000000; got 0"),
        ("--num-envs 1000000", "--num-envs × --num-steps must be at most 4194304; got 64000000"),
        ("--minibatches 7", "--minibatches must divide --num-envs × --num-steps / --devices; got 7 for 4096"),
        ("--devices 3", "--devices must divide --num-envs; got 3 for 64"),
        ("--out ", "the name of a directory is empty"),
        ("--resume --out /no/such", "there is no run in /no/such that can be used: [Errno 2]"),
        ("--process 1", "--process must be less than --processes, 0; got 1"),
        ("--processes 2 --coordinator here", "--coordinator must be HOST:PORT, such as 10.0.0.1:12345; got 'here'"),
        ("--processes 3 --devices 4 --coordinator a:1", "--devices must be a multiple of the number of processes, 3"),
    ],
)
def test_wrong_options_are_one_line(line, complaint, capsys):
    assert complaint_of(read, line, capsys=capsys).startswith(f"error: {complaint}")


def test_resume_takes_the_options_of_the_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"gamma": 0.5, "devices": 8}))
    assert read(f"--resume --out {tmp_path} --gamma 0.5").training == Config(gamma=0.5, devices=8)
    complaint = complaint_of(read, f"--resume --out {tmp_path} --gamma 0.9", capsys=capsys)
    assert complaint == f"error: --gamma: the run in {tmp_path} has 0.5; got 0.9\n"
    played = read(f"--play {tmp_path} --seed 3")  # in another evaluation episodes may begin otherwise
    assert (played.training, played.run.play) == (Config(gamma=0.5, devices=8, seed=3), str(tmp_path))


def test_a_run_is_overwritten_only_if_asked(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    for name in ("replay.gif", "notes.txt"):
        (tmp_path / name).write_text("")
    assert "has a run in it" in complaint_of(trainer.prepare, tmp_path, Config(), options.Run(), capsys=capsys)
    assert (tmp_path / "replay.gif").exists()
    trainer.prepare(tmp_path, Config(gamma=0.5), options.Run(overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "notes.txt"]
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG | {"gamma": 0.5}


@pytest.mark.parametrize(("cores", "num_envs", "devices"), [(1, 64, 1), (2, 64, 2), (64, 64, 8), (8, 6, 6)])
def test_by_default_there_is_a_device_per_core(cores, num_envs, devices, monkeypatch):
    settings = {}
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(jax, "device_count", lambda: settings["jax_num_cpu_devices"])
    monkeypatch.setattr(jax, "local_device_count", jax.device_count)
    assert processes.with_devices(Config(num_envs=num_envs), options.Cluster()).devices == devices
    assert settings == {"jax_num_cpu_devices": min(cores, 8)}
    assert processes.with_devices(Config(devices=16), options.Cluster()) == Config(devices=16)


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch, capsys):
    for name, number in {"process_count": 2, "device_count": 6, "local_device_count": 4}.items():
        monkeypatch.setattr(jax, name, lambda number=number: number)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    complaint = complaint_of(processes.with_devices, Config(devices=4), options.Cluster(2), capsys=capsys)
    assert complaint.startswith("error: --devices differs between processes, or the machines have different numbers")


def test_a_port_that_is_taken_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(processes, "explain_aborts", lambda: None)  # it would take the standard error of the tests
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        complaint = complaint_of(processes.connect, options.Cluster(2, 0, address), capsys=capsys)
    assert complaint.startswith(f"error: --coordinator: cannot listen at {address}: [Errno 98] Address already in use")


def test_constants_of_mjx_are_on_a_device_of_this_process(monkeypatch):
    (fourth,) = jax.devices()[3:4]
    monkeypatch.setattr(jax, "local_devices", lambda: [fourth])
    made = environment.make(Config(env="inverted_pendulum", backend="generalized")).unwrapped
    assert made.sys.geom_pos.devices() == {fourth}


@pytest.mark.parametrize(("missing", "target"), [("gae_jax", "."), ("tyro", "'.[examples]'")])
def test_a_package_that_is_not_installed_is_named(missing, target, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    monkeypatch.delitem(sys.modules, "environment")
    complaint = complaint_of(importlib.import_module, "environment", capsys=capsys)  # the first import of all files
    assert complaint == f"error: {missing} not installed; run: pip install -e {target}\n"
