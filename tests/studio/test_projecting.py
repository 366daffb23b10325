"""A run's picture without a page: its choices, its files, its settings in the database, and what cannot be drawn."""

import csv
import json
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from engine.errors import Cancelled, EditingError
from engine.facts import Fact, FactBatch
from engine.projection import ProjectionSettings
from studio import picture_files
from studio.components import numbers_table, selection
from studio.components.linked_plot import LinkedPlot
from studio.components.point_labels import FAILED, REST, SUCCEEDED, PointLabels
from studio.components.projection_figure import Look, arrow_lines, projection_figure
from studio.components.run_detail import command_line
from studio.figure3 import make_figure3, save_figure3
from studio.picture import (
    Choice,
    caption,
    default_choice,
    finished_picture,
    first_picture,
    link_numbers,
    open_source,
    pairs,
)
from studio.picture_files import save_picture, stem_of
from studio.projecting import DrawRequest, draw_files
from studio.records import find_record, open_record, record_path, trace_again
from studio.runs import EditRequest, execute_edit
from tests.engine import tiny
from tests.studio.records import plain

PCA = ProjectionSettings(method="pca", components=8)


def picture(drawn, number=1, **changes):
    source = open_source(drawn.store, number)
    choice = replace(default_choice(source.record, changes.pop("family", "features"), PCA), **changes)
    other = choice.beside.partition(":")
    sources = [source, *([open_source(drawn.store, int(other[2]))] if other[0] == "run" else [])]
    return first_picture(sources, choice)


def test_a_run_keeps_its_record_as_an_artifact_and_its_row_says_how_much(drawn):
    run = drawn.store.run(1)
    [artifact] = [one for one in run.artifacts if one["kind"] == "record"]
    assert artifact["path"] == str(record_path(drawn.store, 1)) and artifact["bytes"] > 1000
    assert run.row["hparams"]["keep"] == 400
    assert open_record(run).card.fact_count == len(tiny.FACTS)


def test_a_cancelled_edit_keeps_nothing(drawn, hypernet_folder):
    def cancel(stage, done, _total):
        if stage == "Scoring" and done:
            raise Cancelled

    batch = FactBatch(tiny.FACTS, "tiny.csv", "studio")
    session = drawn.store.start_session("test", "w2")
    with pytest.raises(Cancelled):
        execute_edit(drawn, session, EditRequest(batch, "agrade", {}, hypernet_folder, keep=400), cancel)
    last = drawn.store.runs(limit=1)[0]
    assert last["status"] == "cancelled" and not record_path(drawn.store, last["id"]).exists()
    with pytest.raises(EditingError, match="it is cancelled"):
        open_record(drawn.store.run(last["id"]))


def test_a_run_that_kept_nothing_is_traced_again_to_the_same_record(drawn, forgetful):
    assert find_record(drawn.store.run(forgetful)) is None and not record_path(drawn.store, forgetful).exists()
    with pytest.raises(EditingError, match="Trace again"):
        open_source(drawn.store, forgetful)
    fresh = trace_again(drawn, drawn.store.run(forgetful))
    first = open_source(drawn.store, 1).record
    for kind in first.kinds("features"):
        np.testing.assert_array_equal(fresh.matrix(kind, 1), first.matrix(kind, 1))
    assert open_source(drawn.store, forgetful).record.card == first.card


def test_a_run_is_traced_again_by_the_hypernetwork_that_it_had(drawn, hypernet_folder, monkeypatch):
    """It named none: the first one was taken, which another may be by now."""
    monkeypatch.setattr("studio.runs.default_hypernet", lambda *_asked: hypernet_folder)
    monkeypatch.setattr("engine.editing.default_hypernet", None)
    batch, session = FactBatch(tiny.FACTS, "tiny.csv", "studio"), drawn.store.start_session("test", "w5")
    run, _ = execute_edit(drawn, session, EditRequest(batch, "agrade", keep=0))
    assert drawn.store.run(run).row["hparams"]["hypernet"] == str(hypernet_folder.absolute())
    assert f"--hypernet {hypernet_folder.absolute()}" in command_line(drawn.store.run(run), "facts.csv")
    fresh, first = trace_again(drawn, drawn.store.run(run)), open_source(drawn.store, 1).record
    np.testing.assert_array_equal(fresh.matrix("shift", 1), first.matrix("shift", 1))


def test_a_run_of_another_model_or_module_pattern_is_not_traced(drawn, forgetful, monkeypatch):
    stored = drawn.store.run(forgetful)
    monkeypatch.setattr(drawn.model, "asked", {"module_pattern": "model.layers.{}.self_attn.o_proj"})
    with pytest.raises(EditingError, match="edited .* without a module pattern. Load it so first"):
        trace_again(drawn, stored)
    stored.row["hparams"]["module_pattern"] = "model.layers.{}.mlp.up_proj"
    with pytest.raises(EditingError, match="with the module pattern model.layers.{}.mlp.up_proj. Load it so first"):
        trace_again(drawn, stored)
    monkeypatch.setattr(drawn.model, "sha256", "0" * 64)
    with pytest.raises(EditingError, match="is loaded. Load .* first"):
        trace_again(drawn, stored)


def test_the_picture_is_the_papers_by_default(drawn):
    found = picture(drawn)
    assert [cloud.kind for cloud in found.clouds] == ["M", "HtG_before", "HtG", "shift_before", "shift"]
    assert found.final and found.count == 5 * 24
    [panel] = found.panels
    assert pairs(found, panel) == [(1, 2), (3, 4)]
    tokens = picture(drawn, family="tokens")
    assert [cloud.kind for cloud in tokens.clouds] == ["grad", "G_before", "G"]


def test_two_modules_stand_beside_each_other_in_one_basis(drawn):
    found = picture(drawn, modules=(1,), kinds=("G",), family="tokens", beside="module:0")
    assert [panel.title for panel in found.panels] == ["layer 2", "layer 1"]
    together = picture(drawn, modules=(0, 1), kinds=("G",), family="tokens")
    left, right = (panel.projection.points[0] for panel in found.panels)
    np.testing.assert_allclose(right, together.panels[0].projection.points[0], atol=1e-5)
    np.testing.assert_allclose(left, together.panels[0].projection.points[1], atol=1e-5)
    one, other = link_numbers(found)
    np.testing.assert_array_equal(one, other)  # the same tokens, in the same order
    with pytest.raises(EditingError, match="already drawn"):
        picture(drawn, modules=(1,), beside="module:1")


def test_two_methods_and_two_runs(drawn):
    methods = picture(drawn, kinds=("HtG",), beside="method:tsne")
    assert not methods.final and [panel.title for panel in methods.panels] == ["PCA", "t-SNE"]
    done = finished_picture(methods)
    np.testing.assert_array_equal(done.panels[0].projection.points[0], methods.panels[0].projection.points[0])
    assert not np.allclose(done.panels[1].projection.points[0], methods.panels[1].projection.points[0])
    runs = picture(drawn, kinds=("HtG",), beside="run:2")
    assert [panel.title for panel in runs.panels] == ["run 1: AGRADE", "run 2: MALMEN"]
    # MALMEN's HᵀG is AGRADE's before Eq. 4, so it lands on it.
    before = picture(drawn, kinds=("HtG_before", "HtG"))
    np.testing.assert_allclose(runs.clouds[1].rows, before.clouds[0].rows, rtol=1e-4, atol=1e-7)
    one, other = link_numbers(runs)
    np.testing.assert_array_equal(one, other)
    with pytest.raises(EditingError, match="without Eq. 4"):
        picture(drawn, kinds=("HtG_before",), beside="run:2")


def test_across_modules_units_go_together_that_are_most_active_at_the_same_token(drawn):
    found = picture(drawn, modules=(1,), kinds=("HtG",), beside="module:0")
    one, other = link_numbers(found)
    left, right = found.clouds
    same = (left.facts[:, None] == right.facts) & (left.positions[:, None] == right.positions)
    assert same.any()
    np.testing.assert_array_equal(one[:, None] == other, same)
    assert any("no hidden units in common" in note for note in found.notes)


def test_runs_that_edited_other_layers_and_facts_are_linked_by_what_they_share(drawn):
    batch = FactBatch(tiny.FACTS[::-1], "turned.csv", "studio")
    session = drawn.store.start_session("test", "w4")
    number, _ = execute_edit(drawn, session, EditRequest(batch, "ultraedit", {"layers": "2"}, None, 0, keep=400))
    found = picture(drawn, modules=(1,), kinds=("G",), family="tokens", beside=f"run:{number}")
    one, other = link_numbers(found)
    left, right = found.clouds
    assert (left.module, right.module) == (1, 0) and left.layer == right.layer == 2
    prompts = [source.run.facts for source in found.sources]
    for row, number in enumerate(one.tolist()):
        [twin] = np.flatnonzero(other == number)
        assert prompts[0][left.facts[row]].prompt == prompts[1][right.facts[twin]].prompt
        assert left.positions[row] == right.positions[twin]
    assert any("has no matrices before Eq. 4" in note and "single module" in note for note in found.notes)


def test_a_legend_of_many_colours_leaves_the_page_its_plot_and_is_whole_in_a_file(drawn):
    tokens = picture(drawn, family="tokens")
    page, file = (projection_figure(tokens, Look("fact", webgl=webgl)) for webgl in (True, False))
    assert page.layout.legend2.maxheight < 0.2 and file.layout.legend2.maxheight is None


def test_figure_has_points_arrows_margins_and_a_legend_of_the_matrices(drawn):
    figure = projection_figure(picture(drawn))
    points = [trace for trace in figure.data if trace.meta]
    assert [trace.type for trace in points] == ["scattergl"] * 5
    assert [trace.name for trace in points if trace.showlegend] == [
        "M", "HᵀG before Eq. 4", "HᵀG", "Δθ before Eq. 4", "Δθ",
    ]  # fmt: skip
    assert sum(trace.mode == "lines" and trace.fill is None for trace in figure.data) == 2  # arrows
    margins = [trace for trace in figure.data if trace.fill]
    assert len(margins) == 10 and {trace.fill for trace in margins} == {"tozeroy", "tozerox"}
    without = projection_figure(picture(drawn), Look(arrows=False))
    assert not [trace for trace in without.data if trace.mode == "lines" and not trace.fill]
    assert "hidden unit" in points[0].text[0] and "fact" in points[0].text[0]
    assert {trace.type for trace in projection_figure(picture(drawn), Look(webgl=False)).data} == {"scatter"}
    first, coloured = projection_figure(picture(drawn)), projection_figure(picture(drawn), Look("fact"))
    rings = {trace.name for trace in first.data if trace.marker.symbol == "circle-open"}
    assert rings == {"HᵀG before Eq. 4", "Δθ before Eq. 4"}
    assert first.layout.uirevision == coloured.layout.uirevision  # the zoom survives other colours
    assert first.layout.uirevision != projection_figure(picture(drawn, kinds=("M",))).layout.uirevision
    assert not any(" " in trace.uid for trace in first.data)  # plotly.js makes selectors of them
    told = projection_figure(picture(drawn), Look(webgl=False, caption="word " * 100))
    under = told.layout.annotations[-1]
    assert under.text.count("word") == 100 and under.text.count("<br>") > 2
    assert told.layout.margin.b > 15 * under.text.count("<br>") - under.yshift  # a line takes less than 15 pixels
    sent = json.loads(LinkedPlot.value_of(first))["data"]
    assert [trace["uid"] for trace in sent] == [trace.uid for trace in first.data] and LinkedPlot.value_of(None) == ""


def test_arrows_lead_from_before_to_after():
    start, end = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])
    lines = arrow_lines(start, end, 0.1).reshape(2, 6, 2)
    np.testing.assert_array_equal(lines[:, 0], start)
    np.testing.assert_array_equal(lines[:, 1], end)
    np.testing.assert_allclose(lines[0, 2], [1.9, 0.05])
    assert np.isnan(lines[:, 5]).all() and np.isfinite(lines[:, :5]).all()


def test_colours_name_what_they_group_by(drawn):
    labels = PointLabels(picture(drawn, family="tokens"))
    assert labels.groups("matrix").names == ("∇G", "G before Eq. 4", "G")
    assert labels.groups("module").names == ("layer 2",)
    assert set(labels.groups("outcome").names) <= {SUCCEEDED, FAILED}
    relations = labels.groups("relation").names
    assert "The capital of … is" in relations
    facts = labels.groups("fact")
    cloud = labels.picture.clouds[0]
    for row in range(len(cloud.rows)):
        assert facts.names[facts.members[0][row]].startswith(f"{int(cloud.facts[row]) + 1}: ")
    tokens = labels.groups("token").names
    assert REST in tokens and len(tokens) == 12


def test_a_hostile_fact_is_no_markup(drawn, tmp_path):
    found = picture(drawn)
    run = replace(found.sources[0].run, facts=[Fact("<img src=x onerror=alert(1)>", "<b>")] * len(tiny.FACTS))
    hostile = replace(found, sources=(replace(found.sources[0], run=run),))
    figure = projection_figure(hostile, Look("fact"))
    assert "<img" not in figure.to_json().replace("\\u003c", "<") and "&lt;img" in figure.to_json()


def test_what_lies_under_a_lasso_and_who_is_near(drawn, tmp_path):
    found = picture(drawn, family="tokens")
    value = [{"cloud": 2, "rows": [0, 3]}, {"cloud": 9, "rows": [0]}, {"cloud": 1, "rows": [10**6, "x"]}, "nonsense"]
    chosen = selection.read_selection(found, value[:3])
    assert chosen == [(2, [0, 3])] and selection.read_selection(found, "nonsense") == []
    rows = selection.selected_rows(found, chosen)
    known = dict(zip(selection.COLUMNS, rows[0]))
    fact = tiny.FACTS[found.clouds[2].facts[0]]
    assert (known["matrix"], known["prompt"], known["target"]) == ("G", fact.prompt, fact.target)
    assert known["norm"] == pytest.approx(np.linalg.norm(found.clouds[2].rows[0]), rel=1e-5)
    assert "2 points" in selection.summary_html(found, chosen)
    path = selection.write_selection(found, chosen, tmp_path / "chosen.csv")
    assert len(list(csv.DictReader(path.open()))) == 2
    nearest = [dict(zip(selection.NEIGHBOUR_COLUMNS, row)) for row in selection.neighbour_rows(found, 2, 0)]
    every = np.concatenate([cloud.rows for cloud in found.clouds])
    distances = np.sort(np.linalg.norm(every - found.clouds[2].rows[0], axis=1))
    assert [one["distance"] for one in nearest] == pytest.approx(distances[1:13], rel=1e-4)


def test_numbers_are_shown_and_the_papers_claim_is_counted(drawn):
    card = open_source(drawn.store, 1).record.card
    html = numbers_table.numbers_html([("Run 1", card)])
    assert html.count("<tr>") == 1 + len(card.modules) and "→" in html
    told = numbers_table.claims(card.numbers)[0]
    changed = card.numbers[1]
    assert ("in 1 of 1 module by cosine" in told) == (changed.cosine[1] > changed.cosine[0])
    assert numbers_table.claims(open_source(drawn.store, 2).record.card.numbers) == []


def test_figures_that_would_look_alike_are_told_by_what_is_missing_to_one():
    assert numbers_table.pair_text((0.25, 0.5), 3) == "0.250 → 0.500"
    assert numbers_table.pair_text((None, 0.5), 3) == numbers_table.pair_text((0.5, 0.5), 3) == "0.500"
    assert numbers_table.pair_text((1 - 2.31e-7, 1 + 4e-7), 3) == "1−2.31e-07 → 1+4.00e-07"
    assert numbers_table.pair_text((0.9, 1 - 4e-7), 4) == "0.9000 → 1.0000"
    assert numbers_table.pair_text((0.99471, 0.99469), 4) == "0.99471 → 0.99469", "what differs is seen to"
    assert numbers_table.pair_text((-1e-12, 1e-12), 4) == "0.0000", "what cannot be seen to is one figure"


def test_a_saved_picture_is_four_files_and_its_settings_are_in_the_database(drawn, tmp_path, monkeypatch):
    def write_images(_figure, paths, _size):
        for path in paths:
            path.write_bytes(b"an image")
        return ""

    monkeypatch.setattr(picture_files, "write_images", write_images)
    found = picture(drawn, family="tokens", beside="method:pca")
    saved = save_picture(drawn.store, found, Look("outcome"), tmp_path, stem_of(found))
    assert saved.paths["csv"].name.startswith("run-1-tokens-")
    assert set(saved.paths) == {"png", "svg", "html", "csv"} and not saved.notes
    points = list(csv.DictReader(saved.paths["csv"].open()))
    assert len(points) == found.count and {"x", "y", "matrix", "fact", "token", "outcome"} <= set(points[0])
    page = saved.paths["html"].read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and "<script src=" not in page and "<link" not in page
    assert "sendChartToCloud" in page.rpartition("Plotly.newPlot")[2]  # the button is taken off
    kept = {
        row["kind"]: json.loads(row["settings_json"])
        for row in plain(drawn.store)["artifacts"].rows_where("run = 1 AND kind LIKE 'projection%'")
    }
    assert set(kept) == {f"projection {kind}" for kind in saved.paths}
    assert kept["projection png"]["family"] == "tokens" and kept["projection png"]["colour"] == "outcome"
    assert kept["projection png"]["settings"]["components"] == 8
    save_picture(drawn.store, found, Look("matrix"), tmp_path, stem_of(found))
    rows = list(plain(drawn.store)["artifacts"].rows_where("run = 1 AND kind = 'projection csv'"))
    assert len(rows) == 1 and json.loads(rows[0]["settings_json"])["colour"] == "matrix"


def test_without_a_browser_the_other_files_are_written_and_why_is_said(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    found = picture(drawn, family="tokens")
    saved = save_picture(drawn.store, found, Look(), tmp_path, "picture")
    assert set(saved.paths) == {"html", "csv"} and "No PNG or SVG was written" in saved.notes[0]
    assert (tmp_path / "picture.html").is_file() and not list(tmp_path.glob("*.png"))


def test_what_chrome_says_against_an_image_is_told(tmp_path, monkeypatch):
    import kaleido

    def refuse(*_, **__):
        raise ValueError("no such selector")

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", refuse)
    told = picture_files.write_images(go.Figure(), [tmp_path / "a.png"], (100, 100))
    assert told == "No PNG was written: Chrome said 'no such selector'. The HTML and CSV are there."


def test_figure_3_has_both_families_and_its_settings_in_the_caption(drawn, tmp_path):
    figure = make_figure3(open_source(drawn.store, 1), PCA)
    for words in ("Run 1: 5 facts", "AGRADE", "layer 2", "PCA of 16 columns to 8", "(b)", "seed 0", "Eq. 4: scaled"):
        assert words in figure.caption, figure.caption
    saved = save_figure3(drawn.store, figure, tmp_path)
    rows = list(csv.DictReader(saved.paths["csv"].open()))
    assert {row["figure"] for row in rows} == {"a", "b"}
    assert len(rows) == figure.features.count + figure.tokens.count


@pytest.mark.parametrize(("method", "said"), [("tsne", "perplexity 4.67"), ("umap", "n_neighbors 14")])
def test_the_caption_says_the_setting_that_so_few_points_allow(drawn, method, said):
    found = picture(drawn, family="tokens", kinds=("G",), settings=replace(PCA, method=method, sample=15, neighbours=20))
    assert found.count == 15 and said in caption(found), caption(found)


def test_requests_that_cannot_be_drawn_are_sentences(drawn, tmp_path):
    for changes, words in (
        ({"run": 99}, "no run 99"),
        ({"family": "atoms"}, "nothing called 'atoms'"),
        ({"modules": "7"}, "Layer '7' was not edited"),
        ({"family": "tokens", "matrices": "M"}, "M has no rows that are tokens"),
        ({"family": "tokens", "beside": "moon"}, "--beside moon"),
        ({"beside": "run:2"}, "Figure 3 has its own"),
        ({"colour": "mood"}, "no colour by 'mood'"),
        ({"family": "features", "beside": "method:pie"}, "no method 'pie'"),
    ):
        with pytest.raises((EditingError, ValueError), match=words):
            draw_files(drawn.store, DrawRequest(**{"run": 1, "settings": PCA} | changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_single_fact_and_a_single_module_say_what_cannot_be_drawn(drawn, hypernet_folder, tmp_path):
    session = drawn.store.start_session("test", "w3")
    batch = FactBatch((Fact("Seen", "twice"),), "one.csv", "studio")
    number, _ = execute_edit(drawn, session, EditRequest(batch, "agrade", {}, hypernet_folder, 0, keep=400))
    record = open_source(drawn.store, number).record
    if len(record.card.facts) == 1:
        with pytest.raises(EditingError, match="one token row only"):
            picture(drawn, number, family="tokens")
    assert picture(drawn, number).count > 2
    single = replace(record.card, modules=record.card.modules[:1], unchanged=(0,))
    record.card = single
    source = replace(open_source(drawn.store, number), record=record)
    with pytest.raises(EditingError, match="single module"):
        first_picture([source], Choice("features", (0,), ("HtG_before",), "", PCA))
