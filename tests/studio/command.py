"""The command line as a person has it: `python app.py …` with its exit status and all that it prints."""

from rich.console import Console

import app


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """The exit status and everything printed by `python app.py …`."""
    monkeypatch.setattr("sys.argv", ["app.py", *map(str, arguments)])
    monkeypatch.setattr(app, "console", Console(width=200, markup=False))
    status = 0
    try:
        app.main()
    except SystemExit as end:
        status = int(end.code or 0)
    return status, capsys.readouterr().out
