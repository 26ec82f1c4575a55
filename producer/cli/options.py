"""The options and arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from worker.units import parse_bytes


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError:
        raise typer.BadParameter("expected bytes, such as 500000 or 200M (suffixes K, M and G)") from None


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document to standard output; messages go to standard error."),
]
ProjectIds = Annotated[
    list[int] | None,
    typer.Option("--project-id", metavar="N", help="Only this project; repeat it for more."),
]
Exclude = Annotated[
    list[int] | None,
    typer.Option("--exclude", metavar="N", help="Leave out this project; repeat it for more."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="K", min=1, help="At most K projects, lowest ids first.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; report what a real run would do.")]
Rehash = Annotated[
    bool,
    typer.Option(
        "--rehash", help="Read every file again, also those that are as they were when they were last read."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end and write its report.")]
ReportDir = Annotated[
    Path | None,
    typer.Option(
        "--report-dir",
        metavar="D",
        file_okay=False,
        help="Directory for the report; without it: the working directory.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="S", min=0, help="Stop following the run after S seconds; it goes on."),
]
BytesPerSecond = Annotated[
    int | None,
    typer.Option(
        "--limit-bytes-per-second",
        metavar="B",
        parser=_bytes,
        help="Read limit of all workers of the run together, in bytes a second, such as 200M (suffixes K, M and G).",
    ),
]
ReadLimit = Annotated[
    int | None,
    typer.Option(
        "--limit-bytes-per-second",
        metavar="B",
        parser=_bytes,
        help="Read limit in bytes a second, such as 200M (suffixes K, M and G); without it: BWLIMIT.",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id, its first characters, or latest.")]
