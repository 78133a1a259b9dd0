"""The model card of an exported pipeline."""

from typing import Any

import yaml

from lit_ddpm._internal.files import number_of, read_json_lines
from lit_ddpm.likelihood.report import TERMS, Report
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory

HEADER = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [diffusion, ddpm, lit-ddpm]
---
"""


def model_card(model: DDPM, name: str, run: RunDirectory | None, num_samples: int) -> str:
    """Returns the card as Markdown: use, samples, ledger, sample metrics and training configuration."""
    sections = [f"{HEADER}\n# {name}", _introduction(model), _use(model, name)]
    if num_samples:
        steps = len(model.sampler.timesteps(model.denoiser.schedule)) - 1
        sections.append(f"![Samples](samples.png)\n\n{type(model.sampler).__name__}, {steps} steps.")
    sections += _measurements(model, run)
    config = _configuration(model, run)
    text = yaml.safe_dump(config, sort_keys=False)
    sections.append(f"<details><summary>Training configuration</summary>\n\n```yaml\n{text}```\n\n</details>")
    return "\n\n".join(sections) + "\n"


def _introduction(model: DDPM) -> str:
    shape = "x".join(map(str, model.data.image_shape or ()))
    weights = "averaged weights" if model.averaged else "weights"
    steps = f"; the {weights} after {model.trained_steps:,} steps" if model.trained_steps else ""  # none of an import
    return f"A denoising diffusion model of {shape} images with {model.levels} pixel levels, from lit_ddpm{steps}."


def _use(model: DDPM, name: str) -> str:
    T = model.denoiser.schedule.num_steps
    load = f'from diffusers import DDPMPipeline\n\npipeline = DDPMPipeline.from_pretrained("{name}")'
    network = model.denoiser.network_spec
    if network.num_classes is None:
        return f"```python\n{load}\nimages = pipeline(batch_size=4, num_inference_steps={T}).images\n```"
    no_label = "" if network.no_label is None else f'; {network.num_classes} means "no label"'
    return (
        f"```python\n{load}\noutput = pipeline.unet(x_t, t, class_labels=labels).sample  # t = 0..{T - 1}\n```\n\n"
        f"The labels are 0 to {network.num_classes - 1}{no_label}. `DDPMPipeline` itself cannot pass labels; `lit-ddpm "
        "import` and `predict` can."
    )


def _measurements(model: DDPM, run: RunDirectory | None) -> list[str]:
    """Returns the sections of the ledger and the sample metrics, if the run's last test was of these weights."""
    if run is None or not run.report.is_file() or run.last_test_step() != max(model.trained_steps - 1, 0):
        return []
    report = Report.load(run.report)
    rows = [f"| term | {report.unit} | ± images | ± noise |", "| --- | ---: | ---: | ---: |"]
    for term in TERMS:
        entry = report.terms[term]
        rows.append(f"| {term} | {entry.value:.4f} | {entry.se_images:.4f} | {entry.se_noise:.4f} |")
    sections = ["## Variational bound\n\n" + "\n".join(rows), f"The test split: {report.num_images:,} images."]
    tested = [record for record in read_json_lines(run.sample_metrics) if record["command"] == "test"]
    if tested and tested[-1]["global_step"] == model.trained_steps:
        metrics = [f"| {name} | {number_of(value):.4f} |" for name, value in tested[-1]["metrics"].items()]
        protocol = ", ".join(f"{name} {value}" for name, value in tested[-1]["protocol"].items())
        table = "\n".join(["| metric | value |", "| --- | ---: |", *metrics])
        sections += [f"## Sample metrics\n\n{table}", f"Protocol: {protocol}."]
    return sections


def _configuration(model: DDPM, run: RunDirectory | None) -> Any:
    if run is not None and run.config.is_file():
        return yaml.safe_load(run.config.read_text())
    return {name: value for name, value in model.hparams.items() if not name.startswith("_")}
