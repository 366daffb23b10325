"""The worker: order, progress, cancelling, errors as sentences, and watching from elsewhere."""

import threading
import time

import pytest
import torch

from engine.errors import Cancelled, FactError
from studio.connection import StoreError
from studio.jobs import LAST_OF_EACH, JobError, Jobs, sentence

LONG = 20.0  # seconds after which a test that waits has failed


@pytest.fixture
def jobs():
    jobs = Jobs()
    yield jobs
    jobs.close(LONG)


class Gate:
    """Work that says when it began and goes on when told, reporting progress while it waits."""

    def __init__(self):
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, job):
        self.began.set()
        while not self.go.wait(0.005):
            job.progress("Waiting", 0, 1)
        return "through"


def end(jobs, job):
    assert job.ended.wait(LONG), "the job did not end"
    return jobs.snapshot(job.id)


def test_a_job_runs_on_a_worker_thread_and_keeps_its_result(jobs):
    job = jobs.submit("Add", lambda job: (2 + 2, threading.current_thread()), model="m", workspace="w")
    shot = end(jobs, job)
    assert (shot.state, shot.title, shot.model, shot.workspace) == ("done", "Add", "m", "w")
    assert shot.ended and shot.eta is None and not shot.error and not shot.traceback
    assert shot.result[0] == 4
    assert shot.result[1] is not threading.current_thread() and shot.result[1].daemon


def test_one_model_works_on_one_job_at_a_time_in_order_and_shows_positions(jobs):
    order, gate = [], Gate()
    first = jobs.submit("First", gate, model="m")
    rest = [jobs.submit(str(n), lambda job, n=n: order.append(n), model="m") for n in range(3)]
    assert gate.began.wait(LONG)
    assert jobs.snapshot(first.id).position == 0
    assert [jobs.snapshot(job.id).position for job in rest] == [1, 2, 3]
    assert [jobs.snapshot(job.id).state for job in rest] == ["queued"] * 3
    jobs.cancel(rest[0].id)
    assert [jobs.snapshot(job.id).position for job in rest] == [0, 1, 2]
    gate.go.set()
    end(jobs, rest[2])
    assert order == [1, 2]


def test_work_that_comes_first_passes_by_what_waits(jobs):
    gate, order = Gate(), []
    jobs.submit("Wait", gate, model="m")
    assert gate.began.wait(LONG)
    rest = [jobs.submit("Next", lambda job: order.append("next"), model="m")]
    first = jobs.submit("First", lambda job: order.append("first"), model="m", first=True)
    assert [jobs.snapshot(job.id).position for job in (first, *rest)] == [1, 2]
    assert not jobs.wait(first.id, 0.01)
    gate.go.set()
    end(jobs, rest[0])
    assert order == ["first", "next"] and jobs.wait(first.id, 0)


def test_two_models_work_at_the_same_time(jobs):
    both = threading.Barrier(2)
    pair = [jobs.submit("Meet", lambda job: both.wait(LONG), model=name) for name in "ab"]
    assert sorted(end(jobs, job).result for job in pair) == [0, 1]


def test_jobs_of_one_model_never_overlap_when_submitted_from_many_threads(jobs):
    inside, most, count = [], [], 40

    def work(job):
        inside.append(job.id)
        most.append(len(inside))
        time.sleep(0.001)
        inside.remove(job.id)

    jobs._keep = count
    threads = [threading.Thread(target=lambda: jobs.submit("Work", work, model="m")) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in list(jobs._jobs.values()):
        assert end(jobs, job).state == "done"
    assert most == [1] * count


def test_a_running_job_is_cancelled_at_its_next_progress_call(jobs):
    gate = Gate()
    job = jobs.submit("Wait", gate)
    assert gate.began.wait(LONG)
    jobs.cancel(job.id)
    shot = end(jobs, job)
    assert (shot.state, shot.error, shot.result) == ("cancelled", "", None)


def test_between_the_wish_to_cancel_and_the_next_progress_call_a_job_is_cancelling(jobs):
    began, go = threading.Event(), threading.Event()

    def work(job):
        began.set()
        go.wait(LONG)
        job.progress("Late", 1, 1)

    job = jobs.submit("Work", work)
    assert began.wait(LONG) and not jobs.snapshot(job.id).cancelling
    jobs.cancel(job.id)
    assert jobs.snapshot(job.id).cancelling and jobs.snapshot(job.id).state == "running"
    go.set()
    shot = end(jobs, job)
    assert shot.state == "cancelled" and not shot.cancelling


def test_a_cancelled_queued_job_never_starts(jobs):
    gate, started, said = Gate(), [], []
    jobs.submit("First", gate)
    queued = jobs.submit("Second", started.append, unbegun=lambda: said.append("second"))
    jobs.cancel(queued.id)
    jobs.cancel(queued.id)
    assert jobs.snapshot(queued.id).state == "cancelled"
    gate.go.set()
    end(jobs, jobs.submit("Third", lambda job: None, unbegun=lambda: said.append("third")))
    assert not started
    assert said == ["second"]


def test_all_are_cancelled_when_what_never_began_cannot_be_logged(jobs):
    gate = Gate()

    def locked():
        raise StoreError("The database is kept locked.")

    jobs.submit("First", gate)
    rest = [jobs.submit(name, lambda job: None, unbegun=locked) for name in ("Second", "Third")]
    jobs.close(LONG)
    assert [job.snapshot().state for job in rest] == ["cancelled", "cancelled"]


def test_cancelling_an_ended_job_leaves_it_as_it_was(jobs):
    job = jobs.submit("Work", lambda job: 1)
    end(jobs, job)
    jobs.cancel(job.id)
    assert (jobs.snapshot(job.id).state, jobs.snapshot(job.id).result) == ("done", 1)


def test_work_that_cancels_itself_is_cancelled(jobs):
    def work(job):
        raise Cancelled("by itself")

    assert end(jobs, jobs.submit("Work", work)).state == "cancelled"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (FactError("Row 3: the prompt is empty. Fill it in."), "Row 3: the prompt is empty. Fill it in."),
        (StoreError("The disk is full."), "The disk is full."),
        (KeyError("layers"), "Unexpected error: KeyError: 'layers'"),
        (ValueError("odd"), "Unexpected error: ValueError: odd"),
        (RuntimeError("shapes differ"), "Unexpected error: RuntimeError: shapes differ"),
        (SystemExit(), "Unexpected error: SystemExit"),
    ],
)
def test_an_error_becomes_a_sentence_and_its_traceback_is_kept(jobs, problem, said):
    def work_that_fails(job):
        raise problem

    shot = end(jobs, jobs.submit("Work", work_that_fails))
    assert (shot.state, shot.error) == ("failed", said)
    assert "work_that_fails" in shot.traceback
    assert end(jobs, jobs.submit("Next", lambda job: "alive")).result == "alive"


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_lack_of_memory_says_what_to_do(problem):
    said = sentence(problem)
    assert "not enough memory" in said
    assert all(remedy in said for remedy in ("fewer facts", "smaller model", "CPU"))


def test_torch_itself_running_out_of_memory_is_recognised(jobs):
    shot = end(jobs, jobs.submit("Too much", lambda job: torch.empty(2**55)))
    assert shot.state == "failed" and "fewer facts" in shot.error


def test_progress_and_log_are_seen_from_outside(jobs):
    reported, go = threading.Event(), threading.Event()

    def work(job):
        job.record({"step": 1, "loss": 2.0})
        job.progress("Editing", 3, 8)
        reported.set()
        go.wait(LONG)
        job.record({"step": 2, "loss": 1.0})

    job = jobs.submit("Work", work)
    assert reported.wait(LONG)
    early = jobs.snapshot(job.id)
    assert (early.stage, early.done, early.total) == ("Editing", 3, 8)
    assert early.log == ({"step": 1, "loss": 2.0},) and early.seconds > 0
    go.set()
    late = end(jobs, job)
    assert [step["loss"] for step in late.log] == [2.0, 1.0]
    assert len(early.log) == 1, "a snapshot does not change"


def test_watching_yields_until_the_end_and_the_last_snapshot_has_the_result(jobs):
    gate = Gate()
    job = jobs.submit("Work", gate)
    shots = []
    for shot in jobs.watch(job.id, 0.01):
        shots.append(shot)
        if len(shots) == 3:
            gate.go.set()
        assert len(shots) < 2000
    assert [shot.ended for shot in shots] == [False] * (len(shots) - 1) + [True]
    assert shots[-1].result == "through"


def test_watching_is_told_of_the_end_without_waiting_out_the_interval(jobs):
    gate = Gate()
    job = jobs.submit("Work", gate)
    watch = jobs.watch(job.id, interval=1000.0)
    assert not next(watch).ended
    gate.go.set()
    done = []
    thread = threading.Thread(target=lambda: done.extend(watch), daemon=True)
    thread.start()
    thread.join(LONG)
    assert [shot.state for shot in done] == ["done"]


def test_closing_a_watch_does_not_stop_the_job_and_another_may_follow(jobs):
    gate = Gate()
    job = jobs.submit("Work", gate, workspace="w")
    watch = jobs.watch(job.id, 0.01)
    next(watch)
    watch.close()
    again = jobs.latest("w")
    assert again.id == job.id and not again.ended
    gate.go.set()
    assert list(jobs.watch(again.id, 0.01))[-1].state == "done"


def test_many_watch_one_job(jobs):
    gate = Gate()
    job = jobs.submit("Work", gate)
    ends = []
    threads = [threading.Thread(target=lambda: ends.append(list(jobs.watch(job.id, 0.01))[-1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.go.set()
    for thread in threads:
        thread.join(LONG)
    assert [shot.result for shot in ends] == ["through"] * 8


def test_latest_is_the_workspaces_own_and_the_running_one_first(jobs):
    gate = Gate()
    assert jobs.latest("w") is None
    old = jobs.submit("Old", lambda job: None, workspace="w")
    end(jobs, old)
    assert jobs.latest("w").id == old.id
    running = jobs.submit("Running", gate, workspace="w")
    queued = jobs.submit("Queued", lambda job: None, workspace="w")
    other = jobs.submit("Other", lambda job: None, workspace="v")
    assert gate.began.wait(LONG)
    assert jobs.latest("w").id == running.id and jobs.latest("v").id == other.id
    gate.go.set()
    end(jobs, queued)
    assert jobs.latest("w").id == queued.id


def test_only_the_last_ended_jobs_are_kept():
    jobs = Jobs(keep=2)
    ids = [end(jobs, jobs.submit(str(n), lambda job: None)).id for n in range(4)]
    gate = Gate()
    last = jobs.submit("Last", gate)
    with pytest.raises(JobError, match="history"):
        jobs.snapshot(ids[0])
    with pytest.raises(JobError):
        jobs.watch(ids[1])
    assert jobs.snapshot(ids[2]).state == jobs.snapshot(ids[3]).state == "done"
    jobs.close(LONG)
    assert jobs.snapshot(last.id).state == "cancelled"


def test_the_last_job_of_a_workspace_is_kept_however_many_follow_elsewhere():
    jobs = Jobs(keep=2)
    first, second = (end(jobs, jobs.submit(str(n), lambda job: None, workspace="training")).id for n in range(2))
    for _ in range(5):
        end(jobs, jobs.submit("Edit", lambda job: None, workspace="edits"))
    assert jobs.latest("training").id == second
    with pytest.raises(JobError):
        jobs.snapshot(first)
    jobs.close(LONG)


def test_the_workspace_that_was_idle_longest_is_forgotten_first():
    jobs = Jobs(keep=1)
    run = lambda workspace: end(jobs, jobs.submit("Edit", lambda job: None, workspace=workspace))  # noqa: E731
    run("mine")
    for n in range(LAST_OF_EACH - 1):
        run(f"other {n}")
    run("mine")
    for n in range(3):
        run(f"another {n}")
    assert jobs.latest("mine") and not jobs.latest("other 0")
    jobs.close(LONG)


def test_a_studio_that_is_open_for_days_does_not_keep_a_job_of_every_run():
    jobs = Jobs(keep=1)
    ids = [end(jobs, jobs.submit("Keeping", lambda job: None, workspace=f"run {n} record")).id for n in range(20)]
    assert jobs.latest("run 19 record").id == ids[-1] and jobs.latest("run 0 record") is None
    assert sum(jobs.latest(f"run {n} record") is not None for n in range(20)) <= LAST_OF_EACH + 1
    jobs.close(LONG)


def test_closing_cancels_waits_and_takes_no_more():
    jobs, gate = Jobs(), Gate()
    running, queued = jobs.submit("Running", gate), jobs.submit("Queued", lambda job: None)
    assert gate.began.wait(LONG)
    jobs.close(LONG)
    assert [jobs.snapshot(job.id).state for job in (running, queued)] == ["cancelled"] * 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]
    with pytest.raises(JobError, match="closing"):
        jobs.submit("Late", lambda job: None)


def test_closing_does_not_wait_for_ever():
    jobs, go = Jobs(), threading.Event()
    jobs.submit("Deaf", lambda job: go.wait(LONG))
    before = time.monotonic()
    jobs.close(0.05)
    assert time.monotonic() - before < LONG / 2
    go.set()


def test_an_idle_worker_ends_and_the_next_job_gets_a_new_one(jobs):
    threads = []
    for _ in range(2):
        end(jobs, jobs.submit("Work", lambda job: threads.append(threading.current_thread()), model="m"))
        threads[-1].join(LONG)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


def test_a_finished_job_lets_go_of_its_function(jobs):
    job = jobs.submit("Work", lambda job: None)
    end(jobs, job)
    assert job._function is None


def test_a_new_stage_begins_a_new_estimate(jobs):
    shots = []

    def work(job):
        for done in range(3):
            time.sleep(0.002)
            job.progress("Tracing", done, 3)
            shots.append(job.snapshot())
        job.progress("Solving", 0, 6)
        shots.append(job.snapshot())
        job.progress("Solving", 1, 6)
        shots.append(job.snapshot())

    end(jobs, jobs.submit("Work", work))
    assert [shot.eta is None for shot in shots] == [True, False, False, True, False]
