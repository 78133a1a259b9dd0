"""A comparison as a run of W&B, in the group of its runs."""

import hashlib
from typing import Any

from lit_ddpm.compare.comparison import Comparison
from lit_ddpm.compare.figures import Captioned
from lit_ddpm.compare.runs import wandb_loggers
from lit_ddpm.compare.summary import summary


def log_comparison(comparison: Comparison, figures: dict[str, Captioned]) -> None:
    """Logs tables, differences, figures and report to W&B if a variant logs there; its best checkpoint is an artifact.

    The identifier of the run is that of the directory, so a repeated collection updates the same run.
    """
    plan = comparison.plan
    loggers = [logger for variant in plan.variants for logger in wandb_loggers(variant.config)]
    if not loggers:
        return
    import wandb

    settings: dict[str, Any] = loggers[0]["init_args"]
    identifier = hashlib.blake2b(str(plan.directory.resolve()).encode(), digest_size=6).hexdigest()
    run = wandb.init(
        project=settings.get("project") or "lightning_logs",
        entity=settings.get("entity"),
        group=plan.directory.name,
        name=plan.directory.name,
        job_type="comparison",
        id=identifier,
        resume="allow",
        dir=str(plan.directory),
        mode="offline" if settings.get("offline") else None,
        config={
            "command": plan.command,
            "num_seeds": plan.num_seeds,
            "variants": [variant.name for variant in plan.variants],
        },
    )
    with run:
        (_, *variants), *rows = comparison.rows(comparison.differences())
        tables = {**comparison.tables(), "matrix": [["row minus column", *variants], *rows]}
        logged = {name: wandb.Table(columns=header, data=rows) for name, (header, *rows) in tables.items()}
        images = {name: wandb.Image(picture, caption=caption) for name, (caption, picture) in figures.items()}
        report = wandb.Html((plan.directory / "report.html").read_text(), inject=False)
        run.log({f"comparison/{name}": value for name, value in {**logged, **images, "report": report}.items()})
        run.summary.update({f"summary/{variant}": sentence for variant, sentence in summary(comparison).items()})
        for each in plan.runs:
            checkpoint = each.variant.checkpoint or each.files.best_or_last_checkpoint()
            if each.is_first_seed and each.done and checkpoint is not None:
                artifact = wandb.Artifact(
                    f"{plan.directory.name}-{each.variant.name}",
                    "model",
                    metadata={"original_filename": checkpoint.name},
                )
                artifact.add_file(str(checkpoint))
                run.log_artifact(artifact)
