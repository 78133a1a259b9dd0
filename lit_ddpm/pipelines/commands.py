"""``lit-ddpm import`` and ``lit-ddpm export``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.arguments import local_copy, temporary_config
from lit_ddpm.cli.configs import shipped_configs
from lit_ddpm.cli.errors import ArgumentParser
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.pipelines.load import load_pipeline
from lit_ddpm.pipelines.save import save_pipeline
from lit_ddpm.training.checkpoint import load_checkpoint
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory
from lit_ddpm.training.setup import check_data

FINE_TUNING: dict[str, Any] = {
    "timesteps": {"class_path": "lit_ddpm.UniformTimesteps"},
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "weight_decay": 0.0}},
    "lr_scheduler": None,
}
"""How ``fit`` trains an imported model, in place of the settings for the model of the data's configuration."""


def run_import(args: Sequence[str]) -> None:
    """Runs the command ``import``."""
    parser = ArgumentParser(
        "lit-ddpm import",
        description="Writes a run directory for a model of diffusers, for `test`, `predict`, `compare` and `fit`. "
        "Other flags of `lit-ddpm fit` apply, such as --data.root and --model.variance.",
    )
    parser.add_argument("source", help="a directory of diffusers, or the name of a model on the Hugging Face Hub")
    parser.add_argument("--data", required=True, help="a configuration, for its data and trainer, or a data module")
    parser.add_argument("--output_dir", help="the run directory; runs/NAME if left out")
    parser.add_argument("--no_label", action="store_true", default=None, help='the last class means "no label"')
    known, overrides = parser.parse_known_args(args)
    directory = Path(known.output_dir or f"runs/{Path(known.source).name}")
    run = import_pipeline(known.source, known.data, directory, known.no_label, overrides)
    print(f"written to {run.path}; measure it with `lit-ddpm test --ckpt_path {run.last_checkpoint}`")


def import_pipeline(
    source: str, data: str, directory: Path, no_label: bool | None = None, overrides: Sequence[str] = ()
) -> RunDirectory:
    """Writes a run directory for a model of diffusers, whose checkpoint is one before the first step.

    Args:
        source: The model, see `load_pipeline`.
        data: A configuration by name or file, for its data and trainer, or the class path of a data module.
        directory: The run directory.
        no_label: See `load_pipeline`.
        overrides: Flags of ``lit-ddpm fit``.

    Raises:
        ValueError: If the model cannot be loaded, does not fit the data, or the directory contains a run.
    """
    run = RunDirectory(directory)
    model = load_pipeline(source, no_label)
    init_args = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
    config = {
        "model": {"class_path": "lit_ddpm.DDPM", "init_args": init_args | FINE_TUNING},
        "trainer": {"default_root_dir": str(directory), "gradient_clip_val": 1.0},
    }
    is_config = Path(data).is_file() or data in shipped_configs()
    with temporary_config(config) as file:
        data_args = [f"--config={data}", f"--config={file}"] if is_config else [f"--config={file}", f"--data={data}"]
        cli = DDPMCLI.without_command([*data_args, *overrides])
    imported, info = cli.model, DataSpec.of(cli.datamodule)
    assert isinstance(imported, DDPM)
    imported.denoiser.network.load_state_dict(model.denoiser.network.state_dict())
    imported.observe(info.completed(model.data))
    check_data(info, imported)
    run.prepare(new_run=True)
    run.save_config(cli.parser, cli.config)
    cli.trainer.callbacks.clear()  # type: ignore[attr-defined]  # they have no state yet
    cli.trainer.strategy.connect(imported)
    cli.trainer.save_checkpoint(run.last_checkpoint, weights_only=False)
    return run


def run_export(args: Sequence[str]) -> None:
    """Runs the command ``export``."""
    parser = ArgumentParser(
        "lit-ddpm export",
        description="Writes a checkpoint as a DDPMPipeline of diffusers, with a model card.",
    )
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint")
    parser.add_argument("--output_dir", required=True, help="the directory to write")
    parser.add_argument("--num_samples", type=int, default=16, help="images of the model card (default: 16)")
    known = parser.parse_args(args)
    path = local_copy(known.ckpt_path)
    load_checkpoint(path)
    model = DDPM.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    save_pipeline(model, known.output_dir, RunDirectory.of_checkpoint(path), known.num_samples)
    print(f"written to {known.output_dir}")
