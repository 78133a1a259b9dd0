from lit_ddpm.training.run_directory import RunLogger


def test_the_run_logger_appends(tmp_path):
    for step, metrics in ((1, {"a": 1.0}), (2, {"a": 2.0, "b": 3.0})):
        logger = RunLogger(tmp_path)
        logger.log_metrics(metrics, step)
        logger.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,b,step", "1.0,,1", "2.0,3.0,2"]
