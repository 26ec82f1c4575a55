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
    typer.Option("--json", help="One JSON document on standard output; words for people on standard error."),
]
ProjectIds = Annotated[
    list[int] | None,
    typer.Option("--project-id", metavar="N", help="Only this project; may be given more than once."),
]
Exclude = Annotated[
    list[int] | None,
    typer.Option("--exclude", metavar="N", help="Leave this project out; may be given more than once."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="K", min=1, help="At most K projects, lowest ids first.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read everything, change nothing, say what would happen.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Answer the question that a terminal is asked.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end and write its report.")]
ReportDir = Annotated[
    Path | None, typer.Option("--report-dir", metavar="D", file_okay=False, help="Where the report goes.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="S", min=0, help="Stop following after S seconds; the run itself goes on."
    ),
]
BytesPerSecond = Annotated[
    int | None,
    typer.Option(
        "--limit-bytes-per-second",
        metavar="B",
        parser=_bytes,
        help="How fast all workers of the run together may read, such as 200M (suffixes K, M and G).",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id, the beginning of one, or latest.")]
