"""What the command line prints loses nothing: in another encoding, in a pipe, on a narrow console, or cut off early."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from studio.console import make_console, printable, say, show_figures

APP = Path(__file__).resolve().parents[2] / "app.py"
LONG = "/a/" + "very_long_folder_name_" * 8 + "/b c/runs.db"


@pytest.fixture
def output(monkeypatch):
    """encoding → the bytes of a standard output that has it."""

    def put(encoding: str) -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
        return written

    return put


@pytest.mark.parametrize(("encoding", "text"), [("cp1252", "v x | – ?"), ("ascii", "v x | - ?"), ("utf-8", "✓ ✗ ‖ – 北")])
def test_what_the_output_cannot_encode_is_no_error(output, encoding, text):
    written = output(encoding)
    say(make_console(), "✓ ✗ ‖ – 北")
    assert written.getvalue().decode(encoding).strip() == text


@pytest.mark.parametrize(("columns", "width"), [("", 160), ("70", 70)])
def test_a_pipe_is_wide_unless_someone_says_how_wide(output, monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    output("utf-8")
    assert make_console().width == width


@pytest.mark.parametrize("terminal", [True, False])
def test_a_path_is_not_broken(terminal):
    with (console := Console(width=80, force_terminal=terminal, no_color=True)).capture() as caught:
        say(console, f"Run 1 is kept in {LONG}")
    path = LONG if not terminal else LONG.split()[0]
    assert path in caught.get() and (terminal or caught.get().count("\n") == 1)


@pytest.mark.parametrize("width", [10, 30, 50, 120])
def test_figures_that_have_no_room_follow_below(width):
    figures = [f"{number}.{number}e-0{number}" for number in range(1, 8)]
    with (console := Console(width=width)).capture() as caught:
        show_figures(console, "Title", ["Method", *map(str, range(1, 8))], [["a name", *figures], ["b", *figures[::-1]]])
    text = caught.get()
    assert all(text.count(figure) == 2 for figure in figures) and text.count("Title") == 1
    assert width < 20 or max(map(len, text.splitlines())) <= width


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process.")
def test_ctrl_c_while_it_is_still_importing_ends_without_a_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(APP)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (-signal.SIGINT, "")
    (tmp_path / "typer.py").unlink()
    program = (
        "import runpy, signal, sys\n"
        f"sys.argv = ['app.py', 'project', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(APP)!r}, run_name='__main__')\n"
        "finally:\n"
        "    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    environment |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(APP.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("True"), done.stderr


def test_a_text_does_not_command_the_terminal():
    assert printable("A\x1b[31m is\x07\x9b2J\n\tred ✓") == "A�[31m is��2J\n\tred ✓"
