"""The page: the sidebar and a tab for each kind of work, and how it is served. It makes no request of its own.

The look is `assets/studio.css` over a Gradio theme whose fonts lie on this machine.
"""

import time
import uuid
from pathlib import Path
from typing import Any

import gradio as gr
from rich.console import Console
from starlette.middleware import Middleware

from engine.errors import EditingError
from studio import api
from studio.components.sidebar import Sidebar, start_loading
from studio.exports import exports_folder
from studio.quick_gradio import described_once, unserved
from studio.streams import LeftStreams
from studio.studio import Studio
from studio.tabs import history, projections, train
from studio.tabs.compare import CompareTab
from studio.tabs.edit import EditTab

TITLE = "AGRADE Studio"
STYLE = Path(__file__).resolve().parent.parent / "assets" / "studio.css"
STORAGE_KEY = "agrade-studio-workspace"
# Larger files are refused by the server; what the studio itself refuses is told beside the upload.
LARGEST_UPLOAD = "200mb"
# Gradio ships its weight 600 of these fonts with letters missing.
WEIGHTS = (400, 700)
ICON = (
    '<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 '
    "viewBox=%220 0 32 32%22%3E%3Crect width=%2232%22 height=%2232%22 rx=%227%22 fill=%22%230f766e%22/%3E"
    '%3Cpath d=%22M8 24 16 7l8 17M11 18h10%22 fill=%22none%22 stroke=%22white%22 stroke-width=%223%22 stroke-linecap=%22round%22/%3E%3C/svg%3E">'
)
# Ctrl+Enter (⌘ Enter) beside the sheet applies: the cell is left first, so that its text counts.
# Whoever comes back to the page sees what another page of the browser did meanwhile.
# A letter typed over a chosen cell opens it, but Gradio's editor is there too late for that letter: it is put in here,
# and a Tab or Enter that came before the editor is handed on.
# Gradio's sheet takes no paste on a chosen cell, and all rows for one text in an opened one: the fact sheet does it.
# A click anywhere else takes the choice of a cell away, which the script's own clicks shall not do.
KEYS = """
() => {
  document.addEventListener('click', ({target}) => {
    const tab = target.closest?.('[id^=tab-][id$=-button]');
    if (tab) sessionStorage.setItem('tab', tab.id);
  });

  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    if (!document.activeElement?.closest('#edit-facts, #edit-method')) return;
    event.preventDefault();
    document.activeElement.blur();
    setTimeout(() => document.getElementById('apply')?.click(), 200);
  }, true);

  window.addEventListener('focus', () => document.getElementById('returned')?.click());

  let typed = '', held = null;
  const put = (tries) => {
    const editor = document.activeElement;
    if (editor?.matches('#fact-sheet textarea')) {
      editor.setRangeText(typed, editor.selectionStart, editor.selectionEnd, 'end');
      editor.dispatchEvent(new Event('input', {bubbles: true}));
      if (held) setTimeout((key) => editor.dispatchEvent(new KeyboardEvent('keydown', key)), 50, held);
    } else if (tries) return setTimeout(put, 10, tries - 1);
    typed = '';
    held = null;
  };
  document.addEventListener('keydown', (event) => {
    if (typed && !event.ctrlKey && !event.metaKey && (event.key === 'Tab' || event.key === 'Enter')) {
      event.preventDefault();
      event.stopImmediatePropagation();
      held = {key: event.key, code: event.code, shiftKey: event.shiftKey, bubbles: true, cancelable: true};
      return;
    }
    if (event.key.length !== 1 || event.ctrlKey || event.metaKey || (!typed && event.key === ' ')) return;
    if (!typed && !document.activeElement?.matches('#fact-sheet :not(input, textarea, button)')) return;
    event.preventDefault();
    typed += event.key;
    if (typed.length === 1) setTimeout(put, 0, 200);  // two seconds: a busy machine opens the editor late
  }, true);

  document.addEventListener('paste', (event) => {
    const cell = document.activeElement?.closest('#fact-sheet [data-row]');
    if (!cell || cell.closest('[aria-readonly=true]')) return;
    const text = event.clipboardData.getData('text'), editor = cell.querySelector('textarea');
    if (!text || (editor && !/[\\t\\r\\n]/.test(text.trimEnd()))) return;
    event.preventDefault();
    editor?.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
    (window.pasted ??= []).push({text, row: Number(cell.dataset.row), column: Number(cell.dataset.col)});
    setTimeout(() => document.getElementById('facts-paste').click());
  }, true);
  // Gradio opens a list anew when Tab leaves it.
  document.addEventListener('focusout', ({target, isTrusted}) => {
    if (!isTrusted || !target.matches('[role=listbox], [role=combobox]')) return;
    setTimeout(() => document.activeElement === target || target.dispatchEvent(new FocusEvent('blur')), 200);
  });
  document.body.addEventListener('click', (event) => {
    if (event.target.matches('#facts-paste, #returned')) event.stopPropagation();
  });
}
"""

# A reloaded page comes back to the tab that was open; not before it knows its workspace, which the tab asks for.
TO_LAST_TAB = "() => { document.getElementById(sessionStorage.getItem('tab') ?? '')?.click(); }"


@unserved()
def build(studio: Studio) -> gr.Blocks:
    """The whole page over `studio`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        kept = gr.BrowserState("", storage_key=STORAGE_KEY, secret=STORAGE_KEY)
        session = gr.State("")
        with gr.Sidebar(width=310, elem_id="sidebar"):
            sidebar = Sidebar(studio, session)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Edit", id="edit", elem_id="tab-edit"):
                edit = EditTab(studio, session, sidebar)
            with gr.Tab("Compare", id="compare", elem_id="tab-compare"):
                CompareTab(studio, session, sidebar, edit.facts)
            with gr.Tab("Projections", id="projections", elem_id="tab-projections"):
                projections.build(studio, session)
            with gr.Tab("Train", id="train", elem_id="tab-train"):
                train.build(studio, session, sidebar)
            with gr.Tab("History", id="history", elem_id="tab-history"):
                history.build(studio, session, edit.facts)
        api.add_endpoints(studio)
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(enter, kept, [kept, session], **hidden).then(None, None, None, js=TO_LAST_TAB, **hidden)
    _forget_hidden_progress(page)
    return page.queue(default_concurrency_limit=16)


def _forget_hidden_progress(page: gr.Blocks) -> None:
    """Let events that show no progress have no component to show it on.

    At every message of any event the page looks up each component that ever had a status, through the whole tree:
    half a processor on a page of this size, taken from the model.
    """
    for event in page.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = []


def enter(kept: Any) -> tuple[str, str]:
    """The browser's workspace, the same after a reload; a new one for a browser that has none."""
    known = isinstance(kept, str) and kept.isalnum() and len(kept) <= 32
    key = kept if known else uuid.uuid4().hex[:12]
    return key, key


def launch_arguments() -> dict[str, Any]:
    """What `Blocks.launch` is told: the look, and that nothing leaves this machine."""
    theme = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        spacing_size="sm",
        radius_size="sm",
        text_size="sm",
        font=[gr.themes.LocalFont("IBM Plex Sans", WEIGHTS), "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", WEIGHTS), "ui-monospace", "monospace"],
    )
    # The theme's own greys and greens are too faint to be read comfortably.
    theme.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_700",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    theme.color_accent_dark = "*primary_600"  # `set` has no dark one
    return {
        "theme": theme,
        "css_paths": STYLE,
        "head": ICON,
        "js": KEYS,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "max_file_size": LARGEST_UPLOAD,
        "show_error": True,
        "app_kwargs": {"middleware": [Middleware(LeftStreams)]},
    }


def launch(
    studio: Studio, host: str, port: int, wanted: tuple[str, str, str, str | None], console: Console
) -> None:
    """Serve the page until Ctrl+C; the model `wanted` (name, device, dtype, module pattern) loads meanwhile.

    Raises EditingError when the port is taken, or the host is no address of this machine.
    """
    studio.local = host in ("localhost", "::1") or host.startswith("127.")
    page = build(studio)
    try:
        with described_once():
            page.launch(
                server_name=host,
                server_port=port,
                quiet=True,
                prevent_thread_lock=True,
                allowed_paths=[str(exports_folder(studio.store))],
                **launch_arguments(),
            )
    except OSError as error:
        raise EditingError(
            f"The studio cannot be opened on {host}, port {port}: another program has the port, perhaps another studio, "
            "or this machine has no such address. Choose another --port or --host."
        ) from error
    start_loading(studio, *wanted)  # not before: its imports would hold up the page
    console.print(f"AGRADE Studio is open on http://{host}:{port}  (Ctrl+C ends it)", highlight=False)
    try:
        while page.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        page.close(verbose=False)  # Gradio's block_thread would wait five seconds for the heartbeats of open pages
