"""A run may get another length where the steps that it has made are those of that length too."""

import numpy as np
import pytest

from helpers import tree_digest
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.errors import UserError
from kd_jax.training import length, workdir
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import digits_config

EXAMPLES = 1600  # 50 steps an epoch


def config_of(epochs, schedule="constant", **options):
    config = digits_config(1)
    config.total_steps = None
    config.total_epochs = float(epochs)
    config.warmup_epochs = 0.0
    config.schedule.name = schedule
    config.update_from_flattened_dict(options)
    return config


@pytest.fixture
def begun(tmp_path):
    """Return what makes a workdir of a run that has made so many steps, finished or not."""

    def make(config, steps, finished=False):
        place = tmp_path / "w"
        (place / workdir.CHECKPOINTS / str(steps)).mkdir(parents=True)
        workdir.create(place, config)
        if finished:
            (place / workdir.RESULT_FILE).write_text("{}")
        return place

    return make


def check(place, config):
    """As a start does."""
    workdir.check(place, config, length_may_differ=True)
    length.check_schedule(place, config)
    length.check_steps_made(place, config, EXAMPLES)


def test_epochs_that_are_no_whole_number_say_why():
    config = config_of(10)
    config.batch_size = 64
    assert length.in_words(config, 640) == "10 epochs of 640 images"
    assert length.in_words(config, 63) == "10 epochs of 63 images, rounded up to whole steps of 64"
    config.total_epochs = 0.1
    assert length.in_words(config, 640) == "0.1 epochs of 640 images"
    config.total_steps = 12
    assert length.in_words(config, 173) == "4.44 epochs of 173 images"


def test_a_lengthened_run_is_the_one_that_was_planned_so(tmp_path):
    short, long = digits_config(1), digits_config(1)
    for config, steps in ((short, 7), (long, 12)):
        config.schedule.name, config.warmup_epochs = "constant", 0.0
        config.total_steps, config.log_every_steps = steps, 5
        config.student.ema_decay = 0.9
    first = train(short, tmp_path / "w")
    train(long, tmp_path / "w")
    train(long, tmp_path / "planned")
    arrays = [(tmp_path / w / saved_network.ARRAYS_FILE).read_bytes() for w in ("w", "planned")]
    assert arrays[0] == arrays[1]
    records = [
        {
            record["step"]: {k: v for k, v in record.items() if k != "images_per_second"}
            for record in read_json_lines(tmp_path / w / "metrics.jsonl")
            if record["kind"] == "train"
        }
        for w in ("w", "planned")
    ]
    assert records[0].pop(7)["loss"] > 0  # where the shorter one ended
    assert records[0] == records[1]
    assert read_json(tmp_path / "w" / workdir.RESULT_FILE)["steps"] == 12
    kept = tmp_path / "w" / "finished_at_7"
    assert read_json(kept / workdir.RESULT_FILE) == first
    assert saved_network.load_card(kept).arch == "tiny"


@pytest.mark.parametrize("schedule", ["cosine", "cosine_by_epoch", "linear"])
@pytest.mark.parametrize("finished", [True, False])
def test_where_the_length_shapes_every_step_it_is_kept(begun, schedule, finished):
    place = begun(config_of(2, schedule), 40, finished)
    before = tree_digest(place)
    with pytest.raises(UserError) as error:
        train(config_of(4, schedule), place)  # before any data is read
    text = str(error.value)
    assert "planned for 2 epochs and is now to have 4 epochs" in text
    assert f"config.schedule.name={schedule}" in text
    assert f"config.student.weights={place} in a new --workdir" in text
    assert ("let it end as planned" in text) == (not finished)
    assert tree_digest(place) == before
    check(place, config_of(2, schedule))


def test_the_same_length_in_steps_and_in_epochs_is_no_other(begun):
    place = begun(config_of(2, "cosine"), 40)
    check(place, config_of(2, "cosine", total_steps=100))
    with pytest.raises(UserError, match=r"planned for 100 steps .* of a run of 110, step 2 has"):
        check(place, config_of(2, "cosine", total_steps=110))


def test_a_result_of_the_same_length_is_not_set_aside(begun):
    place = begun(config_of(2), 100, finished=True)
    length.set_result_aside(place, config_of(2, total_steps=100), EXAMPLES)
    assert (place / workdir.RESULT_FILE).exists()
    length.set_result_aside(place, config_of(2, total_steps=110), EXAMPLES)
    assert (place / "finished_at_100" / workdir.RESULT_FILE).exists()


def test_a_run_without_steps_may_have_any_length(tmp_path):
    workdir.create(tmp_path / "w", config_of(2, "cosine"))
    check(tmp_path / "w", config_of(4, "cosine"))


def test_another_field_beside_the_length_is_refused_as_ever(begun):
    place = begun(config_of(2), 40)
    with pytest.raises(UserError, match=r"another config .*learning_rate"):
        check(place, config_of(4, learning_rate=0.5))


def test_a_wsd_run_may_be_lengthened_before_its_decay(begun):
    """100 steps, of which the last 20 decay; the first of them has the full rate yet."""
    place = begun(config_of(2, "wsd"), 81)
    check(place, config_of(4, "wsd"))
    check(place, config_of(50, "wsd"))
    (place / workdir.CHECKPOINTS / "82").mkdir()
    with pytest.raises(UserError, match=r"step 82 has 1.0 of the peak .*=wsd .* had 0.9\d*, so"):
        check(place, config_of(4, "wsd"))
    with pytest.raises(UserError, match=r"step 73 has 0.9\d* of"):  # nor may it be shortened
        check(place, config_of(1.8, "wsd"))


def test_a_run_may_be_lengthened_before_its_first_drop(begun):
    place = begun(config_of(2, "step"), 50)
    check(place, config_of(4, "step"))
    (place / workdir.CHECKPOINTS / "51").mkdir()
    with pytest.raises(UserError, match=r"step 51 has 1\.0 of the peak"):
        check(place, config_of(4, "step"))


def test_a_warmup_that_the_length_cuts_keeps_the_length(begun):
    """A tenth of the run is the most: 10 steps of 100, 20 of 200, 50 of 1,000."""
    place = begun(config_of(2, warmup_epochs=1.0), 40)
    with pytest.raises(UserError, match=r"step 1 has 0.05 of the peak .* had 0.1, so"):
        check(place, config_of(4, warmup_epochs=1.0))
    check(place, config_of(2, warmup_epochs=1.0))


def test_so_does_the_warmup_of_the_distillation_loss(begun):
    options = {"distill.label_weight": 0.5, "distill.warmup_epochs": 1.0, "teacher.weights": "t"}
    place = begun(config_of(2, **options), 40)
    with pytest.raises(UserError, match=r"step 1 has 0\.05"):
        check(place, config_of(4, **options))


def test_a_run_cannot_end_before_where_it_is(begun):
    place = begun(config_of(2), 80)
    check(place, config_of(1.6))
    with pytest.raises(UserError, match="has made 80, so it cannot end after 75: expected at leas"):
        check(place, config_of(1.5))


def test_patience_counts_the_validation_at_the_end(begun):
    place = begun(config_of(2, patience=3), 80)
    check(place, config_of(4, patience=3))
    (place / workdir.CHECKPOINTS / "100").mkdir()
    with pytest.raises(UserError, match=r"config\.patience=3"):
        check(place, config_of(4, patience=3))


def test_learning_rates_are_those_of_the_schedule():
    rates = length.learning_rates(config_of(2, "wsd", learning_rate=0.5), EXAMPLES)
    np.testing.assert_allclose(rates[[0, 80, 90, 99]], [0.5, 0.5, 0.25, 0.025], rtol=1e-5)
    assert rates.shape == (100,)
