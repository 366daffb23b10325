"""The Edit tab: facts in, an edit by a method, what changed and what did not, and any prompt asked before and after.

The edit is a job: it goes on when the page is closed, and the page finds it again when it is opened.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from engine.editors import EDITORS
from engine.errors import EditingError
from engine.facts import FactBatch
from engine.generation import Probe, probe
from studio.components import probe_view
from studio.components.edit_settings import EditSettings
from studio.components.export_box import ExportBox
from studio.components.fact_sheet import FactSheet, problems_html
from studio.components.markup import empty, note
from studio.components.panel import panel, said
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.progress_bar import watch
from studio.components.results import Results
from studio.components.sidebar import Sidebar
from studio.connection import StoreError
from studio.edit_job import jobs_of, last_edit, show_current, start_edit
from studio.jobs import JobError, Snapshot
from studio.runs import EditRequest
from studio.studio import Studio
from studio.workspace import Workspace

MODEL_QUEUE = "model"
PATIENCE_SECONDS = 20.0
NO_PROBE = empty("Ask the model anything.", "Type a prompt, or click one in the case study; both answers appear here.")
TO_RESULT = "() => document.getElementById('result-headline')?.scrollIntoView({behavior: 'smooth', block: 'start'})"
Updates = dict[Any, Any]
