"""The database's schema, as numbered steps. A new step is added below the others; an old one is never changed.

It knows nothing of queries. Columns ending in _json hold JSON text; times are UTC ISO 8601 text; durations are
seconds; `position` and `instance` count from 0.
"""

from sqlite_utils import Database, Migrations

migrations = Migrations("agrade-studio")


@migrations()
def m001_sessions_to_artifacts(db: Database) -> None:
    """sessions → runs → facts → outputs, and the metrics and artifacts of a run."""
    db.executescript("""
        CREATE TABLE sessions (
            id INTEGER PRIMARY KEY,
            origin TEXT NOT NULL,        -- studio, or command line
            name TEXT NOT NULL,          -- the workspace, or the command
            started TEXT NOT NULL
        ) STRICT;

        CREATE TABLE runs (
            id INTEGER PRIMARY KEY,
            session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            parent INTEGER REFERENCES runs (id) ON DELETE CASCADE,  -- the comparison this run is a part of
            kind TEXT NOT NULL,          -- edit, train, compare, project, …
            title TEXT NOT NULL,
            method TEXT NOT NULL,
            hparams_json TEXT NOT NULL,
            model TEXT NOT NULL,
            model_sha TEXT NOT NULL,
            seed INTEGER,
            status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed', 'cancelled')),
            error TEXT NOT NULL DEFAULT '',
            started TEXT NOT NULL,
            ended TEXT,
            duration REAL,
            peak_memory_bytes INTEGER,
            versions_json TEXT NOT NULL,
            result_json TEXT NOT NULL DEFAULT '{}',
            pid INTEGER NOT NULL,        -- the process at work on it, and when that process started
            process_started REAL NOT NULL
        ) STRICT;
        CREATE INDEX runs_session ON runs (session);
        CREATE INDEX runs_parent ON runs (parent);
        CREATE INDEX runs_running ON runs (pid) WHERE status = 'running';

        CREATE TABLE facts (
            id INTEGER PRIMARY KEY,
            run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            prompt TEXT NOT NULL,
            target TEXT NOT NULL,
            equivalent_json TEXT NOT NULL,
            unrelated_json TEXT NOT NULL,
            subject TEXT NOT NULL,
            old_target TEXT NOT NULL,
            source_row INTEGER NOT NULL,
            UNIQUE (run, position)
        ) STRICT;

        CREATE TABLE outputs (
            id INTEGER PRIMARY KEY,
            run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            fact INTEGER REFERENCES facts (id) ON DELETE CASCADE,   -- NULL for a probe
            instance INTEGER NOT NULL,   -- pairs the two phases of one prompt
            phase TEXT NOT NULL CHECK (phase IN ('before', 'after')),
            kind TEXT NOT NULL CHECK (kind IN ('edit', 'equivalent', 'unrelated', 'probe')),
            prompt TEXT NOT NULL,
            target TEXT NOT NULL,
            argmax TEXT,                 -- teacher-forced
            generated TEXT,
            success_json TEXT NOT NULL,  -- protocol → 0…1
            probabilities_json TEXT,     -- [token, probability], likeliest first
            UNIQUE (run, instance, phase)
        ) STRICT;
        CREATE INDEX outputs_fact ON outputs (fact);

        CREATE TABLE metrics (
            run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            name TEXT NOT NULL,
            protocol TEXT NOT NULL,
            value REAL,
            before REAL,
            n INTEGER NOT NULL,
            low REAL,
            high REAL,
            PRIMARY KEY (run, name, protocol)
        ) STRICT;

        CREATE TABLE artifacts (
            id INTEGER PRIMARY KEY,
            run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            kind TEXT NOT NULL,
            path TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX artifacts_run ON artifacts (run);
    """)


@migrations()
def m002_search(db: Database) -> None:
    """Full-text search over what was asked and what was answered."""
    tokenize = "unicode61 remove_diacritics 2"
    columns = ["prompt", "target", "equivalent_json", "unrelated_json", "subject", "old_target"]
    db.table("facts").enable_fts(columns, create_triggers=True, tokenize=tokenize)
    db.table("outputs").enable_fts(
        ["prompt", "target", "argmax", "generated"], create_triggers=True, tokenize=tokenize
    )


@migrations()
def m003_comparisons(db: Database) -> None:
    """What a run that is a part of a comparison has beyond an edit."""
    db.executescript("""
        CREATE TABLE entries (
            run INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
            key TEXT NOT NULL,           -- the method, with its ablation as agrade:no-c; '' for the unedited model
            name TEXT NOT NULL,          -- as tables show it
            n_facts INTEGER NOT NULL,    -- the comparison's first so many facts
            unedited INTEGER REFERENCES runs (id) ON DELETE CASCADE  -- the part that holds the outputs before
        ) STRICT;
        CREATE INDEX entries_unedited ON entries (unedited);
    """)


@migrations()
def m004_artifact_settings(db: Database) -> None:
    """What an artifact was made by, where one run makes several: the settings of a picture."""
    db.executescript("ALTER TABLE artifacts ADD COLUMN settings_json TEXT NOT NULL DEFAULT '{}'")


@migrations()
def m005_run_numbers(db: Database) -> None:
    """The last number a run was given, so that a deleted one's is not given again: pages may still show it."""
    db.executescript("""
        CREATE TABLE run_numbers (last INTEGER NOT NULL) STRICT;
        INSERT INTO run_numbers SELECT coalesce(max(id), 0) FROM runs;
    """)


def unknown_steps(db: Database) -> list[str]:
    """The steps a newer studio applied to the database, which this one does not know."""
    known = {step.name for step in migrations.pending(Database(memory=True))}
    return [step.name for step in migrations.applied(db) if step.name not in known]
