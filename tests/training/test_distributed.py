import torch
from helpers import digits, tiny_module, trainer
from lightning import Callback

from lit_ddpm import ImportanceTimesteps
from lit_ddpm.training.distributed import gather_round_robin


def test_gathering_keeps_the_order(monkeypatch):
    class ThreeProcesses:
        world_size = 3

    shares = [["a", "d", "g"], ["b", "e"], ["c", "f"]]

    def all_gather_object(gathered, share):
        gathered[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert "".join(gather_round_robin(ThreeProcesses(), shares[0])) == "abcdefg"


def test_importance_gathers_the_losses_of_all_ranks(tmp_path):
    class Save(Callback):
        def on_fit_end(self, trainer, pl_module):
            torch.save(pl_module.timesteps.state_dict(), tmp_path / f"{trainer.global_rank}.pt")

    run = trainer(max_epochs=1, limit_val_batches=0, devices=2, strategy="ddp_fork", callbacks=[Save()])
    run.fit(tiny_module(timesteps=ImportanceTimesteps(history=2)), digits(batch_size=128))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(states[0]["losses"], states[1]["losses"])
    assert int(states[0]["counts"].sum()) == 4 * 256
