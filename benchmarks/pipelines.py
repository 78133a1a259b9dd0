"""A model of diffusers, measured and sampled by lit_ddpm.

Trains a ``UNet2DModel`` on the digits with the loop of the diffusers guide, imports it with ``lit-ddpm import``, and
measures it with ``lit-ddpm test``. Prints the bound, the difference of the samples that both programs draw from the
same noise, and the time of the exact bound relative to its network calls alone.
"""

import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from benchmarks.common.clock import in_turns, seconds
from benchmarks.common.images import write_grid
from benchmarks.common.pipelines import pipeline_samples, train_pipeline
from benchmarks.common.report import ratios, spread, table
from lit_ddpm import AncestralSampler, Denoiser, DiscretizedGaussian, variational_bound
from lit_ddpm.__main__ import main as lit_ddpm
from lit_ddpm._internal.files import read_json_lines
from lit_ddpm.data import DigitsDataModule, to_float, to_uint8
from lit_ddpm.likelihood.report import Report
from lit_ddpm.pipelines import load_pipeline
from lit_ddpm.training.run_directory import RunDirectory

OPTIONS = {
    "--seconds": {"type": float, "default": 60, "help": "training time"},
    "--steps": {"type": int, "default": 10**9, "help": "training steps at most"},
    "--images": {"type": int, "default": 360, "help": "test images"},
    "--samples": {"type": int, "default": 1000, "help": "samples for the FID"},
    "--rounds": {"type": int, "default": 5},
    "--pictures": {"type": Path, "help": "a folder for the samples of both programs"},
}


@torch.no_grad()
def bound_and_calls(denoiser: Denoiser, rounds: int) -> dict[str, list[float]]:
    """Times the exact bound of 64 images and its network calls alone."""
    data = DigitsDataModule()
    images = to_float(data.splits()["test"].images[:64], data.levels)
    T = denoiser.schedule.num_steps

    def call() -> None:
        for t in range(1, T + 1):
            denoiser.network(images, torch.full((len(images),), t))

    bound = partial(variational_bound, denoiser, images, DiscretizedGaussian(data.levels))
    return in_turns({"bound": partial(seconds, bound), "calls": partial(seconds, call)}, rounds, warm_up=True)


def main(args: Namespace) -> dict[str, Any]:
    """Trains, imports, measures and samples."""
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    pipeline = train_pipeline(scheduler, args.steps, args.seconds)
    with tempfile.TemporaryDirectory() as place:
        theirs, run = Path(place) / "theirs", RunDirectory(Path(place) / "runs")
        pipeline.save_pretrained(theirs)
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        batch = min(args.images, 180)
        few = [f"--data.eval_batch_size={batch}", f"--trainer.limit_test_batches={max(2, args.images // batch)}"]
        metrics = "--trainer.callbacks+={class_path: lit_ddpm.callbacks.SampleMetrics, init_args: "
        metrics += f"{{extractor: lit_ddpm.metrics.DigitsFeatures, num_samples: {args.samples}, is_splits: 1}}}}"
        lit_ddpm(
            ["import", str(theirs), "--data=lit_ddpm.data.DigitsDataModule", "--output_dir", str(run.path), metrics]
        )
        lit_ddpm(["test", "--ckpt_path", str(run.last_checkpoint), *quiet, *few])
        report, model = Report.load(run.report), load_pipeline(theirs)
        (record,) = read_json_lines(run.sample_metrics)
    drawn = pipeline_samples(pipeline, 64)
    ours = model.sample(64, sampler=AncestralSampler())
    difference = float((drawn - ours.clamp(-1, 1)).abs().max())
    times = bound_and_calls(model.denoiser.eval(), args.rounds)
    total = report.terms["total"]
    rows = [
        ["bits/dim", f"{total.value:.4f} ± {total.se_images:.4f}"],
        [f"FID of {args.samples:,} samples", f"{record['metrics']['fid']:.2f}"],
        ["largest difference of 64 samples from the same noise", f"{difference:.1e}"],
        ["exact bound, s", spread(times["bound"])],
        ["its network calls alone, s", spread(times["calls"])],
        ["ratio", ratios(times["bound"], times["calls"])],
    ]
    print(f"\n{table(['', 'value'], rows)}")
    if args.pictures:
        for name, images in (("diffusers", drawn), ("lit_ddpm", ours)):
            write_grid(
                args.pictures / f"{name}.png", to_uint8(images).repeat_interleave(3, 2).repeat_interleave(3, 3), 8
            )
    return {"bits_per_dim": total.value, "fid": record["metrics"]["fid"], "difference": difference, "seconds": times}
