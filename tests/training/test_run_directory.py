"""The files of a run: complete, valid, and without repeated steps."""

import json
import math

import pytest
from helpers import FewDigits, tiny_module, trainer

from lit_ddpm._internal.files import read_json_lines, write_json, write_json_lines
from lit_ddpm.likelihood.report import Report
from lit_ddpm.training.run_directory import RunDirectory, RunLogger


def test_the_run_logger_appends(tmp_path):
    for step, metrics in ((1, {"a": 1.0}), (2, {"a": 2.0, "b": 3.0})):
        logger = RunLogger(tmp_path)
        logger.log_metrics(metrics, step)
        logger.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,b,step", "1.0,,1", "2.0,3.0,2"]


def test_a_new_column_keeps_the_rows_if_the_process_dies(tmp_path, monkeypatch):
    logger = RunLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    logger.log_metrics({"b": 2.0}, 2)
    monkeypatch.setattr("csv.DictWriter.writerows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        logger.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,step", "1.0,1"]


def test_rewinding_removes_what_a_resumed_fit_repeats(tmp_path):
    run = RunDirectory(tmp_path)
    header = "step,test/bpd,train/loss,val/bpd\n"
    rows = ["0,,0.9,\n", "1,,0.8,3.1\n", "2,,0.7,\n", "3,2.9,,\n"]
    run.metrics.write_text(header + "".join(rows) + "4,,0")  # killed within a row
    records = [{"command": command, "global_step": step} for command, step in (("fit", 2), ("fit", 4), ("test", 4))]
    write_json_lines(run.sample_metrics, records)
    run.rewind(2)
    assert run.metrics.read_text() == header + "".join([*rows[:2], rows[3]])
    assert read_json_lines(run.sample_metrics) == [records[0], records[2]]
    RunDirectory(tmp_path / "empty").rewind(2)


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (1, -math.inf)}})
    expected = {"a": None, "b": [None, 1.5], "c": {"d": [1, None]}}
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == expected


class OneImage(FewDigits):
    """A test split of one image, whose standard error is not defined."""

    def splits(self):
        splits = super().splits()
        return splits | {"test": type(splits["test"])(splits["test"].images[:1], splits["test"].labels[:1])}


def test_a_report_without_errors_is_valid_json():
    trainer().test(tiny_module(), OneImage(), verbose=False)
    text = RunDirectory.of_trainer(trainer()).report.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["terms"]["total"]["se_images"] is None
    report = Report.load(RunDirectory.of_trainer(trainer()).report)
    assert math.isnan(report.terms["total"].se_images)
    assert "nan" in str(report)
