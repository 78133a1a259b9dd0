"""The programs under benchmarks/ start, and their tables are right."""

import json
import runpy
import sys
from argparse import Namespace
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import ROOT, set_up
from PIL import Image
from torch import nn

from benchmarks import bits, gpu, quality, scale, streaming
from benchmarks.__main__ import FILES
from benchmarks.common import report
from benchmarks.common.classifier import Classifier
from benchmarks.common.images import image_folder, random_images
from benchmarks.kernels import Convolutions, kind_of
from benchmarks.libraries.base import Budget
from lit_ddpm import UNet
from lit_ddpm.likelihood.report import Entry, Report
from lit_ddpm.training.run_directory import RunDirectory


@pytest.mark.parametrize("name", FILES)
def test_each_benchmark_has_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    assert stopped.value.code == 0
    assert f"benchmarks {name}" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit, match=r"'speed' is not a benchmark; choose from bits, budget, .*throughput"):
        runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)


def test_ratios_compare_within_a_round():
    """A machine that slows down between rounds does not change the ratios."""
    assert report.ratios([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == "2.00 (2.00 to 2.00)"
    assert report.spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert report.table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_convolutions_are_those_of_the_network(precision, monkeypatch):
    network = UNet(1, width=8, num_blocks=1)
    alone = Convolutions(network, torch.randn(2, 1, 8, 8), precision)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert {id(module) for module, _, _ in alone.calls} == {id(module) for module in convolutions}
    assert not alone.calls[0][1].requires_grad  # the images need no gradient
    assert all(x.requires_grad for _, x, _ in alone.calls[1:])
    backward_passes = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: backward_passes.append(original(*args)))
    alone.run(backward=False)
    assert backward_passes == []
    alone.run(backward=True)
    assert len(backward_passes) == len(alone.calls)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::native_group_norm_backward", "group norm"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::bmm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::_foreach_mul_", "optimizer, weight averaging, gradient norm"),
        ("aten::_fused_adamw_", "optimizer, weight averaging, gradient norm"),
        ("aten::add_", "additions and multiplications"),
        ("aten::randn", "other operators"),
    ],
)
def test_operators_are_grouped_by_kind(name, kind):
    assert kind_of(name) == kind


def test_gpu_in_miniature(capsys):
    """Without a GPU each part runs on the CPU, and nothing waits."""
    settings = {"width": 8, "batch_size": 2, "steps": 4, "rounds": 1, "minutes": 8, "calls": 4, "few": True}
    figures = gpu.main(Namespace(**settings))
    assert list(figures) == ["Training", "Evaluation beyond the network", "Precision of the bound", "Sampling"]
    assert set(figures["Training"]["seconds"]) == set(gpu.FEW_ROWS) <= set(gpu.ROWS)
    assert set(gpu.SAMPLED_ROWS) <= set(gpu.ROWS)
    assert not any(figures["Training"]["synchronizations"].values()) or torch.cuda.is_available()
    differences = figures["Precision of the bound"]
    assert differences["float32 without tf32"] < 1e-6 < differences["bfloat16"]
    assert "| diffusers, bf16-mixed |" in capsys.readouterr().out


def test_quality_in_miniature(tmp_path, monkeypatch):
    """Each program trains until its marks, and its figures are kept in a file."""
    for name, value in {"NUM_IMAGES": 2, "NUM_CALLS": 2, "NUM_SAMPLES": 4, "NUM_STEPS": 2}.items():
        monkeypatch.setattr(quality, name, value)
    monkeypatch.setattr(quality, "silence", lambda: None)
    images = random_images(count=120, size=28)[:, :1]
    metrics = quality.ImageMetrics(Classifier(28).eval(), images)
    found = {}
    with image_folder(images) as folder:
        for name, row in [*quality.ROWS["programs"].items(), ("all four", quality.ROWS["changes"]["all four"])]:
            small = replace(row, batch_size=8, options=(*row.options, "--data.batch_size=4"))
            path = tmp_path / f"{len(found)}.json"
            training = quality.Training(small, 0, (1e-4, 2e-4), folder, metrics, images, path)
            found[name] = [quality.run(training)]
            assert json.dumps(quality.run(training)) == json.dumps(found[name][0])  # from its file; a FID may be NaN
            sizes = found[name][0]["parameters"]
            assert sizes == pytest.approx(1.02e6, rel=0.12)
    quality.plot(tmp_path / "all.png", found)
    assert Image.open(tmp_path / "all.png").size[0] > 900
    lines = quality.quality_table(found).splitlines()
    assert len(lines) == 2 + 2 * len(found)
    assert lines[2].startswith("| lit_ddpm | 1.02 M | 0.0001 | 1 | ")


def test_a_budget_stops_the_clock_for_measurements(monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 5.0, 95.0, 97.0, 100.5, 100.5, 200.0]).__next__
    monkeypatch.setattr("benchmarks.libraries.base.time.process_time", clock)
    seen = []
    budget = Budget([4.0, 10.0], lambda mark, steps: seen.append((mark, steps)))
    assert [budget.step() for _ in range(3)] == [False, False, True]
    assert seen == [(4.0, 2), (10.0, 3)]


def test_scale_counts_networks_and_their_traffic(capsys):
    figures = scale.main(Namespace(**{flag[2:]: option["default"] for flag, option in scale.OPTIONS.items()}))
    counted = figures["counts"]["CIFAR-10"]
    assert counted["parameters"] == sum(w.numel() for w in UNet(3, width=128, multipliers=[1, 2, 2, 2]).parameters())
    assert counted["flops"] == pytest.approx(12.4e9, rel=0.01)  # Ho et al. 2020 name 6.2 G multiply-adds
    assert "| images/s | 9," in capsys.readouterr().out
    settings = {"gpus": 4, "batch_size": 8, "tflops": 1e-6, "link": 3e-9, "steps": 86_400, "test_images": 3600}
    planned = scale.plan(scale.Count(100, 10, 1e6, 2**30), Namespace(**settings, timesteps=4))
    ddp, fsdp = planned["DDP"], planned["FSDP2"]
    assert ddp["forward and backward passes (s)"] == "6.000"  # three passes of 1 MFLOP for two images at 1 MFLOP/s
    assert ddp["their time (s)"] == "200.000"  # 2 x 3/4 of 400 bytes at 3 bytes/s
    assert fsdp["their time (s)"] == "300.000"
    assert ddp["of it not hidden by the passes (s)"] == "196.000"
    assert fsdp["a step (s)"] == "300.000"
    assert ddp["the training (days)"] == "202.0"
    assert ddp["memory of a GPU: activations (GiB)"] == "2.0"
    assert ddp["the exact bound of 3,600 images (hours)"] == "1.0"


def test_streaming_in_miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "STEPS", 4)
    for number in range(10):
        (tmp_path / f"class_{number}").mkdir()
    streaming.write_images(tmp_path, 0, 400)
    assert len(list(tmp_path.rglob("*.jpg"))) == 400
    figures = streaming.measure(tmp_path)
    assert len(figures["memory"]) == len(streaming.SHARES) + 1
    assert min(figures["memory"]) > 100
    assert streaming.resumes_exactly(tmp_path)


REAL = ROOT.parent / "shared" / "data" / "mnist"


@pytest.mark.skipif(not REAL.is_dir(), reason="the MNIST files are absent")
def test_the_real_mnist_files_are_read():
    from benchmarks.common.images import MNISTFiles

    data = set_up(MNISTFiles(str(REAL)))
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 9000, "val": 200, "test": 800}
    labels = torch.cat([split.labels for split in data.splits().values()])
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_changes_of_the_bits_lead_to_the_shipped_digits(tmp_path, monkeypatch, capsys):
    """The first model is that of digits_steps, the third is shipped; complete runs are not repeated."""
    commands = []
    entry = Entry(1.8, 0.01, 0.001)
    report = Report(
        *("bits/dim", dict.fromkeys(("prior", "diffusion", "reconstruction", "total"), entry), None, 360, 10),
        *([], [], [], []),
        best_variance=1.79,
        infinite_steps=(1.7, 1.8),
    )

    def command(args):
        commands.append(args)
        if args[0] == "fit":
            run = RunDirectory(Path(args[-1].partition("=")[2]))
            run.checkpoints.mkdir(parents=True)
            (run.checkpoints / "last.ckpt").touch()
        else:
            path = RunDirectory(Path(args[3].partition("=")[2])).report
            path.parent.mkdir(exist_ok=True)
            report.save(path)

    monkeypatch.setattr(bits, "lit_ddpm", command)
    arguments = Namespace(output_dir=tmp_path, max_epochs=1, steps=[256, 1000])
    bits.main(arguments)
    fits = [{arg for arg in args if arg.startswith("--model.")} for args in commands if args[0] == "fit"]
    assert "--model.network.time=t" in fits[0]
    assert "--model.schedule.num_steps=256" in fits[0]
    assert all(after < before for before, after in pairwise(fits[:3]))
    assert fits[2] == fits[3] == set()
    assert [args for args in commands if "digits_categorical" in args]
    assert commands[-1][-1] == "--exact"
    assert "| 256 timesteps | 1.7500 | 0.0400 | 0.0100 | 1.8000 |" in capsys.readouterr().out
    assert Image.open(tmp_path / "bits.png").size[0] > 800
    count = len(commands)
    bits.main(arguments)
    assert len(commands) == count
