import json

from helpers import DIGITS_CONFIG, SMALL_COMPARISON

from lit_ddpm.compare import arms as arms_module
from lit_ddpm.compare.jobs import expected_seconds
from lit_ddpm.compare.runs import Run
from lit_ddpm.training.run_directory import RunDirectory


def test_wandb_runs_of_a_comparison_form_a_group(tmp_path):
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}
    arms = arms_module.resolve_arms(
        [DIGITS_CONFIG], ["kl"], [*SMALL_COMPARISON, f"--trainer.logger={json.dumps(logger)}"]
    )
    run = Run(arms[0], 2, RunDirectory(tmp_path / "kl" / "seed_2"), "night", is_first_seed=False)
    given = run.config()["trainer"]["logger"]["init_args"]
    assert (given["group"], given["name"], given["project"]) == ("night", "kl-2", "p")
    assert run.config()["seed_everything"] == 2
    assert arms[0].config["trainer"]["logger"]["init_args"].get("group") is None
    assert 12 < expected_seconds(arms[0]) < 600
