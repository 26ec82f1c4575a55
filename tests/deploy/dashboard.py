"""The Grafana dashboard, made from a list of panels; `python -m tests.deploy.dashboard` writes it anew.

What is on it is what `producer metrics` says, and nothing else: it needs one Prometheus data source, which
Grafana asks for when the file is imported.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, StackingMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "label-migrator.json"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")

_BYTES = "bytes"
_DAYS = "d"
_NUMBER = "short"
_SECONDS = "s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel: what it says in words, and its queries with the names of their lines.

    `bad_from` and `bad_below` are where a single number turns red.
    """

    title: str
    words: str
    queries: Sequence[tuple[str, str]]
    unit: str = _NUMBER
    shape: Literal["number", "lines", "areas", "bars"] = "lines"
    bad_from: float | None = None
    bad_below: float | None = None


ROWS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Now",
        (
            Panel(
                title="Parts that answer",
                words="Database, broker and store: 3 when all is well",
                queries=[("sum(label_migrator_up)", "parts")],
                shape="number",
                bad_below=3,
            ),
            Panel(
                title="Workers",
                words="That answer, busy or not",
                queries=[("label_migrator_workers_online", "workers")],
                shape="number",
                bad_below=1,
            ),
            Panel(
                title="Open runs, done",
                words="Bytes of open runs that are processed; nothing while no run is open",
                queries=[("label_migrator_open_bytes_done / (label_migrator_open_bytes_total > 0)", "share")],
                unit="percentunit",
                shape="number",
            ),
            Panel(
                title="Paused by themselves",
                words="Runs that wait for a person: `producer status` says why",
                queries=[('label_migrator_paused_runs{by="itself"}', "runs")],
                shape="number",
                bad_from=1,
            ),
            Panel(
                title="Failed",
                words="Projects and datasets whose latest real job failed",
                queries=[("sum(label_migrator_failed_jobs) or vector(0)", "failed")],
                shape="number",
                bad_from=1,
            ),
            Panel(
                title="Damaged datasets",
                words="`producer verify --store` found bytes in them that are not what was stored",
                queries=[
                    (
                        'sum(label_migrator_failed_jobs{error_class="StoredBytesMismatchError"}) or vector(0)',
                        "damaged",
                    )
                ],
                shape="number",
                bad_from=1,
            ),
        ),
    ),
    (
        "Work",
        (
            Panel(
                title="Bytes processed a second",
                words="Of open runs, over five minutes; the end of a run counts as a counter's new beginning",
                queries=[("rate(label_migrator_open_bytes_done[5m])", "bytes a second")],
                unit="Bps",
            ),
            Panel(
                title="Jobs of real runs",
                words="All in the ledger, by state",
                queries=[('sum by (state) (label_migrator_jobs{dry_run="false"})', "{{state}}")],
                shape="areas",
            ),
            Panel(
                title="Queue and workers",
                words="Messages that no worker has taken; workers that answer, and those with a job",
                queries=[
                    ("label_migrator_queue_messages", "messages"),
                    ("label_migrator_workers_online", "workers"),
                    ("label_migrator_workers_busy", "busy"),
                ],
            ),
            Panel(
                title="Oldest waiting job",
                words="Grows steadily in a long run; with few jobs open it says that nothing takes them",
                queries=[("label_migrator_oldest_waiting_seconds", "waiting")],
                unit=_SECONDS,
            ),
            Panel(
                title="Incidents within 15 minutes",
                words="Recovered from: leases that ran out, attempts that came too late, retries",
                queries=[("clamp_min(delta(label_migrator_incidents[15m]), 0)", "{{kind}}")],
                shape="areas",
            ),
            Panel(
                title="Failures by error",
                words="Of what failed when it was last tried: `producer status` names it, with the remedy",
                queries=[("sum by (error_class) (label_migrator_failed_jobs)", "{{error_class}}")],
                shape="bars",
            ),
        ),
    ),
    (
        "Store",
        (
            Panel(
                title="On disk, and room",
                words="What the store takes, hard links once, and what it accepts before it is full",
                queries=[
                    ("label_migrator_store_allocated_bytes", "store"),
                    ("label_migrator_store_room_bytes", "room"),
                ],
                unit=_BYTES,
            ),
            Panel(
                title="Legacy directories that were moved away",
                words="Reclaimed: `reclaim --purge` frees them. Purged: they were freed",
                queries=[("label_migrator_reclaimed_bytes", "{{state}}")],
                unit=_BYTES,
                shape="areas",
            ),
            Panel(
                title="Stored bytes",
                words="Each blob once; of these those that no verification has read, and those that share "
                "their blocks with legacy files",
                queries=[
                    ("label_migrator_stored_bytes", "stored"),
                    ("label_migrator_stored_bytes_never_read", "never read again"),
                    ("label_migrator_shared_bytes", "shared"),
                ],
                unit=_BYTES,
            ),
            Panel(
                title="Least recently read byte",
                words="Red after 35 days: the weekly sample does not keep up",
                queries=[("(time() - label_migrator_oldest_check_timestamp_seconds) / 86400", "ago")],
                unit=_DAYS,
                shape="number",
                bad_from=35,
            ),
            Panel(
                title="Datasets",
                words="That this program stored",
                queries=[("label_migrator_stored_datasets", "datasets")],
                shape="number",
            ),
            Panel(
                title="That nothing refers to",
                words="A `producer gc` puts them into quarantine",
                queries=[("label_migrator_unreferenced_datasets", "datasets")],
                shape="number",
            ),
        ),
    ),
)

_SPANS = {"Now": (4, 4), "Work": (8, 7), "Store": (8, 7)}
"""Width and height of a row's panels."""


def document() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    made = (
        dashboard.Dashboard("Label dataset migrator")
        .uid("label-migrator")
        .description("What `producer metrics` says of ledger, broker and store")
        .tags(["label"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    )
    ids = count(1)
    for title, panels in ROWS:
        made.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            width, height = _SPANS[title]
            made.with_panel(_built(panel).id(next(ids)).span(width).height(height))
    found: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every query, with the title of its panel."""
    for _, panels in ROWS:
        for panel in panels:
            for expression, _ in panel.queries:
                yield panel.title, expression


def _built(panel: Panel) -> Any:
    built = _SHAPES[panel.shape](panel)
    built.title(panel.title).description(panel.words).unit(panel.unit).datasource(_SOURCE)
    for name, (expression, line) in zip(ascii_uppercase, panel.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(line)
        built.with_target(query.datasource(_SOURCE).ref_id(name))
    return built


def _number(panel: Panel) -> Any:
    good, bad = "green", "red"
    if panel.bad_below is not None:
        steps = [Threshold(value=None, color=bad), Threshold(value=panel.bad_below, color=good)]
    elif panel.bad_from is not None:
        steps = [Threshold(value=None, color=good), Threshold(value=panel.bad_from, color=bad)]
    else:
        steps = [Threshold(value=None, color="text")]
    return (
        stat.Panel()
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("none")
    )


def _lines(_panel: Panel) -> Any:
    return timeseries.Panel().min(0)


def _areas(_panel: Panel) -> Any:
    return (
        timeseries.Panel().min(0).fill_opacity(30).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    )


def _bars(_panel: Panel) -> Any:
    latest = common.ReduceDataOptions().calcs(["lastNotNull"])
    return bargauge.Panel().min(0).no_value("none").reduce_options(latest)


_SHAPES = {"number": _number, "lines": _lines, "areas": _areas, "bars": _bars}


def text() -> str:
    """The file's content."""
    return json.dumps(document(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
