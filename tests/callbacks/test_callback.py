"""When callbacks are due."""

import pytest
from helpers import digits, tiny_module, trainer

from lit_ddpm.callbacks import ELBOProfile


def fit(every: int, **settings) -> None:
    run = trainer(callbacks=[ELBOProfile(every_n_epochs=every)], limit_train_batches=1, limit_val_batches=1, **settings)
    run.fit(tiny_module(), digits())


def test_an_interval_that_meets_no_validation_is_refused():
    with pytest.raises(ValueError, match="every_n_epochs = 3 of ELBOProfile never meets a validation: with check_val_"):
        fit(3, check_val_every_n_epoch=2, max_epochs=4)


@pytest.mark.parametrize(
    ("every", "check", "epochs"),
    [
        (3, 2, 6),
        (2, 4, 4),  # at every validation
        (40, 20, 2),  # a short trial of a long configuration
        (1, 20, 2),
        (3, None, 4),  # validation by steps
    ],
)
def test_other_intervals_run(every, check, epochs):
    interval = {"val_check_interval": 2} if check is None else {}
    fit(every, check_val_every_n_epoch=check, max_epochs=epochs, **interval)
