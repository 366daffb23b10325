"""The worker: long work runs in its own thread, one job at a time for each model, and survives a closed tab.

    jobs = Jobs()
    job = jobs.submit("Edit 128 facts", function, model=model.sha256, workspace="w1")   # returns at once
        function(job) -> result runs on the model's worker; it is given the Job:
            job.progress(stage, done, total)    # a Progress; raises Cancelled once the job was cancelled
            job.record({"step": 3, "loss": 0.7})     # live values, seen in Snapshot.log
    for snapshot in jobs.watch(job.id): …       # ends with the job; closing it does not stop the job
    jobs.cancel(job.id); jobs.snapshot(job.id); jobs.latest("w1"); jobs.close()

It knows no model, database or interface: what a job does is its function's business.
"""

import logging
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from engine.errors import Cancelled, EditingError
from studio.connection import StoreError
from studio.rate import Rate

State = Literal["queued", "running", "done", "failed", "cancelled"]
LAST_OF_EACH = 8  # a run whose record is written has a workspace of its own: there may be thousands
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
OUT_OF_MEMORY = (
    "There was not enough memory, and the work was stopped. Close other programs, take fewer facts at once or a smaller "
    "model, or, if this was a graphics card, load the model in bfloat16 or run on the CPU."
)
# Only CUDA's shortage has a class of its own; those of the CPU and MPS are RuntimeErrors known by their words.
SHORTAGES = ("can't allocate memory", "not enough memory", "out of memory")

log = logging.getLogger(__name__)


class JobError(ValueError):
    """There is no such job, or no more jobs are taken."""


@dataclass(frozen=True)
class Snapshot:
    """A job as it was at one moment.

    position: 0 when running or ended, else its place in the queue, from 1. cancelling: it was asked to stop and
    has not stopped yet. stage, done, total: the last progress. eta: seconds until the stage ends, None while
    unknown. seconds: since the work began. log: the recorded values, oldest first. result: what the function
    returned. error: a sentence when failed. traceback: where it came from, for the log.
    """

    id: str
    title: str
    model: str
    workspace: str
    state: State
    position: int
    cancelling: bool
    stage: str
    done: int
    total: int
    eta: float | None
    seconds: float
    log: tuple[dict[str, Any], ...]
    result: Any
    error: str
    traceback: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Job:
    """One piece of long work. Its function calls `progress` and `record`; others read it as a Snapshot."""

    def __init__(
        self,
        title: str,
        function: Callable[["Job"], Any],
        model: str,
        workspace: str,
        unbegun: Callable[[], object] = lambda: None,
        runs: Collection[int] = (),
    ) -> None:
        self.id = uuid.uuid4().hex
        self.title, self.model, self.workspace, self.runs = title, model, workspace, runs
        self.ended = threading.Event()
        self._function: Callable[[Job], Any] | None = function
        self._unbegun: Callable[[], object] | None = unbegun
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._state: State = "queued"
        self._stage, self._done, self._total = "", 0, 0
        self._rate: Rate | None = None
        self._log: list[dict[str, Any]] = []
        self._began = self._stopped = 0.0
        self._result: Any = None
        self._error = self._traceback = ""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report how far the work is. Raises Cancelled when the job was cancelled."""
        if self._cancelled.is_set():
            raise Cancelled(f"{self.title} was cancelled.")
        now = time.monotonic()
        with self._lock:
            if self._rate is None or stage != self._stage or done < self._done:
                self._rate = Rate(now, done)
            self._rate.add(now, done)
            self._stage, self._done, self._total = stage, done, total

    def record(self, values: dict[str, Any]) -> None:
        """Add live values, such as a training step's losses, to the log."""
        with self._lock:
            self._log.append(dict(values))

    def cancel(self) -> None:
        """Ask the work to stop: its next `progress` raises Cancelled. A queued job never starts."""
        with self._lock:
            self._cancelled.set()
            unbegun = self._unbegun if self._state == "queued" else None
            if unbegun:
                self._end("cancelled")
        if unbegun:
            try:
                unbegun()
            except StoreError as problem:  # it is cancelled all the same, and the other jobs are after it
                log.warning("%s is not in the history: %s", self.title, problem)

    def run(self) -> None:
        """Do the work, on the worker's thread, unless it was cancelled before."""
        with self._lock:
            if self._state != "queued":
                return
            self._state, self._began = "running", time.monotonic()
            function, self._function, self._unbegun = self._function, None, None
        state, result, error, text = "done", None, "", ""
        try:
            result = function(self)
        except Cancelled:
            state = "cancelled"
        except BaseException as problem:  # a worker outlives whatever its job raises
            state, error = "failed", sentence(problem)
            text = traceback.format_exc()
            expected = isinstance(problem, (EditingError, StoreError))  # the person has been told all there is
            log.warning("%s failed: %s", self.title, error if expected else text)
        with self._lock:
            self._result, self._error, self._traceback = result, error, text
            self._end(state)

    def snapshot(self, position: int = 0) -> Snapshot:
        now = time.monotonic()
        with self._lock:
            running = self._state == "running"
            return Snapshot(
                id=self.id,
                title=self.title,
                model=self.model,
                workspace=self.workspace,
                state=self._state,
                position=position if self._state == "queued" else 0,
                cancelling=running and self._cancelled.is_set(),
                stage=self._stage,
                done=self._done,
                total=self._total,
                eta=self._rate.eta(now, self._total) if running and self._rate else None,
                seconds=(now if running else self._stopped) - self._began if self._began else 0.0,
                log=tuple(self._log),
                result=self._result,
                error=self._error,
                traceback=self._traceback,
            )

    def _end(self, state: State) -> None:
        self._state, self._stopped, self._function, self._unbegun = state, time.monotonic(), None, None
        self.ended.set()


class Jobs:
    """All jobs: a worker thread for each model that has work, the last `keep` ended jobs, and the last one of each of the
    LAST_OF_EACH times as many workspaces that were at work last."""

    def __init__(self, keep: int = 32) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}  # oldest first
        self._queues: dict[str, deque[Job]] = {}  # model → waiting; a model has an entry while its worker lives
        self._workers: dict[str, threading.Thread] = {}
        self._closed = False

    def submit(
        self,
        title: str,
        function: Callable[[Job], Any],
        *,
        model: str = "",
        workspace: str = "",
        first: bool = False,
        unbegun: Callable[[], object] = lambda: None,
        runs: Collection[int] = (),
    ) -> Job:
        """Queue the work behind the model's other jobs, or before those that wait. Raises JobError after `close`.

        `unbegun` is called instead of the work when the job is cancelled before it begins. `runs`: the numbers of
        those whose files it writes.
        """
        job = Job(title, function, model, workspace, unbegun, runs)
        with self._lock:
            if self._closed:
                raise JobError("The studio is closing and takes no more work.")
            self._jobs[job.id] = job
            self._forget()
            if model in self._queues:
                self._queues[model].insert(0 if first else len(self._queues[model]), job)
            else:
                self._queues[model] = deque([job])
                worker = threading.Thread(target=self._work, args=(model,), name=f"worker {model}", daemon=True)
                self._workers[model] = worker
                worker.start()
        return job

    def cancel(self, id: str) -> None:
        """Stop a running job at its next progress call, a queued one for good. An ended one stays as it is."""
        self._find(id).cancel()

    def snapshot(self, id: str) -> Snapshot:
        """The job now. Raises JobError when it is unknown or forgotten."""
        return self._snapshot(self._find(id))

    def watch(self, id: str, interval: float = 0.25) -> Iterator[Snapshot]:
        """A snapshot now, one each `interval` seconds, and one at the end. Closing it leaves the job running.

        Raises JobError at once, not at the first step, when the job is unknown or forgotten.
        """
        return self._watch(self._find(id), interval)

    def wait(self, id: str, seconds: float) -> bool:
        """Wait for a job's end, so long at most; whether it ended. Raises JobError when it is unknown or forgotten."""
        return self._find(id).ended.wait(seconds)

    def latest(self, workspace: str) -> Snapshot | None:
        """The workspace's last job, to be watched again after a page reload: the running one before a queued one,
        else the one submitted last; None without one."""
        with self._lock:
            own = [job for job in self._jobs.values() if job.workspace == workspace]
        shots = [self._snapshot(job) for job in own]
        for state in ("running", "queued"):
            if found := [shot for shot in shots if shot.state == state]:
                return found[0]
        return shots[-1] if shots else None

    def writing(self, runs: Collection[int]) -> Snapshot | None:
        """A job that has not ended and writes files of one of these runs; None for none."""
        with self._lock:
            found = [job for job in self._jobs.values() if not job.ended.is_set() and set(job.runs) & set(runs)]
        return self._snapshot(found[0]) if found else None

    def close(self, timeout: float | None = None) -> None:
        """Cancel everything and wait, at most `timeout` seconds, for the workers to end."""
        with self._lock:
            self._closed = True
            jobs, workers = list(self._jobs.values()), list(self._workers.values())
        for job in jobs:
            job.cancel()
        give_up = None if timeout is None else time.monotonic() + timeout
        for worker in workers:
            worker.join(None if give_up is None else max(0.0, give_up - time.monotonic()))

    def _work(self, model: str) -> None:
        while True:
            with self._lock:
                if not self._queues[model]:
                    del self._queues[model], self._workers[model]
                    return
                job = self._queues[model].popleft()
            job.run()
            del job  # its result may be large: let it go when it is forgotten

    def _find(self, id: str) -> Job:
        with self._lock:
            if id not in self._jobs:
                raise JobError("This job is no longer known: find its run in the history.")
            return self._jobs[id]

    def _snapshot(self, job: Job) -> Snapshot:
        with self._lock:
            waiting = [one for one in self._queues.get(job.model, ()) if not one.ended.is_set()]
        return job.snapshot(waiting.index(job) + 1 if job in waiting else 1)

    def _watch(self, job: Job, interval: float) -> Iterator[Snapshot]:
        while True:
            shot = self._snapshot(job)
            yield shot
            if shot.ended:
                return
            job.ended.wait(interval)

    def _forget(self) -> None:
        last = set({job.workspace: id for id, job in self._jobs.items() if job.workspace}.values())
        over = [id for id, job in self._jobs.items() if job.ended.is_set()]  # the oldest first
        ended, lasting = [id for id in over if id not in last], [id for id in over if id in last]
        for ids, most in ((ended, self._keep), (lasting, LAST_OF_EACH * self._keep)):
            for id in ids[: max(0, len(ids) - most)]:
                del self._jobs[id]


def sentence(problem: BaseException) -> str:
    """What to tell the person: the engine's and the store's own words, a remedy for lack of memory, or the rest."""
    if isinstance(problem, (EditingError, StoreError)):
        return str(problem)
    text = str(problem)
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(problem, RuntimeError) and any(words in text for words in SHORTAGES)
    ):
        return OUT_OF_MEMORY
    return f"Unexpected error: {traceback.format_exception_only(problem)[-1].strip()}"
