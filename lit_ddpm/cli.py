"""The command ``lit-ddpm``: Lightning's ``fit``, ``validate``, ``test`` and ``predict`` for diffusion models."""

import hashlib
import logging
import sys
import uuid
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from lit_ddpm.callbacks.sample_writer import SampleWriter
from lit_ddpm.checkpoint import check_file
from lit_ddpm.configurable import as_config
from lit_ddpm.errors import OneLineParser, sentence_of, stop
from lit_ddpm.features import identity_of
from lit_ddpm.module import DDPM
from lit_ddpm.run_directory import CONFIG, RunLogger, SaveRunConfig, check_run_directory, run_directory


class Trainer(lightning.Trainer):
    """Lightning's Trainer, whose ``test`` prints the ledger alone and whose ``predict`` makes samples without data."""

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = False,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measures the whole variational bound on the test split, and prints and writes the ledger.

        Args:
            model: The model.
            dataloaders: See Lightning's Trainer.
            ckpt_path: The checkpoint to test.
            verbose: Print every logged value too.
            datamodule: The data.
            weights_only: See Lightning's Trainer.
        """
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        num_samples: int = 64,
        seed: int = 0,
        output_dir: str | None = None,
    ) -> Any:
        """Makes samples and writes them as PNG and as one .npz file; started again, it makes those that are missing.

        Args:
            model: The model.
            dataloaders: Instead of samples, what to call ``predict_step`` on.
            datamodule: Not used: samples need no data.
            return_predictions: See Lightning's Trainer.
            ckpt_path: The checkpoint to sample from.
            weights_only: See Lightning's Trainer.
            num_samples: The number of samples.
            seed: The seed of the samples; sample number i of a seed is always the same.
            output_dir: Where to write them; the directory ``predict`` of the run if not given.
        """
        if dataloaders is None and isinstance(model, DDPM):
            if num_samples < 1:
                raise ValueError(f"num_samples = {num_samples} must be at least 1.")
            directory = Path(output_dir) if output_dir is not None else run_directory(self) / "predict"
            writer = SampleWriter(directory, num_samples, _origin(model, ckpt_path, seed))
            size = model.sampler.chunk_size
            missing = list(writer.missing(size)) or [(0, min(size, num_samples))]
            chunks = [torch.tensor([seed, first, count]) for first, count in missing]
            dataloaders = DataLoader(cast(Dataset[torch.Tensor], chunks), batch_size=1, collate_fn=_only_item)
            # mypy does not see the list, which Lightning sets from outside the class
            self.callbacks.append(writer)  # type: ignore[attr-defined]
        return super().predict(model, dataloaders, None, return_predictions, ckpt_path, weights_only)


def _origin(model: DDPM, ckpt_path: str | Path | None, seed: int) -> dict[str, Any]:
    """What makes samples what they are."""
    from_file = ckpt_path is not None and Path(ckpt_path).is_file()
    weights = hashlib.sha256(Path(str(ckpt_path)).read_bytes()).hexdigest() if from_file else identity_of(model)
    return {"weights": weights, "sampler": as_config(model.sampler), "guidance": model.guidance, "seed": seed}


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]


class DDPMCLI(LightningCLI):
    """LightningCLI for `DDPM` and its subclasses, with any data module; model and data are named by ``class_path``.

    Args:
        args: The arguments, or None for those of the process.
    """

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            DDPM,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},  # a resumed run writes its configuration again
            trainer_class=Trainer,
            parser_class=OneLineParser,
            parser_kwargs={"description": "Trains, measures and samples denoising diffusion models."},
            trainer_defaults={"default_root_dir": "runs/ddpm"},
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
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
        config = self.config[self.config.subcommand]
        if config.get("weights_only") is None:
            config.weights_only = True
        if config.ckpt_path and config.ckpt_path not in ("last", "best", "hpc", "registry"):
            check_file(Path(config.ckpt_path))
        self._asked_for = config.model.clone()

    def before_instantiate_classes(self) -> None:
        """Checks the run's directory, and says what a checkpoint overrules."""
        command = self.config.subcommand
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


def with_config_of_run(args: Sequence[str]) -> list[str]:
    """Adds the configuration beside the checkpoint if the arguments name a checkpoint and no configuration."""
    named = [arg.split("=", 1) for arg in args]
    flags = [pair[0] for pair in named]
    if "--ckpt_path" not in flags or "--config" in flags or "-c" in flags:
        return list(args)
    at = flags.index("--ckpt_path")
    path = named[at][1] if len(named[at]) == 2 else "".join(args[at + 1 : at + 2])
    folder = Path(path).parent
    config = folder.parent / CONFIG
    of_run = folder.name == "checkpoints" and config.is_file()
    return [args[0], "--config", str(config), *args[1:]] if of_run else list(args)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; bad input ends it with one sentence and exit code 2.

    Args:
        args: The arguments, or None for those of the process.
    """
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", ".*recommended to use `Trainer\\(devices=1.*")  # repetitions are left out
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    try:
        DDPMCLI(with_config_of_run(sys.argv[1:] if args is None else args))
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        stop(sentence)
