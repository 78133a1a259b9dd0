import json
import os

from helpers import DIGITS_CONFIG, SMALL_COMPARISON

from lit_ddpm.compare.jobs import job_environment
from lit_ddpm.compare.runs import Run
from lit_ddpm.compare.variants import resolve_variants
from lit_ddpm.training.run_directory import RunDirectory


def test_wandb_runs_of_a_comparison_form_a_group(tmp_path):
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}
    settings = [*SMALL_COMPARISON, f"--trainer.logger={json.dumps(logger)}"]
    (variant,) = resolve_variants([DIGITS_CONFIG], ["kl"], settings)
    run = Run(variant, 2, RunDirectory(tmp_path / "kl" / "seed_2"), "night")
    given = run.config()["trainer"]["logger"]["init_args"]
    assert (given["group"], given["name"], given["project"]) == ("night", "kl-2", "p")
    assert run.config()["seed_everything"] == 2
    assert variant.config["trainer"]["logger"]["init_args"].get("group") is None


def test_jobs_share_the_devices(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert "OMP_NUM_THREADS" not in job_environment(0, 1)
    assert job_environment(1, 4)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [job_environment(job, 3)["CUDA_VISIBLE_DEVICES"] for job in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [job_environment(job, 2)["CUDA_VISIBLE_DEVICES"] for job in range(2)] == ["5", "GPU-7"]
