"""The model card of an exported pipeline."""

from pathlib import Path
from typing import Any

import yaml

from lit_ddpm._internal.files import number_of, read_json_lines
from lit_ddpm._internal.templates import render
from lit_ddpm.likelihood.report import TERMS, Report
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def model_card(model: DDPM, name: str, run: RunDirectory | None, num_samples: int) -> str:
    """Returns the card as Markdown: use, samples, bound, sample metrics and training configuration."""
    return render(
        TEMPLATE,
        model=model,
        name=name,
        num_samples=num_samples,
        sampler=type(model.sampler).__name__,
        num_sampler_steps=len(model.sampler.timesteps(model.denoiser.schedule)) - 1,
        config=yaml.safe_dump(_configuration(model, run), sort_keys=False),
        **_measurements(model, run),
    )


def _measurements(model: DDPM, run: RunDirectory | None) -> dict[str, Any]:
    """Returns the tables of the bound and the sample metrics, if the run's last test was of these weights."""
    if run is None or not run.report.is_file() or run.last_test_step() != max(model.trained_steps - 1, 0):
        return {}
    report = Report.load(run.report)
    terms = [["term", report.unit, "± images", "± noise"]]
    for term in TERMS:
        entry = report.terms[term]
        terms.append([term, *(f"{value:.4f}" for value in (entry.value, entry.se_images, entry.se_noise))])
    found: dict[str, Any] = {"terms": terms, "num_images": report.num_images}
    tested = [record for record in read_json_lines(run.sample_metrics) if record["command"] == "test"]
    if tested and tested[-1]["global_step"] == model.trained_steps:
        metrics = [[name, f"{number_of(value):.4f}"] for name, value in tested[-1]["metrics"].items()]
        protocol = ", ".join(f"{name} {value}" for name, value in tested[-1]["protocol"].items())
        found |= {"metrics": [["metric", "value"], *metrics], "protocol": protocol}
    return found


def _configuration(model: DDPM, run: RunDirectory | None) -> Any:
    if run is not None and run.config.is_file():
        return yaml.safe_load(run.config.read_text())
    return {name: value for name, value in model.hparams.items() if not name.startswith("_")}
