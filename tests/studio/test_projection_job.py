"""Pictures as jobs: PCA is there first, a cancel leaves it, a new picture takes the old one's place."""

import time
from dataclasses import replace

import pytest

from engine.projection import ProjectionSettings
from studio import projection_job
from studio.components.projection_figure import Look
from studio.jobs import Job
from studio.picture import default_choice, open_source
from studio.projection_job import (
    KEPT_PICTURES,
    Gallery,
    cancel_projection,
    last_projection,
    start_picture,
    start_saving,
    start_tracing,
)

PCA = ProjectionSettings(method="pca", components=8)
TSNE = replace(PCA, method="tsne")


@pytest.fixture
def endless(monkeypatch):
    """A t-SNE that goes on until it is cancelled."""

    def finished(_picture, progress):
        for step in range(100_000):
            progress("t-SNE", step, 100_000)
            time.sleep(0.01)
        raise AssertionError("nobody cancelled it")

    monkeypatch.setattr(projection_job, "finished_picture", finished)


def choice(drawn, settings=PCA, **changes):
    return replace(default_choice(open_source(drawn.store, 1).record, "tokens", settings), **changes)


def ended(job: Job):
    assert job.ended.wait(120)
    return job.snapshot()


def first_drawn(job: Job) -> None:
    give_up = time.monotonic() + 120
    while not job.snapshot().log:
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_pca_is_there_at_once_and_a_cancel_leaves_it(drawn, endless):
    gallery = Gallery()
    job = start_picture(drawn, "page", gallery, 1, choice(drawn, TSNE))
    first_drawn(job)
    picture = gallery.picture("page")
    assert not picture.final and picture.panels[0].projection.axes[0].startswith("PC 1")
    cancel_projection(drawn, "page")
    shot = ended(job)
    assert shot.state == "cancelled" and [one["drawn"] for one in shot.log] == ["first"]
    assert gallery.picture("page") is picture


def test_a_new_picture_takes_the_old_ones_place_on_its_page_only(drawn, endless):
    gallery = Gallery()
    old = start_picture(drawn, "page", gallery, 1, choice(drawn, TSNE))
    other = start_picture(drawn, "other page", gallery, 1, choice(drawn, TSNE))
    first_drawn(old)
    first_drawn(other)
    new = start_picture(drawn, "page", gallery, 1, choice(drawn, PCA, kinds=("G",)))
    assert ended(old).state == "cancelled" and ended(new).state == "done"
    assert len(gallery.picture("page").clouds) == 1 and len(gallery.picture("other page").clouds) == 3
    assert last_projection(drawn, "page").id == new.id
    assert not other.ended.is_set()
    cancel_projection(drawn, "other page")
    assert ended(other).state == "cancelled"


def test_what_cannot_be_drawn_fails_as_a_sentence_and_leaves_the_picture(drawn):
    gallery = Gallery()
    ended(start_picture(drawn, "page", gallery, 1, choice(drawn)))
    before = gallery.picture("page")
    shot = ended(start_picture(drawn, "page", gallery, 1, choice(drawn, kinds=())))
    assert shot.state == "failed" and shot.error.startswith("No matrix is chosen")
    assert gallery.picture("page") is before


def test_pictures_of_pages_long_left_are_let_go(drawn):
    gallery = Gallery()
    for page in range(KEPT_PICTURES + 1):
        ended(start_picture(drawn, f"page {page}", gallery, 1, choice(drawn)))
    assert gallery.picture("page 0") is None and gallery.picture(f"page {KEPT_PICTURES}") is not None


def test_saving_and_tracing_are_jobs_too(drawn, forgetful, monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    gallery = Gallery()
    ended(start_picture(drawn, "page", gallery, 1, choice(drawn)))
    shot = ended(start_saving(drawn, "page", gallery.picture("page"), Look()))
    assert shot.state == "done" and set(shot.result.paths) == {"html", "csv"} and shot.result.notes
    assert ended(start_tracing(drawn, "page", forgetful)).state == "done"
    assert open_source(drawn.store, forgetful).record.card.fact_count == 5
