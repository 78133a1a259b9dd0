import re
from pathlib import Path

import pytest
import torch
from helpers import Brightness, digits, small_sample_metrics, tiny_module, trainer
from lightning import Callback
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lit_ddpm import ImportanceTimesteps
from lit_ddpm.training.distributed import gather_results, interleave, shard


def test_interleaving_keeps_the_order():
    assert "".join(interleave([["a", "d", "g"], ["b", "e"], ["c", "f"]])) == "abcdefg"


class FailOnRankOne(Callback):
    """Computes something on every rank, which fails on the second."""

    def on_train_start(self, trainer, pl_module):
        try:
            gather_results(trainer, lambda: 1 / (1 - trainer.global_rank))
        except Exception as error:
            Path(f"{trainer.global_rank}.txt").write_text(f"{type(error).__name__}: {error}")


def test_an_error_on_one_rank_ends_all_of_them():
    run = trainer(max_epochs=1, limit_val_batches=0, devices=2, strategy="ddp_fork", callbacks=[FailOnRankOne()])
    run.fit(tiny_module(), digits())
    assert Path("1.txt").read_text() == "ZeroDivisionError: division by zero"
    assert Path("0.txt").read_text() == "RuntimeError: rank 1 failed: ZeroDivisionError: division by zero"


class MissingOnOneRank(Brightness):
    """An extractor whose file is missing on one of the ranks."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def forward(self, images):
        if torch.distributed.get_rank() == self.rank:
            raise FileNotFoundError("weights.pth")
        return super().forward(images)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_extractor_that_fails_on_one_rank_ends_the_fit(rank):
    metrics = small_sample_metrics(MissingOnOneRank(rank))
    run = trainer(max_epochs=1, devices=2, strategy="ddp_fork", callbacks=[metrics])
    with pytest.raises(Exception, match=r"weights\.pth"):
        run.fit(tiny_module(), digits())


def test_importance_gathers_the_losses_of_all_ranks(tmp_path):
    class Save(Callback):
        def on_fit_end(self, trainer, pl_module):
            torch.save(pl_module.timesteps.state_dict(), tmp_path / f"{trainer.global_rank}.pt")

    run = trainer(max_epochs=1, limit_val_batches=0, devices=2, strategy="ddp_fork", callbacks=[Save()])
    run.fit(tiny_module(timesteps=ImportanceTimesteps(history=2)), digits(batch_size=128))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(states[0]["losses"], states[1]["losses"])
    assert int(states[0]["counts"].sum()) == 4 * 256


def test_an_old_torch_cannot_shard(monkeypatch):
    monkeypatch.delattr(FSDPModule, "set_reshard_after_forward", raising=False)
    with pytest.raises(
        ValueError, match=rf"sharded weights need torch 2.8 or later; this is {re.escape(torch.__version__)}"
    ):
        shard(nn.Linear(1, 1), mesh=None)
