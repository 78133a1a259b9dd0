"""LightningCLI for diffusion models: run directories, safe checkpoints, loggers."""

import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
from jsonargparse import Namespace
from lightning import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lit_ddpm.cli.errors import OneLineParser
from lit_ddpm.cli.trainer import Trainer
from lit_ddpm.training.checkpoint import check_file, usable_file
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunLogger, SaveRunConfig, check_run_directory

DESCRIPTION = (
    "Trains, measures and samples denoising diffusion models. `lit-ddpm compare` trains several and compares them."
)


class DDPMCLI(LightningCLI):
    """LightningCLI for `DDPM` and its subclasses, with any data module; model and data are named by ``class_path``.

    Args:
        args: The arguments, or None for those of the process.
        run: Whether they begin with a command, which is run; else model, data and Trainer are only made from them.
    """

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
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
            args=args,
            run=run,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, each with the arguments of the Trainer's method that are no settings."""
        commands = LightningCLI.subcommands()
        commands["predict"] = commands["predict"] | {"return_predictions"}
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Gives model and data a default, so that a checkpoint alone is enough to test it."""
        parser.set_defaults(
            {"model": {"class_path": "lit_ddpm.DDPM"}, "data": {"class_path": "lit_ddpm.data.DigitsDataModule"}}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and checks the checkpoint before anything is made from it."""
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        config = self.config[command] if command else self.config
        if not isinstance(config.trainer, Namespace):  # which jsonargparse lets pass
            raise ValueError(f"trainer = {config.trainer!r} must be a block of settings.")
        if not command:
            return
        if config.get("weights_only") is None:
            config.weights_only = True
        if config.ckpt_path and config.ckpt_path not in ("last", "best", "hpc", "registry"):
            path = Path(config.ckpt_path)
            if command == "fit":  # which can go on from an earlier one
                config.ckpt_path = str(usable_file(path))
            else:
                check_file(path)
        self._asked_for = config.model.clone()

    def before_instantiate_classes(self) -> None:
        """Checks the run's directory, and says what a checkpoint overrules."""
        command = self.subcommand
        if command is None:
            return
        config = self.config[command]
        _complete_wandb_loggers(config.trainer)
        if command == "fit":
            differ = _differences(self._asked_for.as_dict(), config.model.as_dict())
            if differ:
                rank_zero_warn(f"The checkpoint's own settings are used for model {', '.join(differ)}.")
        if not config.trainer.fast_dev_run:
            new = command == "fit" and not config.ckpt_path
            rank_zero_only(check_run_directory)(Path(config.trainer.default_root_dir), new)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """The Trainer, with the run's own logger before those of the configuration."""
        config = self._get(self.config_init, "trainer")
        loggers = config.get("logger")
        if loggers is not False and not config.get("fast_dev_run"):
            directory = config["default_root_dir"]
            kwargs["logger"] = [RunLogger(directory), *_configured_loggers(loggers, directory)]
        return super().instantiate_trainer(**kwargs)


def _complete_wandb_loggers(trainer: Namespace) -> None:
    """Has W&B write into the run's directory, under an id that its configuration keeps for later commands."""
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and logger.get("class_path", "").endswith("WandbLogger"):
            arguments = logger.init_args
            if not arguments.get("id") and not arguments.get("version"):
                arguments.id = uuid.uuid4().hex[:12]
            if arguments.get("save_dir") == ".":
                arguments.save_dir = trainer.default_root_dir


def _configured_loggers(loggers: Any, directory: str) -> list[Logger]:
    if loggers is None or loggers is True:
        return [TensorBoardLogger(directory, name="tensorboard", version="")] if find_spec("tensorboard") else []
    return list(loggers) if isinstance(loggers, list | tuple) else [loggers]


def _differences(asked: Any, used: Any, name: str = "") -> list[str]:
    """The names of the settings whose values differ between two nested dicts."""
    if not (isinstance(asked, dict) and isinstance(used, dict)):
        return [name] if asked != used else []
    names = [k for k in asked if k in used]
    return [d for key in names for d in _differences(asked[key], used[key], f"{name}.{key}" if name else key)]
