"""The cost of a configuration: counted FLOPs, and hours on an H100.

FLOPs of a network call are counted by `torch.utils.flop_counter`; a training step counts as three calls. The hours
follow from the FLOP/s that training reaches there, in bf16 and compiled, see ``gpu``.
"""

from argparse import Namespace

from benchmarks.common.fits import configured
from benchmarks.common.report import table
from lit_ddpm.callbacks import SampleMetrics
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.cost import PASSES, forward_flops

H100_TFLOPS = 90.0
"""What ``gpu`` measured in training CIFAR-10: 2,427 images/s, each of three forward passes of 12.4 GFLOPs."""

OPTIONS = {
    "--configs": {"nargs": "+", "default": ["cifar10", "cifar10_hour"], "help": "shipped configurations or files"},
    "--train_images": {"type": int, "default": 45_000},
    "--test_images": {"type": int, "default": 10_000},
}


def cost(config: str, train_images: int, test_images: int) -> dict[str, float]:
    """Returns parameters, FLOPs of a network call, steps, and FLOPs of training, the exact bound and FID."""
    cli = configured(config, "--trainer.accelerator=cpu", "--trainer.precision=32-true")
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    module.observe(DataSpec.of(data))
    flops = forward_flops(module)
    assert flops is not None
    steps = trainer.max_epochs * (train_images // data.batch_size)
    calls = module.sampler.num_steps or module.denoiser.schedule.num_steps
    samples = sum(callback.num_samples for callback in trainer.callbacks if isinstance(callback, SampleMetrics))
    return {
        "parameters": sum(weight.numel() for weight in module.denoiser.network.parameters()),
        "network call": flops,
        "steps": steps,
        "training": PASSES * flops * steps * data.batch_size,
        "exact bound": flops * test_images * module.denoiser.schedule.num_steps,
        "FID": flops * samples * calls,
    }


def main(args: Namespace) -> dict[str, dict[str, float]]:
    """Prints a table for each configuration."""
    figures = {config: cost(config, args.train_images, args.test_images) for config in args.configs}
    for config, found in figures.items():
        size = f"{found['parameters']:,} parameters, {found['network call']:.3g} FLOPs for a network call"
        print(f"\n`{config}`: {size}, {found['steps']:,} steps\n")
        parts = ("training", "exact bound", "FID")
        rows = [[part, f"{found[part]:.2g}", f"{found[part] / (H100_TFLOPS * 3.6e15):.2g}"] for part in parts]
        print(table(["", "FLOPs", f"hours on an H100 at {H100_TFLOPS:g} TFLOP/s"], rows))
    return figures
