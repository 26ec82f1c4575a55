"""Legacy estates for tests: the rows and files that years of Label leave behind, in every form they take.

`files` writes session directories, `rows` inserts what Label inserts, `forms` builds one estate that holds
everything, `compare` tells whether rows, trees and readings are still what they were. Knows nothing of the
migrator but how a session is read.
"""

from tests.estate.compare import Entry, Reading, differences, dump, readings, session_row, snapshot_tree
from tests.estate.files import Form, Recording, write_labels, write_recording
from tests.estate.forms import Estate, every_form
from tests.estate.rows import (
    JSON_NULL,
    Project,
    RawJson,
    Session,
    make_dataset,
    make_lineage,
    make_model,
    make_participant,
    make_project,
    make_session,
    record_session,
    split_on_upload,
    split_session,
)

__all__ = [
    "JSON_NULL",
    "Entry",
    "Estate",
    "Form",
    "Project",
    "RawJson",
    "Reading",
    "Recording",
    "Session",
    "differences",
    "dump",
    "every_form",
    "make_dataset",
    "make_lineage",
    "make_model",
    "make_participant",
    "make_project",
    "make_session",
    "readings",
    "record_session",
    "session_row",
    "snapshot_tree",
    "split_on_upload",
    "split_session",
    "write_labels",
    "write_recording",
]
