"""``merlin.resources.workers``: which agents a study wants, and what their author is told."""

from __future__ import annotations

import pytest

from merlin_study import celery, workers
from merlin_study.loader import load_yaml
from merlin_study.parse import parse_spec
from merlin_study.workers import Workers

STUDY = """
description: {{name: n, description: d}}
batch: {{type: slurm, nodes: 3}}
env: {{variables: {{NAME: sims, N: 2, STEP: a}}}}
study:
- {{name: a, description: d, run: {{cmd: x, task_queue: qa}}}}
- {{name: b, description: d, run: {{cmd: x, task_queue: qb}}}}
- {{name: c, description: d, run: {{cmd: x, task_queue: none}}}}
merlin: {{resources: {resources}}}
"""


def _workers(resources: str) -> Workers:
    spec, _ = parse_spec(load_yaml(STUDY.format(resources=resources), source="test.yaml"))
    return workers.of_spec(spec)


def test_without_workers_one_serves_everything() -> None:
    found = _workers("{}")
    (worker,) = found.workers
    assert (worker.name, worker.steps, worker.queues) == ("default_worker", ("a", "b", "c"), ("qa", "qb", "merlin"))
    assert (worker.slots, worker.nodes, worker.machines, worker.batch.nodes) == (None, None, (), 3)
    assert found.warnings == ()


def test_a_worker_has_what_its_block_says_with_variables_expanded() -> None:
    found = _workers(
        "{overlap: true, workers: {$(NAME): {args: '-O fair --prefetch-multiplier 1 -E -l info --concurrency $(N)', "
        "steps: [c, $(STEP)], nodes: $(N), machines: [borax, '$(NAME)'], batch: {type: flux}}, rest: {steps: [b]}}}"
    )
    first, second = found.workers
    assert (first.name, first.steps, first.queues) == ("sims", ("a", "c"), ("qa", "merlin"))
    assert (first.slots, first.nodes, first.overlap) == (2, 2, True)
    assert (first.batch.type, first.batch.nodes, second.batch.type) == ("flux", None, "slurm")
    assert [first.runs_on(host) for host in ("borax12", "mysims", "other")] == [True, True, False]
    assert second.runs_on("other")
    assert found.warnings == ()


def test_steps_that_no_worker_names_get_one_more_and_a_warning() -> None:
    found = _workers("{workers: {w: {steps: [b]}}}")
    assert {worker.name: worker.steps for worker in found.workers} == {"w": ("b",), "default_worker": ("a", "c")}
    assert found.warnings == (
        "spec.merlin.resources.workers: no worker serves 'a', 'c'; 'default_worker' does where all are started",
    )


def test_a_step_that_no_worker_names_is_served_where_its_queue_is() -> None:
    """Most of upstream's examples name one of several steps that share a queue; that is no reason to warn."""
    shared = STUDY.replace("qb", "qa").replace("none", "qa")
    for overlap, names in ((False, ["w"]), (True, ["w", "default_worker"])):
        text = shared.format(resources=f"{{overlap: {overlap}, workers: {{w: {{steps: [b]}}}}}}")
        spec, _ = parse_spec(load_yaml(text, source="test.yaml"))
        found = workers.of_spec(spec)
        assert [worker.name for worker in found.workers] == names
        assert found.warnings == ()


def test_a_default_worker_of_the_user_s_own_keeps_its_settings_and_gets_the_rest() -> None:
    """Upstream replaces it, and its steps are served by nobody."""
    found = _workers("{workers: {default_worker: {steps: [b], args: -c 4}}}")
    (worker,) = found.workers
    assert (worker.steps, worker.slots) == (("b", "a", "c"), 4)


def test_a_misspelt_step_is_told() -> None:
    found = _workers("{workers: {w: {steps: [a, b, Cc, -c]}}}")
    assert found.warnings[:2] == (
        "spec.merlin.resources.workers.w.steps[2]: no step named 'Cc'",
        "spec.merlin.resources.workers.w.steps[3]: no step named '-c' (did you mean 'c'?)",
    )


def test_without_overlap_a_worker_is_left_out_whose_queue_another_serves() -> None:
    found = _workers("{workers: {one: {steps: [a, b]}, two: {steps: [b, c]}}}")
    assert found.warnings == (
        (
            "spec.merlin.resources.workers.two: is not started, since 'one' serves 'qb' already; set merlin.resources.overlap "
            "to true, or give its steps a task_queue of their own"
        ),
        "spec.merlin.resources.workers: so nothing that is started serves 'c'",
    )
    assert [worker.name for worker in workers.started(found.workers, "host").workers] == ["one"]
    both = _workers("{overlap: true, workers: {one: {steps: [a, b]}, two: {steps: [b, c]}}}")
    assert both.warnings == ()
    assert len(workers.started(both.workers, "host").workers) == 2


def test_workers_of_different_machines_are_not_in_each_other_s_way() -> None:
    found = _workers("{workers: {one: {steps: [all], machines: [quartz]}, two: {steps: [all], machines: [borax]}}}")
    assert found.warnings == ()
    assert [worker.name for worker in workers.started(found.workers, "borax3").workers] == ["two"]
    assert workers.started(found.workers, "laptop").workers == ()


@pytest.mark.parametrize(
    "line", ["-c4", "-c 4", "-c=4", "--concurrency=4", "--concurrency 4", "-l INFO -c 4 -Ofair", "-c 9 -c 4"]
)
def test_concurrency_is_the_number_of_slots_however_it_is_written(line: str) -> None:
    assert celery.read(line) == celery.Arguments(slots=4)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-O fair --prefetch-multiplier 1 -E -l info",
        "--prefetch-multiplier=1 -Ofair --events -n name.%h --logfile %p.%i --without-gossip -P prefork",
    ],
)
def test_what_agents_do_by_themselves_is_taken_in_silence(line: str) -> None:
    assert celery.read(line) == celery.Arguments()


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("--time-limit 30", "'--time-limit 30' has no effect: set walltime in the step"),
        ("-Q qa,qb", "'--queues qa,qb' has no effect: the queues are those of its steps; name the steps"),
        ("-P gevent", "'--pool gevent' has no effect: each task is a process"),
        ("--autoscale=10,3", "'--autoscale 10,3' has no effect: agents use all their slots; use --concurrency"),
        ("--concurency 4", "'--concurency' is no argument of a Celery worker (did you mean '--concurrency'?)"),
        ("-c 0", "expected a number of slots from 1 to 4096, found '--concurrency 0'; each CPU of a host is a slot then"),
        ("-c $CONC", "expected a number of slots from 1 to 4096, found '--concurrency $CONC'; each CPU of a host is a slot then"),
        ("-l 'info", "expected arguments, found a quote that is not closed in \"-l 'info\""),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said_with_the_cure(line: str, warning: str) -> None:
    assert celery.read(line).warnings[0] == warning
