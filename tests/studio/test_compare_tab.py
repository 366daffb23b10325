"""The Compare tab: what its form asks and says of each method, its job, what the page is told, without a browser."""

from pathlib import Path

import gradio as gr
import pytest

from engine.comparison import Entry
from engine.errors import EditingError, FactError, ModelError
from engine.fact_records import fact_to_record
from engine.facts import Fact, FactBatch
from studio.compare_job import last_comparison, start_comparison
from studio.comparison_record import read_comparison
from studio.comparisons import CompareRequest, entries_of
from studio.components.compare_form import CompareForm
from studio.components.comparison_view import ComparisonView
from studio.components.sidebar import Sidebar
from studio.store import Store
from studio.studio import Studio
from studio.tabs.compare import CompareTab
from studio.tabs.edit import EditTab
from tests.engine import tiny
from tests.engine.tiny import FACTS
from tests.studio.test_comparisons import SETTINGS
from tests.studio.wiring import comes_back, emptied_by, listeners

BATCH = FactBatch(FACTS, "five.csv", "studio")


@pytest.fixture
def studio(tmp_path, tiny_model, monkeypatch):
    """A studio over a tiny model, whose cache is the test's own folder; AGRADE has a hypernetwork there."""
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.model = tiny_model("llama")
    tiny.random_checkpoint(studio.model).save(studio.hypernet_folders[0] / "mine")
    yield studio
    studio.close()


def begin(studio: Studio, *keys: str, sizes: tuple[int, ...] = ()):
    request = CompareRequest(BATCH, entries_of(keys, SETTINGS, {}), sizes, 0)
    return start_comparison(studio, studio.workspace("w"), request)


def wait(job):
    assert job.ended.wait(300)
    return job.snapshot()


@pytest.fixture
def form(studio) -> CompareForm:
    with gr.Blocks():
        return CompareForm(studio)


def answers(form: CompareForm, methods=("agrade",), ablations=(), limit=0, sizes="", generate=8, **settings) -> list:
    """What the form's inputs hold: the defaults, but for what is given; METHOD_NAME names a setting."""
    hypernets = [settings.pop(f"hypernet_{name}", None) for name in form.hypernets]
    own = form.method_settings.answers.value
    own = {name: {f: settings.pop(f"{name}_{f}".replace("-", "_"), v) for f, v in own[name].items()} for name in own}
    assert not settings, settings
    return [list(methods), list(ablations), limit, sizes, generate, own, *hypernets]


# The form


def test_the_form_asks_for_what_is_chosen(form, studio):
    mine = str(studio.hypernet_folders[0] / "mine")
    given = answers(form, ("memit", "agrade"), ("no-c",), 3, "1, 2", 4, hypernet_agrade=mine, agrade_step_scale=0.5)
    request = form.request(BATCH, *given)
    assert [entry.key for entry in request.entries] == ["agrade", "agrade:no-c", "memit"]
    assert request.entries[0].hypernet == request.entries[1].hypernet == Path(mine)
    assert request.entries[0].settings["step_scale"] == request.entries[1].settings["step_scale"] == 0.5
    assert request.entries[2].settings["covariance_tokens"] == 100_000
    assert (len(request.facts), request.sizes, request.generate) == (3, (1, 2), 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": ()}, "No method was chosen"),
        ({"sizes": "few"}, "no numbers of facts"),
        ({"generate": None}, "Facts to generate for: a whole number from 0 on"),
        ({"generate": 2.5}, "Facts to generate for: a whole number from 0 on is needed, not 2.5"),
        ({"limit": -1}, "First facts only: a whole number from 0 on is needed, not -1"),
        ({"methods": ("ft",), "ft_steps": None}, "Steps: a number is needed"),
    ],
)
def test_what_cannot_be_read_is_named(form, given, said):
    with pytest.raises(EditingError, match=said):
        form.request(BATCH, *answers(form, **given))


def test_what_is_typed_for_a_count_arrives_unchanged(form):
    assert [one.preprocess(typed) for one in (form.limit, form.generate) for typed in (-1, 2.5)] == [-1, 2.5] * 2
    assert len(form.request(BATCH, *answers(form, limit=None)).facts) == len(FACTS), "left empty: all of the sheet"


def test_a_setting_of_a_method_that_was_not_chosen_does_not_matter(form):
    assert form.request(BATCH, *answers(form, ("agrade",), ft_steps=None)).entries[0].method == "agrade"


def needs(form: CompareForm, batch: FactBatch, *given) -> list[str]:
    """The rows of what is said of the methods."""
    html = form.look(batch, *given)[form.needs]
    return html.split("<tr>")[2:] or [html]


def test_what_each_method_needs_is_said_before_the_run(form, studio):
    settings = {"memit_covariance_tokens": 128, "memit_layers": "1-2", "memit_target_steps": 2}
    given = answers(form, ("agrade", "malmen", "memit", "ultraedit"), ("no-gradient-projection",), **settings)
    rows = needs(form, BATCH, *given)
    assert "AGRADE</td>" in rows[0] and "ready" in rows[0] and "good" in rows[0]
    assert "needs a hypernetwork trained so" in rows[1]
    assert "MALMEN" in rows[2] and "MALMEN needs a hypernetwork trained for" in rows[2] and "bad" in rows[2]
    assert "MEMIT" in rows[3] and "covariance is measured first" in rows[3] and "subject" in rows[3]
    assert "UltraEdit" in rows[4] and "nothing" in rows[4] and "ready" in rows[4]
    assert "About" in rows[4] and "for 3 of 5 methods on 5 facts, scoring included" in rows[4]


def test_a_fact_that_one_method_cannot_take_is_said_at_that_method(form):
    batch = FactBatch((Fact("it rains in", "Ulm"), *FACTS), "six.csv", "studio")
    rows = needs(form, batch, *answers(form, ("memit", "ultraedit"), memit_covariance_tokens=128))
    assert "Row 1" in rows[0] and "subject" in rows[0] and "ready" in rows[1]


def test_without_facts_or_model_nothing_is_promised(form, studio):
    rows = needs(form, FactBatch((), "sheet", "studio"), *answers(form, ("agrade", "malmen", "memit")))
    assert "ready" in rows[0] and "needs a hypernetwork" in rows[1] and "measured first" in rows[2]
    assert "About" not in rows[2], "no facts, no estimate"
    studio.model = None
    assert form.look(BATCH, *answers(form))[form.needs] == ""


def test_the_first_fitting_hypernetwork_is_offered(form, studio):
    updates = form.look(BATCH, *answers(form))
    dropdown = updates[form.hypernets["agrade"]]
    assert dropdown.value == str(studio.hypernet_folders[0] / "mine")
    assert updates[form.hypernets["malmen"]].value is None


def test_the_settings_of_a_method_say_what_this_models_own_are(form, studio):
    updates = form.show("ft")
    assert [name for name, group in form.method_settings.groups.items() if updates[group].visible] == ["ft"]
    assert updates[form.method_settings.forms["ft"].controls["layers"]].info.endswith("(3)")
    assert set(updates) <= set(form.method_settings.outputs)


# The job


def test_a_comparison_is_a_job_of_its_workspace(studio):
    job = begin(studio, "ft", "ultraedit")
    with pytest.raises(EditingError, match="still going on"):
        begin(studio, "ft")
    shot = wait(job)
    assert shot.state == "done" and shot.title == "Compare 2 methods on 5 facts"
    number = studio.workspace("w").comparison
    assert shot.result == number and last_comparison(studio, studio.workspace("w")).id == job.id
    assert last_comparison(studio, studio.workspace("other")) is None
    assert [one for one in shot.log if "comparison" in one] == [{"comparison": number}]
    assert [(one["name"], one["ended"]) for one in shot.log[1:]] == [
        (name, ended) for name in ("Unedited model", "FT", "UltraEdit") for ended in (False, True)
    ]
    assert studio.workspace("w").current is None, "the person's own edit is not touched"


def test_a_cancelled_job_keeps_what_is_finished(studio):
    job = begin(studio, "ft", "ultraedit", sizes=(1, 2, 3))
    while sum(one.get("ended", False) for one in job.snapshot().log) < 2:
        job.ended.wait(0.01)
    studio.jobs.cancel(job.id)
    assert wait(job).state == "cancelled"
    found = read_comparison(studio.store, studio.workspace("w").comparison)
    assert found.row["status"] == "cancelled" and found.edited[0].key == "ft" and len(found.sweep) < 9


def test_what_cannot_begin_is_refused(studio):
    with pytest.raises(FactError, match="there is no fact"):
        start_comparison(studio, studio.workspace("w"), CompareRequest(FactBatch((), "x", "studio"), (Entry("ft"),)))
    with pytest.raises(EditingError, match="No method was chosen"):
        start_comparison(studio, studio.workspace("w"), CompareRequest(BATCH, ()))
    studio.model = None
    with pytest.raises(ModelError, match="not loaded yet"):
        begin(studio, "ft")


def test_a_page_open_to_others_reads_no_files_of_this_computer(studio, form):
    studio.local = False
    entries = entries_of(["memit"], {"memit": {"covariance_text": "/etc/passwd"}}, {})
    with pytest.raises(FactError, match="open to other computers"):
        start_comparison(studio, studio.workspace("w"), CompareRequest(BATCH, entries))
    rows = needs(form, BATCH, *answers(form, ("memit",), memit_covariance_text="/etc/passwd"))
    assert "open to other computers" in rows[0]


# The page


@pytest.fixture
def tab(studio) -> CompareTab:
    with gr.Blocks():
        session = gr.State("w")
        sidebar = Sidebar(studio, session)
        with gr.Tab():
            edit = EditTab(studio, session, sidebar)
        with gr.Tab():
            return CompareTab(studio, session, sidebar, edit.facts)


def test_the_page_follows_a_comparison_to_its_end(studio, tab):
    workspace = studio.workspace("w")
    job = begin(studio, "ft", sizes=(2,))
    updates = list(tab._follow(workspace, job.id))
    first = next(one for one in updates if tab.view.number in one)
    assert first[tab.view.number] == workspace.comparison
    assert sum(tab.view.number in one for one in updates) == 1, "shown once, then grown: what was opened stays open"
    assert updates[-1][tab.start].interactive and not updates[-1][tab.cancel].interactive
    assert updates[-1][tab.bar] == ""


def test_a_second_page_that_is_refused_follows_what_goes_on(studio, tab, form):
    job = begin(studio, "ft", "ultraedit")
    updates = tab._start("w", [list(fact_to_record(FACTS[0]).values())], *answers(form, ("ft",)))
    first = next(updates)
    assert "still going on" in first[tab.problem] and first[tab.cancel].interactive and not first[tab.start].interactive
    *_, last = updates
    assert wait(job).state == "done" and last[tab.problem] == "" and last[tab.start].interactive
    assert studio.workspace("w").comparison == job.snapshot().result


def test_a_page_that_is_opened_later_has_the_form_as_it_was(studio, tab):
    assert tab._form("w") == {tab.form.methods: gr.skip()}, "nothing was compared"
    tiny.random_checkpoint(studio.model).save(studio.hypernet_folders[0] / "zweites")
    second = str(studio.hypernet_folders[0] / "zweites")
    given = answers(tab.form, ("ft", "agrade"), ("no-c",), 1, "", 0, hypernet_agrade=second, ft_steps=2)
    *_, last = tab._start("w", [list(fact_to_record(FACTS[0]).values())], *given)
    assert last[tab.problem] == ""
    again, form = tab._form("w"), tab.form
    assert [again[one] for one in (form.methods, form.ablations, form.limit, form.sizes)] == given[:4]
    assert again[form.hypernets["agrade"]].value == second and again[form.generate] == 0
    forms = form.method_settings.forms
    assert again[form.method_settings.answers]["ft"]["steps"] == again[forms["ft"].controls["steps"]].value == 2
    assert forms["lora"].controls["rank"] not in again, "is as it was made"
    assert set(again) <= set(form.kept)
    # A look that began when the page was opened may come after: it does not take the first hypernetwork instead.
    opened = form.look(BATCH, *answers(form, ("agrade",)), before=studio.workspace("w").compared)
    assert opened[form.hypernets["agrade"]].value == second


def test_a_page_that_is_opened_later_finds_the_comparison(studio, tab):
    assert next(tab._enter("w"))[tab.view.scored].visible is False
    wait(begin(studio, "ft"))
    updates = next(tab._enter("w"))
    assert updates[tab.view.scored].visible and updates[tab.view.compared].visible
    assert "FT" in updates[tab.view.table] and "Prompt" not in updates[tab.view.head]
    assert FACTS[0].prompt in updates[tab.view.grid]


def test_a_page_that_is_come_back_to_shows_the_comparison_of_another_one(studio, tab):
    (entered,) = tab._enter("w")
    seen = entered[tab.seen]
    assert list(tab._look_again("w", None)) == list(tab._look_again("w", seen)) == [{tab.bar: gr.skip()}]
    job = begin(studio, "ft")
    first, *_, last = tab._look_again("w", seen)
    assert not first[tab.start].interactive and list(tab._look_again("w", first[tab.seen])) != [{tab.bar: gr.skip()}]
    assert wait(job).state == "done" and last[tab.start].interactive
    assert list(tab._look_again("w", last[tab.seen])) == [{tab.bar: gr.skip()}]
    (ended,) = tab._look_again("w", first[tab.seen])
    assert ended[tab.view.number] == studio.workspace("w").comparison and ended[tab.start].interactive
    assert ended[tab.seen] == last[tab.seen]
    studio.forget(ended[tab.view.number])  # as when its run is deleted
    (gone,) = tab._look_again("w", ended[tab.seen])
    assert gone[tab.view.number] is None and list(tab._look_again("w", gone[tab.seen])) == [{tab.bar: gr.skip()}]


def test_a_page_is_looked_at_again_when_a_person_comes_back_to_it_or_to_the_tab(tab):
    back = {(tab.top.parent._id, "select"), (tab.sidebar.returned._id, "click")}
    assert comes_back(tab.problem, "_look_again") == back


def test_what_was_said_of_other_answers_goes_with_them(tab):
    form = tab.form
    mended = {(form.methods._id, "change"), (form.limit._id, "blur"), (tab.facts.rows._id, "change")}
    assert mended <= emptied_by(tab.problem)


def test_the_view_opens_a_fact_turns_pages_and_writes_the_files(studio):
    wait(begin(studio, "ft", "ultraedit"))
    number = studio.workspace("w").comparison
    with gr.Blocks():
        view = ComparisonView(studio.store, "x")
    opened = view._open(number, gr.SelectData(None, {"index": 0, "value": 1}))
    assert opened[view.place] == 1 and FACTS[1].target in opened[view.detail].value
    assert "UltraEdit" in opened[view.detail].value and "Unedited model" in opened[view.detail].value
    turned = view._turned(1)(number, "In the order of the facts", 1, 1)
    assert turned[view.page] == 1 and 'data-fact="1" class=chosen' in turned[view.grid]
    assert "token" in view._read_so(number, "token+label")[view.table]
    exported = view._export(number)
    written = view._offer(number, exported)
    names = {file["orig_name"] for file in written[view.files].value}
    assert {"summary.json", "comparison.csv", "comparison.md", "comparison.tex", "plots.html", "facts.csv"} <= names
    assert written[view.command].value.startswith("python app.py compare")
    assert view._offer(number + 1, exported) == gr.skip(), "another comparison is shown by now"
    assert view._export(None) is None
    assert view._offer(None, None) == gr.skip() == view._open(None, None), "an empty dict would be a missing output"


def test_files_are_offered_under_the_comparison_that_is_shown_when_they_are_there(studio):
    with gr.Blocks() as page:
        view = ComparisonView(studio.store, "x")
    (export,), (offer,) = listeners(page, "_export"), listeners(page, "_offer")
    assert export.outputs == [view.exported] and offer.trigger_after == export._id
    assert offer.inputs == [view.number, view.exported] and offer.outputs == view._written
    failed = view._export(99)
    updates = view._offer(99, failed)
    assert "no run 99" in updates[view.told].value and not updates[view.files].visible


def test_an_empty_view_says_what_will_be_there(studio):
    with gr.Blocks():
        view = ComparisonView(studio.store, "x")
    updates = view.show(None)
    assert "No comparison yet" in updates[view.head] and not updates[view.scored].visible
