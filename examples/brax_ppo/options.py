"""The options of the command line: types, ranges, and how they fit together."""

import dataclasses
import json
import pathlib
import re
import typing
from typing import Annotated, Any

import tyro
from environment import refuse

Count = Annotated[int, (1, 1_000_000)]  # types of options, each with its least and its largest value
Steps = Annotated[int, (1, 1_000_000_000)]
Seed = Annotated[int, (0, 2**32 - 1)]
Devices = Annotated[int, (0, 4096)]
Fraction = Annotated[float, (0.0, 1.0)]
Positive = Annotated[float, (1e-12, 1e12)]

mode, directory = tyro.conf.create_mutex_group(required=False), tyro.conf.arg(metavar="DIR")


@dataclasses.dataclass(frozen=True)
class Run:
    """What to do, and where. None of it changes the result."""

    out: Annotated[str | None, directory] = None  # for the results; by default runs/ENV-seedSEED
    resume: Annotated[bool, mode] = False  # go on from the checkpoint in --out, with its options
    overwrite: Annotated[bool, mode] = False  # delete the run in --out and start anew
    play: Annotated[str | None, directory, mode] = None  # no training: evaluate the policy of a run, draw an episode


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several machines, with one process each. JAX finds TPU pods, Slurm and GKE without these options."""

    processes: int = 0  # number of processes; 0: as many as JAX finds, or one
    process: int = 0  # number of this process, from 0
    coordinator: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = ""  # address of process 0, for all processes


def read(description: str, config_type: type[Any], arguments: list[str] | None = None) -> Any:
    """Returns the options: training, run, cluster. Those of a run that is resumed or played are the defaults."""
    groups = [("training", config_type), ("run", Run), ("cluster", Cluster)]
    options_type: Any = dataclasses.make_dataclass("Options", groups)

    def parse(config: Any) -> Any:
        how = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
        default = options_type(config, Run(), Cluster())
        options = tyro.cli(options_type, description=description, args=arguments, default=default, config=how)
        if "" in (options.run.out, options.run.play):
            refuse("the name of a directory is empty")
        processes, process, coordinator = dataclasses.astuple(options.cluster)
        if not 0 <= process < max(1, processes):
            refuse(f"--process must be less than --processes, {processes}; got {process}")
        if processes > 1 and not re.fullmatch(r".+:\d{1,5}", coordinator):
            refuse(f"--coordinator must be HOST:PORT, such as 10.0.0.1:12345; got {coordinator!r}")
        check(options.training, processes or 1)
        return options

    options = parse(config_type())
    if not (options.run.resume or options.run.play):
        return options
    source = source_of(options)
    try:
        stored = config_type(**json.loads((source / "config.json").read_text()))
    except (OSError, TypeError, ValueError) as error:
        refuse(f"there is no run in {source} that can be used: {error}")
    options = parse(stored)
    for name, old in dataclasses.asdict(stored).items():
        if (new := getattr(options.training, name)) != old and not (options.run.play and name == "seed"):
            refuse(f"--{name.replace('_', '-')}: the run in {source} has {old}; got {new}")
    return options


def source_of(options: Any) -> pathlib.Path:
    """Returns the directory of the run that is trained, resumed or played."""
    config, run = options.training, options.run
    return pathlib.Path(run.play or run.out or f"runs/{config.env}-seed{config.seed}")


def check(config: Any, processes: int) -> None:
    """Refuses an option that is out of its range or of another type than its hint, and options that do not fit."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        if typing.get_origin(hint) is Annotated:
            value, (kind, (least, most)) = getattr(config, name), typing.get_args(hint)
            if type(value) is not kind or not least <= value <= most:
                wanted = f"{'a whole' if kind is int else 'a'} number from {least} to {most}"
                refuse(f"--{name.replace('_', '-')} must be {wanted}; got {value}")
    rows, devices, product = config.num_envs * config.num_steps, config.devices or 1, "--num-envs × --num-steps"
    if rows > 2**22:
        refuse(f"{product} must be at most {2**22}; got {rows}")
    if config.num_envs % devices:
        refuse(f"--devices must divide --num-envs; got {devices} for {config.num_envs}")
    if (rows := rows // devices) % config.minibatches:
        refuse(f"--minibatches must divide {product} / --devices; got {config.minibatches} for {rows}")
    if config.devices % processes:
        refuse(f"--devices must be a multiple of the number of processes, {processes}; got {devices}")
