"""What Compare sets going: one comparison as a job, whose parts are kept as they end. It knows no page."""

from functools import partial

from engine.comparison import Result, Step, check_plan
from engine.errors import EditingError
from studio.comparisons import CompareRequest, execute_comparison, log_unbegun
from studio.edit_job import refuse_server_files
from studio.jobs import Job, Snapshot
from studio.runs import refuse_other_model
from studio.studio import Studio
from studio.workspace import Workspace


def jobs_of(workspace: Workspace) -> str:
    """The name under which a workspace's comparisons are found among all jobs."""
    return f"{workspace.id} compare"


def last_comparison(studio: Studio, workspace: Workspace) -> Snapshot | None:
    """The workspace's running comparison, else its last one."""
    return studio.jobs.latest(jobs_of(workspace))


def start_comparison(studio: Studio, workspace: Workspace, request: CompareRequest) -> Job:
    """Check the request and queue it; the workspace shows it from its beginning on.

    The job records the comparison's run, and each part's when it begins and when it has ended.
    Raises EditingError for what cannot be compared, without a model, and while another comparison is going on.
    """
    model = studio.require_model()
    check_plan(request.entries, request.sizes)
    for entry in request.entries:
        refuse_server_files(studio, entry)
    count = len(request.facts.require())
    last = last_comparison(studio, workspace)
    if last is not None and not last.ended:
        raise EditingError(f"“{last.title}” is still going on. Wait for it, or cancel it.")

    def work(job: Job) -> int:
        refuse_other_model(studio, model, "nothing was compared. Compare", unbegun)

        def started(number: int) -> None:
            workspace.comparison = number
            job.record({"comparison": number})

        def part(run: int, step: Step, result: Result | None) -> None:
            job.record({"run": run, "name": step.name, "ended": result is not None})

        return execute_comparison(studio, workspace.session, request, job.progress, part, started)

    methods = len(request.entries)
    title = f"Compare {methods} method{'s' * (methods != 1)} on {count:,} fact{'s' * (count != 1)}"
    unbegun = partial(log_unbegun, studio.store, model, workspace.session, request)
    return studio.jobs.submit(title, work, model=model.sha256, workspace=jobs_of(workspace), unbegun=unbegun)


def run_of(shot: Snapshot) -> int | None:
    """The comparison's run, once it has one: also of a job that failed or was cancelled after that."""
    return next((one["comparison"] for one in shot.log if "comparison" in one), None)
