"""Fine-tuning: a fit that starts from the weights of another run."""

from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from helpers import FIT_DIGITS, SMALL, TinyNetwork, digits, error_of, tiny_module, trainer

from lit_ddpm import DDPM, HybridObjective, UNet
from lit_ddpm.__main__ import main

QUICK = [*FIT_DIGITS, *SMALL, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.callbacks=[]"]


def initial_weights(run, *args) -> dict[str, torch.Tensor]:
    """The weights that a command starts from, at a learning rate of almost zero."""
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    rate = ["--model.optimizer.lr=1e-30", "--model.lr_scheduler=null", "--trainer.default_root_dir=fine"]
    main([*QUICK, *rate, "--init_from", checkpoint, *args])
    return torch.load("fine/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_fit_starts_from_the_averaged_weights_of_another_run(run, caplog):
    before = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert not all(torch.equal(before["state_dict"][n], x) for n, x in before["current_model_state"].items())
    after = initial_weights(run)
    assert all(torch.equal(before["state_dict"][name], value) for name, value in after.items())
    assert "The initial weights are the averaged weights of step 6 in" in caplog.text
    assert f"All {len(after)} weights are taken from the checkpoint." in caplog.text


def test_classes_schedule_and_objective_may_be_others(run, caplog):
    other = ["--model.network.num_classes=10", "--model.schedule=CosineSchedule", "--model.objective=PosteriorKL"]
    before = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    after = initial_weights(run, *other, "--model.schedule.num_steps=32", "--model.network.out_channels=1")
    assert [name for name in after if name not in before] == ["denoiser.network.label_embedding.weight"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (
        "1 weights are new and keep their initial values: denoiser.network.label_embedding.weight [11, " in caplog.text
    )


def test_a_fine_tuned_run_resumes_from_its_own_weights(run):
    initial_weights(run)
    last = Path("fine/checkpoints/last.ckpt")
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=2"])
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_bad_files_are_refused_at_the_start(run, capsys):
    assert "init_from = none.ckpt does not exist" in error_of(capsys, [*QUICK, "--init_from", "none.ckpt"])
    torch.save({"state_dict": {"other": torch.zeros(1)}, "global_step": 3}, "other.ckpt")
    message = error_of(capsys, [*QUICK, "--init_from", "other.ckpt"])
    assert "none of the 1 weights of the checkpoint has a name and shape of the network" in message


def test_a_module_loads_what_fits(tmp_path, caplog):
    """In Python, with ``strict=False``; torch itself refuses other shapes even then."""
    run = trainer(max_epochs=1, limit_val_batches=0, enable_checkpointing=True)
    module = tiny_module(network=UNet(width=8, num_blocks=1, head_channels=8))
    run.fit(module, digits())
    path = run.checkpoint_callback.best_model_path
    wider = UNet(width=8, num_blocks=1, head_channels=8, num_classes=10, out_channels=2)
    new = {"weights_only": True, "network": wider, "variance": "learned", "objective": HybridObjective()}
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        loaded = DDPM.load_from_checkpoint(path, strict=False, **new)
    assert torch.equal(loaded.denoiser.network.conv_in.weight, module.denoiser.network.conv_in.weight)
    assert "are left, since the network has none of this name and shape: denoiser.network.conv_out" in caplog.text
    with pytest.raises(ValueError, match="does not fit the network"):
        DDPM.load_from_checkpoint(path, **new)


def test_training_without_the_optimizer_of_the_checkpoint_is_warned_about():
    run = trainer(max_epochs=1, limit_val_batches=0, enable_checkpointing=True)
    module = tiny_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    run.fit(module, digits())
    path, network = run.checkpoint_callback.best_model_path, TinyNetwork(num_steps=20)
    loaded = DDPM.load_from_checkpoint(path, weights_only=True, network=network)
    with pytest.warns(UserWarning, match="written without its optimizer, since a function cannot be saved"):
        trainer(max_epochs=1).fit(loaded, digits())
    loaded = DDPM.load_from_checkpoint(path, weights_only=True, network=network, optimizer=torch.optim.AdamW)
    assert not loaded.lost_arguments
    default = tiny_module()
    assert default.unsaved_arguments == ("network",)  # the default optimizer is known


def test_a_run_fine_tuned_from_a_url_remembers_it(run):
    with fsspec.open("memory://models/first.ckpt", "wb") as file:
        file.write((run / "checkpoints" / "best.ckpt").read_bytes())
    main([*QUICK, "--init_from", "memory://models/first.ckpt"])
    assert yaml.safe_load(Path("runs/digits/config.yaml").read_text())["init_from"] == "memory://models/first.ckpt"


def test_a_checkpoint_at_a_url_is_tested(run, capsys):
    """Of any file system that fsspec knows, such as s3:// and hf://; here in memory."""
    with fsspec.open("memory://models/best.ckpt", "wb") as file:
        file.write((run / "checkpoints" / "best.ckpt").read_bytes())
    quick = ["--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"]
    main(["test", "--ckpt_path", "memory://models/best.ckpt", *quick])
    assert "per-pixel histogram" in capsys.readouterr().out
    assert "memory://none.ckpt cannot be read (FileNotFoundError" in error_of(
        capsys, ["test", "--ckpt_path", "memory://none.ckpt"]
    )
