"""What Draw, Figure 3 and Trace again set going: pictures as jobs, and those on show. It knows no page."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection

from engine.projection import ProjectionSettings
from studio.components.projection_figure import Look
from studio.exports import folder_of
from studio.figure3 import make_figure3, save_figure3
from studio.jobs import Job, Snapshot
from studio.picture import Choice, Picture, beside_run, finished_picture, first_picture, open_source
from studio.picture_files import Saved, save_picture, stem_of
from studio.records import await_record, trace_again
from studio.studio import Studio

# Pictures hold the rows they were made of, for the neighbours: tens of megabytes each.
KEPT_PICTURES = 6
FIRST, LAST = "first", "last"


class Gallery:
    """The picture that each open page shows, the last few pages' only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pictures: OrderedDict[str, Picture] = OrderedDict()

    def show(self, page: str, picture: Picture) -> None:
        with self._lock:
            self._pictures[page] = picture
            self._pictures.move_to_end(page)
            while len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)

    def picture(self, page: str) -> Picture | None:
        """What the page shows; None for nothing, or when it was let go since."""
        with self._lock:
            return self._pictures.get(page)


def last_projection(studio: Studio, page: str) -> Snapshot | None:
    """The page's running picture or files, else the last ones."""
    return studio.jobs.latest(_jobs_of(page))


def cancel_projection(studio: Studio, page: str) -> None:
    """Stop what the page has drawn or written."""
    shot = last_projection(studio, page)
    if shot is not None and not shot.ended:
        studio.jobs.cancel(shot.id)


def start_picture(studio: Studio, page: str, gallery: Gallery, run: int, choice: Choice) -> Job:
    """Draw in place of the last one: PCA at once, recorded as FIRST, then the method chosen, recorded as LAST."""

    def work(job: Job) -> int:
        beside = beside_run(choice)
        numbers = (run, *([beside] if beside is not None else []))
        for number in numbers:
            await_record(studio, number)
        sources = [open_source(studio.store, number) for number in numbers]
        picture = first_picture(sources, choice)
        gallery.show(page, picture)
        job.record({"drawn": LAST if picture.final else FIRST})
        if not picture.final:
            gallery.show(page, finished_picture(picture, job.progress))
            job.record({"drawn": LAST})
        return run

    return _submit(studio, page, f"Drawing run {run}", work)


def start_saving(studio: Studio, page: str, picture: Picture, look: Look) -> Job:
    """Write the picture on show to files; the job's result is `Saved`."""
    folder = folder_of(studio.store, picture.sources[0].number)

    def work(job: Job) -> Saved:
        return save_picture(studio.store, picture, look, folder, stem_of(picture), job.progress)

    return _submit(studio, page, "Saving the picture", work, runs=(picture.sources[0].number,))


def start_figure3(studio: Studio, page: str, run: int, settings: ProjectionSettings, module: int | None) -> Job:
    """Make Figure 3 of a run and write it to files; the job's result is `Saved`."""
    folder = folder_of(studio.store, run)

    def work(job: Job) -> Saved:
        figure = make_figure3(open_source(studio.store, run), settings, module, job.progress)
        return save_figure3(studio.store, figure, folder, job.progress)

    return _submit(studio, page, f"Figure 3 of run {run}", work, runs=(run,))


def start_tracing(studio: Studio, page: str, run: int) -> Job:
    """Make the record that a run lacks, behind the model's other work."""
    model = studio.require_model()

    def work(job: Job) -> int:
        trace_again(studio, studio.store.run(run), progress=job.progress)
        return run

    return _submit(studio, page, f"Tracing run {run} again", work, model.sha256, runs=(run,))


def _submit(
    studio: Studio, page: str, title: str, work: Callable[[Job], object], model: str = "", runs: Collection[int] = ()
) -> Job:
    cancel_projection(studio, page)
    # Not behind the language model's work: a picture needs no model.
    queue = model or _jobs_of(page)
    return studio.jobs.submit(title, work, model=queue, workspace=_jobs_of(page), runs=runs)


def _jobs_of(page: str) -> str:
    return f"{page} projection"
