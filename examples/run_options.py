"""Options of a training run: those that decide the result, and those that say what to do and where."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import checkpoints
import numpy as np
from command_line import Parser, count, index, refuse

RESULTS = ("learning_curve.png", "metrics.csv", "policy.npz", "config.json", "checkpoint.npz")
REPLAY = ("replay.gif", "replay.html")


class Run(NamedTuple):
    """The options that do not decide the result, and the arrays of an earlier run."""

    directory: pathlib.Path  # for the results
    processes: int
    process: int
    coordinator: str
    stored: dict[str, np.ndarray] | None  # the checkpoint to go on from, or the policy to play


def option(default: Any, text: str, kind: Callable[[str], Any] = count) -> Any:
    """A field of a dataclass that is an option of the command line: default, help, and the parser of the value."""
    return dataclasses.field(default=default, metadata={"help": text, "type": kind})


def flag(name: str) -> str:
    """Returns the option of a field."""
    return "--" + name.removeprefix("gae_").replace("_", "-")


def read(
    description: str, config_type: type[Any], arguments: list[str] | None = None
) -> tuple[dict[str, Any], argparse.Namespace]:
    """Returns the fields of the config that the command line gives, and all other options."""
    parser, fields = Parser(description), dataclasses.fields(config_type)
    recipe = parser.add_argument_group("options that decide the result")
    for field in fields:
        how = {"default": field.default, "type": field.metadata["type"], "help": field.metadata["help"]}
        recipe.add_argument(flag(field.name), dest=field.name, metavar="X", **how)
    others = parser.add_argument_group("other options")
    text = "directory for the results; by default runs/ENV-seedSEED"
    others.add_argument("--out", type=pathlib.Path, metavar="DIR", help=text)
    mode = others.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with its options")
    mode.add_argument("--overwrite", action="store_true", help="delete the run in --out and start anew")
    text = "no training: evaluate RUN/policy.npz and draw an episode, in RUN or --out"
    mode.add_argument("--play", type=pathlib.Path, metavar="RUN", help=text)
    text = "processes that share the devices; start each with the same options and a --process of its own"
    others.add_argument("--processes", type=count, default=1, metavar="X", help=text)
    others.add_argument("--process", type=index, default=0, metavar="X", help="number of this process, from 0")
    others.add_argument("--coordinator", default="127.0.0.1:12345", metavar="HOST:PORT", help="address of process 0")
    not_given = argparse.Namespace(**{field.name: None for field in fields})
    options = parser.parse_args(arguments, not_given)
    given = {field.name: vars(options).pop(field.name) for field in fields}
    return {name: x for name, x in given.items() if x is not None}, options


def recall(config_type: type[Any], given: dict[str, Any], options: argparse.Namespace) -> tuple[Any, Run]:
    """Returns the config and the other options, both with what an earlier run has to add."""
    config, stored = config_type(**given), None
    directory = options.out or options.play or pathlib.Path("runs") / f"{config.env}-seed{config.seed}"
    if options.resume:
        config, stored = stored_run(directory / "checkpoint.npz", config_type, given)
    elif options.play:
        free = ("seed", "eval_envs", "episode_length")  # these may differ in an evaluation
        config, stored = stored_run(options.play / "policy.npz", config_type, given, free)
        config = dataclasses.replace(config, devices=1)
    check_division(config, options)
    return config, Run(directory, options.processes, options.process, options.coordinator, stored)


def stored_run(
    path: pathlib.Path, config_type: type[Any], given: dict[str, Any], free: tuple[str, ...] = ()
) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns the config and the arrays of a file; only `free` options may differ from those in the file."""
    stored, arrays = checkpoints.read(path)
    try:
        stored = {x.name: x.metadata["type"](str(stored[x.name])) for x in dataclasses.fields(config_type)}
    except (KeyError, argparse.ArgumentTypeError) as error:
        refuse(f"{path} is damaged, or not a file of this program: its options: {error}")
    for name, x in given.items():
        if name not in free and stored[name] != x:
            refuse(f"{flag(name)}: the run in {path.parent} has {stored[name]}; got {x}")
    return config_type(**(stored | given)), arrays


def check_division(config: Any, options: argparse.Namespace) -> None:
    """Refuses numbers that do not divide what they split."""
    if config.num_envs % config.devices:
        refuse(f"--devices must divide --num-envs; got {config.devices} for {config.num_envs} environments")
    if (rows := config.num_envs * config.num_steps // config.devices) % config.minibatches:
        product = "--num-envs × --num-steps / --devices"
        refuse(f"--minibatches must divide {product}; got {config.minibatches} for {rows}")
    if config.devices % options.processes:
        refuse(f"--processes must divide --devices; got {options.processes} for {config.devices} devices")
    if options.process >= options.processes:
        refuse(f"--process must be less than --processes, {options.processes}; got {options.process}")


def clear(directory: pathlib.Path, overwrite: bool) -> None:
    """Deletes the results of an earlier run if `overwrite`, or else refuses to go on where there are any."""
    if any((directory / name).exists() for name in ("checkpoint.npz", "policy.npz")) and not overwrite:
        refuse(f"--out: {directory} has a run in it; --resume goes on with it, --overwrite deletes it")
    for name in (*RESULTS, *REPLAY):
        (directory / name).unlink(missing_ok=True)
