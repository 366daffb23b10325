"""What Start and Resume set going: one training as a job of the studio. It knows no page.

The model trains for everybody at once, so a training belongs to the studio and not to one workspace: every page
shows it, and there is one at a time.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from engine.errors import EditingError, FactError
from engine.facts import FactBatch
from engine.model import EditableModel
from engine.train_settings import TrainSettings
from engine.training_state import STATE
from studio import trainings
from studio.connection import StoreError
from studio.jobs import Job, Snapshot, sentence
from studio.runs import refuse_other_model
from studio.studio import Studio
from studio.training_run import TrainRequest, execute_training, log_unbegun_training
from studio.workspace import Workspace

WORKSPACE = "training"


def last_training(studio: Studio) -> Snapshot | None:
    """The training that is going on, else the last one since the studio was opened."""
    return studio.jobs.latest(WORKSPACE)


def new_request(
    studio: Studio,
    batches: Sequence[FactBatch],
    valid: Sequence[FactBatch],
    held_out: float,
    settings: TrainSettings,
    name: str,
    start: str = "",
) -> TrainRequest:
    """A training from its start. `held_out`: the share (0…1) of each batch to validate on when `valid` is empty.

    name: of the checkpoint; "" to name it after method and data. start: the name of a trained hypernetwork to begin
    with; "" for a random one. Raises EditingError for what could not begin.
    """
    trainings.check(settings, _free_model(studio))
    facts, valid_facts = trainings.name_sets(batches), trainings.name_sets(valid)
    if not valid:
        if not 0 < held_out < 1:
            raise FactError(f"The share to hold out is {held_out:g}: choose one between 0 and 1, such as 0.1.")
        facts, valid_facts = trainings.hold_out(facts, held_out, settings.valid_facts, settings.seed)
    proposed = trainings.clean_name(f"{settings.method}-{'-'.join(facts)}")
    root = studio.hypernet_folders[0]
    folder = trainings.new_folder(root, name.strip() or trainings.free_name(root, proposed))
    begin = dict(studio.hypernets()).get(start)
    if start and begin is None:
        raise FactError(f"There is no trained hypernetwork {start} of this model to begin with. Choose one, or none.")
    return TrainRequest(facts, valid_facts, settings, folder, start=begin)


def resume_request(studio: Studio, name: str, steps: int) -> TrainRequest:
    """Go on with the training of that name until step `steps`. Raises EditingError when there is nothing to do."""
    for one in trainings.resumable(studio.hypernet_folders[0], _free_model(studio).sha256):
        if one.name == name:
            return trainings.resume_request(one, steps)
    raise FactError("Choose a training to go on with. Those of another model are not offered.")


def start_training(studio: Studio, workspace: Workspace, request: TrainRequest) -> Job:
    """Queue it behind the model's other work. The run is logged under the workspace's session.

    Raises EditingError while another training is going on.
    """
    model = _free_model(studio)

    def work(job: Job) -> Path | None:
        job.record({"name": request.folder.name, "folder": str(request.folder), "steps": request.settings.steps})
        refuse_other_model(studio, model, "nothing was trained. Train", unbegun)
        if not request.resume:
            try:
                trainings.keep_data(request.folder, request.train, request.valid)
            except BaseException as error:
                with suppress(StoreError):
                    unbegun(error=sentence(error))
                raise
        return _train(studio, workspace.session, request, job)

    unbegun = partial(log_unbegun_training, studio.store, model, workspace.session, request)
    title = f"Training {request.folder.name}"
    return studio.jobs.submit(title, work, model=model.sha256, workspace=WORKSPACE, unbegun=unbegun)


def _free_model(studio: Studio) -> EditableModel:
    model = studio.require_model()
    last = last_training(studio)
    if last is not None and not last.ended:
        raise EditingError(f"“{last.title}” is still going on. Wait for its end, or abort it.")
    return model


def _train(studio: Studio, session: int, request: TrainRequest, job: Job) -> Path | None:
    """Returns the folder of the published checkpoint. That of a failed or cancelled training is published too."""
    folder = request.folder
    try:
        execute_training(studio, session, request, job.progress, job.record)
    except BaseException:
        with suppress(EditingError):
            trainings.publish(folder)
        raise
    finally:
        if not (folder / STATE).is_file():
            trainings.drop_data(folder)
    return trainings.publish(folder)
