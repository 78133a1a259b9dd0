"""LightningCLI for diffusion models: run directories, safe checkpoints and default callbacks."""

import logging
import os
import sys
import uuid
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import lightning
from jsonargparse import Namespace
from lightning import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.cli.arguments import (
    local_copy,
    temporary_config,
    with_bare_flags,
    with_config_files,
    with_last_config,
)
from lit_ddpm.cli.checkpoints import default_checkpoints
from lit_ddpm.cli.errors import Constructor, OneLineParser, reads_settings
from lit_ddpm.cli.trainer import Trainer
from lit_ddpm.data.protocols import HasHeldOut
from lit_ddpm.training.checkpoint import init_weights, load_checkpoint, usable_checkpoint
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory, RunLogger, SaveRunConfig, new_directory

DESCRIPTION = "Trains, evaluates and samples denoising diffusion models. `lit-ddpm compare` compares several."


class DDPMCLI(LightningCLI):
    """LightningCLI for `DDPM` and its subclasses with any data module; ``class_path`` names model and data.

    Args:
        args: The arguments, or None for those of the process.
        run: Whether they begin with a command to run. If not, model, data and Trainer are only built from them.
    """

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        self._command = next(iter(sys.argv[1:] if args is None else args), None)
        super().__init__(
            DDPM,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},  # a resumed run writes its configuration again
            trainer_class=Trainer,
            parser_class=OneLineParser,
            parser_kwargs={"description": DESCRIPTION},
            trainer_defaults={"default_root_dir": "runs/ddpm"},
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=None if args is None else with_config_files(with_bare_flags(args)),
            run=run,
        )

    @classmethod
    def without_command(cls, args: list[str]) -> "DDPMCLI":
        """Builds model, data and Trainer, without the messages that the commands print later."""
        logging.disable(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
                return cls(args, run=False)
        finally:
            logging.disable(logging.NOTSET)

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        commands["predict"] = commands["predict"] | {"return_predictions"}
        commands["gradients"] = {"model", "datamodule"}
        return commands

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        # Of Lightning 2.6, which builds the parsers of all commands: a quarter of the time before a command starts.
        if self._command in self.subcommands() and subcommand != self._command:
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Defaults, so that a checkpoint alone is enough for a test.
        defaults = {"model": "lit_ddpm.DDPM", "data": "lit_ddpm.data.DigitsDataModule"}
        parser.set_defaults({name: {"class_path": path} for name, path in defaults.items()})
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="fine-tune: fit from those weights of this checkpoint that fit, unless ckpt_path resumes a run",
        )
        parser.add_argument(
            "--number_run",
            type=bool,
            default=False,
            help="fit into the first new directory of DIR, DIR_2, DIR_3, ..., where DIR is trainer.default_root_dir",
        )
        parser.add_argument("--extends", type=_ignore, help="in a configuration file: the file that it extends")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        config = self.config[command] if command else self.config
        if not isinstance(config.trainer, Namespace):  # jsonargparse accepts any value
            raise InputError(f"trainer = {config.trainer!r} must be a block of settings.")
        if not command:
            return
        if config.get("weights_only") is None:
            config.weights_only = True
        self._initial_weights: Path | None = None
        # Files are checked before anything is built.
        if config.ckpt_path:
            if config.ckpt_path.partition(":")[0] not in ("last", "hpc", "registry"):
                path = local_copy(config.ckpt_path)
                if command == "fit":  # an earlier checkpoint can replace a damaged one
                    path = usable_checkpoint(path)
                else:
                    if hparams := load_checkpoint(path).get("hyper_parameters"):
                        given = sys.argv[1:] if args is None else cast(list[str], args)
                        self._parse_with_checkpoint(parser, given, hparams)
                        config = self.config[command]
                config.ckpt_path = str(path)
        elif command == "fit" and config.init_from:
            self._initial_weights = local_copy(config.init_from)
            load_checkpoint(self._initial_weights, setting="init_from")
        self._requested_model = config.model.clone()

    def _parse_with_checkpoint(self, parser: LightningArgumentParser, args: list[str], hparams: dict[str, Any]) -> None:
        """Parses the arguments again: the settings of a checkpoint override configurations, and flags override both."""
        model = {"class_path": hparams.get("_class_path", self.config[self.config.subcommand].model.class_path)}
        init_args = {name: value for name, value in hparams.items() if not name.startswith("_")}
        with temporary_config({"model": {**model, "init_args": init_args}}) as file:
            super().parse_arguments(parser, with_last_config(args, file))

    @override
    def _parse_ckpt_path(self) -> None:  # of Lightning 2.6, where the settings of the checkpoint override flags
        if self.config.get("subcommand") == "fit":
            super()._parse_ckpt_path()

    @override
    def before_instantiate_classes(self) -> None:
        """Prepares the run directory, and reports the settings that the checkpoint overrides."""
        command = self.subcommand
        if command is None:
            return
        config = self.config[command]
        _complete_wandb_loggers(config.trainer)
        if command == "fit":
            different = _differences(self._requested_model.as_dict(), config.model.as_dict())
            if different:
                rank_zero_warn(f"The settings of the checkpoint are used for model {', '.join(different)}.")
        if not config.trainer.fast_dev_run:
            new_run = command == "fit" and not config.ckpt_path
            path = Path(config.trainer.default_root_dir)
            if new_run and config.number_run:
                path = rank_zero_only(new_directory)(path) or path  # Lightning sends it to the other ranks
                config.trainer.default_root_dir, config.number_run = str(path), False  # for a resumed run
            rank_zero_only(RunDirectory(path).prepare)(new_run)

    @override
    def instantiate_classes(self) -> None:
        """Builds model, data and Trainer.

        The error of a constructor is raised itself; jsonargparse would list the errors of all types of a union.
        """
        constructor = Constructor()
        self.parser.add_instantiator(constructor, object)
        try:
            super().instantiate_classes()
            return
        except ValueError as error:
            # LightningCLI calls the constructors of model and data.
            cause = constructor.error or error.__cause__
            failure = cause if type(error) is ValueError and cause else error
        raise failure

    def before_fit(self) -> None:
        """Loads the initial weights of a fine-tuning."""
        if self._initial_weights is not None:
            init_weights(self.model, self._initial_weights)

    def before_predict(self) -> None:
        """Removes the data, since the command draws the images of a seed; conditions are those of the test images."""
        data = self.datamodule
        if (
            isinstance(self.model, DDPM)
            and self.model.denoiser.network_spec.cond_channels is not None
            and isinstance(data, HasHeldOut)
        ):
            cast(LightningDataModule, data).setup("predict")
            self.model.condition_on(data, "test")
        self.datamodule = None

    @override
    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Returns the Trainer with the loggers and callbacks of the configuration and of the command."""
        config = self._get(self.config_init, "trainer")
        loggers = config.get("logger")
        if loggers is not False and not config.get("fast_dev_run"):
            directory = config["default_root_dir"]
            kwargs["logger"] = [RunLogger(directory), *_configured_loggers(loggers, directory)]
        callbacks = _as_list(config.get("callbacks"))
        if config.get("enable_checkpointing") is not False:
            callbacks += default_checkpoints(callbacks, config)
        kwargs["callbacks"] = callbacks
        with reads_settings():
            return super().instantiate_trainer(**kwargs)


def _ignore(value: str) -> None:
    """Ignores the value of ``extends``, which `with_config_files` resolves before parsing."""


def _complete_wandb_loggers(trainer: Namespace) -> None:
    """Sets W&B's directory to that of the run, and an identifier that the saved configuration keeps."""
    for logger in _as_list(trainer.get("logger")):
        if isinstance(logger, Namespace) and logger.get("class_path", "").endswith("WandbLogger"):
            if find_spec("wandb") is None:
                raise InputError('WandbLogger needs wandb: pip install "lit-ddpm[wandb]".')
            arguments = logger.init_args
            if not arguments.get("id") and not arguments.get("version"):
                # WANDB_RUN_ID is that of a sweep. YAML would read digits around an "e" as a number, so a letter begins.
                arguments.id = os.environ.get("WANDB_RUN_ID") or f"r{uuid.uuid4().hex[:11]}"
            if arguments.get("save_dir") == ".":
                arguments.save_dir = trainer.default_root_dir


def _configured_loggers(loggers: Any, directory: str) -> list[Logger]:
    if loggers is None or loggers is True:
        return [TensorBoardLogger(directory, name="tensorboard", version="")] if find_spec("tensorboard") else []
    return _as_list(loggers)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _differences(requested: Any, actual: Any, name: str = "") -> list[str]:
    """Returns the names of the settings that differ between two nested dicts."""
    if not (isinstance(requested, dict) and isinstance(actual, dict)):
        return [name] if requested != actual else []
    keys = [key for key in requested if key in actual]
    nested = (_differences(requested[key], actual[key], f"{name}.{key}" if name else key) for key in keys)
    return [difference for names in nested for difference in names]
