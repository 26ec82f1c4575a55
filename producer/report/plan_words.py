"""The plan of a migration in words and bars, for the terminal and the page. Pure: from its JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from producer.report.notation import human_duration, in_words, moment, plural
from worker.units import human_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the plan: what it is of, what is to be said, and what more there is to it. `tone`: `good`,
    `bad` or nothing. `is_command`: the text is one to type.
    """

    label: str
    text: str
    more: tuple[str, ...] = ()
    tone: str = ""
    is_command: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A forecast beside what became of it, in percent of the longest: the band, what was likely, and the
    real value.
    """

    label: str
    low: float
    high: float
    likely: float
    real: float
    forecast: str
    became: str
    verdict: str
    inside: bool


def headline(plan: Mapping[str, Any]) -> str:
    """The decision in a sentence."""
    projects = plan["forecast"]["projects"]
    ready, blocked = projects["ready"], projects["blocked"]
    match plan["decision"]:
        case "incomplete":
            return "Not decided: the dry run has not looked at all projects yet"
        case "nothing":
            return "Nothing to press: no project is ready"
        case "no_room":
            return f"Not yet: {ready:,} {plural(ready, 'project')} ready, but the store has no room for {plural(ready, 'it', 'them')}"
        case "partly":
            rest = f"{blocked:,} {plural(blocked, 'is blocked and stays as it is', 'are blocked and stay as they are')}"
            return f"Ready: {ready:,} {plural(ready, 'project')}; {rest}"
        case _:
            return f"Ready: {'the project' if ready == 1 else f'all {ready:,} projects'}"


def rows(plan: Mapping[str, Any]) -> list[Row]:
    """The plan of a dry run, a line for each question that an operator has."""
    return [
        _store(plan),
        _free(plan),
        _time(plan["forecast"]),
        *_duplicates(plan["duplicates"]),
        *_blocked(plan),
        *_worth_a_look(plan),
        _press(plan),
    ]


def estimate_rows(forecast: Mapping[str, Any], conditions: Mapping[str, Any]) -> list[Row]:
    """A forecast by a sample, each figure named an estimate."""
    plan = {"forecast": forecast, "conditions": conditions}
    return [
        _store(plan),
        _free(plan),
        _time(forecast),
        Row(label="look at", text=forecast["notes"][0], more=tuple(forecast["notes"][1:])),
        Row(
            label="press",
            text="producer enqueue --dry-run --wait",
            more=("it hashes everything: then the bytes are exact, and each project is checked",),
            is_command=True,
        ),
    ]


def _store(plan: Mapping[str, Any]) -> Row:
    size = plan["forecast"]["bytes"]
    conditions = plan.get("conditions") or {}
    room = conditions.get("room")
    text = f"{_band(plan['forecast'], 'stored')}; at most about {human_bytes(size['peak']['high'])} on disk at any moment"
    free = tuple(
        f"free on the file system of {one['path']} ({' and '.join(one['holds'])}): {human_bytes(one['free'])}"
        for one in conditions.get("free", ())
    )
    if room is None:
        unknown = "whether it fits is not known: the store is not to be seen from here"
        return Row(label="to store", text=text, more=(unknown, *free), tone="bad")
    fits = size["peak"]["likely"] <= room
    words = "fits" if size["peak"]["high"] <= room else "likely fits" if fits else "does not fit"
    seen = f"{words}: the store had room for {human_bytes(room)} at {moment(conditions['at'])}"
    return Row(label="to store", text=text, more=(seen, *free), tone="good" if fits else "bad")


def _free(plan: Mapping[str, Any]) -> Row:
    forecast = plan["forecast"]
    up_to = "" if _is_exact(forecast["bytes"]["freed"]) else "up to "
    about = "about " if forecast["basis"] == "sample" else ""
    more = ["the migration itself frees nothing"]
    if up_to:
        more.append("blocks that the store comes to share with them (XFS, Btrfs) are not freed")
    return Row(
        label="to free",
        text=f"{up_to}{about}{human_bytes(forecast['bytes']['freed']['likely'])} later, by producer reclaim and its --purge",
        more=tuple(more),
    )


def _band(forecast: Mapping[str, Any], key: str) -> str:
    size = forecast["bytes"][key]
    if forecast["basis"] == "sample":
        span = "" if _is_exact(size) else f" ({human_bytes(size['low'])} to {human_bytes(size['high'])})"
        return f"about {human_bytes(size['likely'])}, an estimate{span}"
    if _is_exact(size):
        return f"{human_bytes(size['likely'])} more"
    return f"{human_bytes(size['low'])} to {human_bytes(size['high'])} more"


def _is_exact(band: Mapping[str, Any]) -> bool:
    return bool(band["low"] == band["high"])


_SOURCES = {
    "migrations": "by the pace of earlier migrations here",
    "dry_run": "by the pace of the dry run; no migration of this size was measured here yet, so the band is wide",
}


def _time(forecast: Mapping[str, Any]) -> Row:
    seconds = forecast["seconds"]
    if seconds is None:
        why = "no job was measured here yet; a dry run measures it"
        return Row(label="time", text=f"not known: {why}")
    return Row(
        label="time",
        text=f"about {human_duration(seconds['likely'])} ({_seconds(seconds)})",
        more=(_SOURCES[forecast["seconds_from"]],),
    )


def _seconds(seconds: Mapping[str, Any]) -> str:
    return f"{human_duration(seconds['low'])} to {human_duration(seconds['high'])}"


def _duplicates(duplicates: Mapping[str, Any]) -> Iterator[Row]:
    count = duplicates["projects"]
    if not count:
        return
    groups = [
        f"{_ids(one['project_ids'], one['projects'])} of {one['of']['subject']} {one['of']['id']}"
        + (f" {one['of']['name']}" if one["of"]["name"] else "")
        + f", {human_bytes(one['bytes'])}"
        for one in duplicates["groups"]
    ]
    yield Row(
        label="duplicates",
        text=f"{count:,} {plural(count, 'project')}, {human_bytes(duplicates['bytes'])} that need no room again",
        more=_first(groups, 5, "more"),
    )


def _blocked(plan: Mapping[str, Any]) -> Iterator[Row]:
    blocked = plan["forecast"]["projects"]["blocked"]
    if not blocked:
        return
    causes = [
        f"{_ids(one['project_ids'], one['projects'])}: {in_words(one['error_class'])}. {one['remedy'] or ''}".rstrip()
        for one in plan["blocked"]
    ]
    yield Row(
        label="blocked",
        text=f"{blocked:,} {plural(blocked, 'project')}",
        more=_first(causes, 5, "more causes"),
        tone="bad",
    )


def _first(texts: Sequence[str], most: int, what: str) -> tuple[str, ...]:
    rest = len(texts) - most
    return (*texts[:most], *((f"and {rest} {what}",) if rest > 0 else ()))


def _ids(ids: Sequence[int], count: int) -> str:
    shown = ", ".join(map(str, ids[:5]))
    more = f" and {count - len(ids[:5]):,} more" if count > len(ids[:5]) else ""
    return f"{plural(count, 'project')} {shown}{more}"


def _worth_a_look(plan: Mapping[str, Any]) -> Iterator[Row]:
    notes = list(plan["forecast"]["notes"])
    conditions = plan["conditions"] or {}
    if not plan["is_complete"]:
        notes.append("not all projects were rehearsed: nothing is said of the others")
    if conditions.get("workers") == 0:
        notes.append(f"no worker was online at {moment(conditions['at'])}")
    notes += [f"not to be seen from here: {place}" for place in conditions.get("not_seen", ())]
    if plan["skipped"]:
        notes.append(f"{plan['skipped']:,} {plural(plan['skipped'], 'project')} with nothing to do, skipped")
    warned = plan["warnings"]
    if warned["projects"]:
        notes.append(
            f"{warned['projects']:,} {plural(warned['projects'], 'project')} with warnings, such as:"
        )
        notes += [f"project {one['project_id']}: {one['message']}" for one in warned["first"][:2]]
    if notes:
        yield Row(label="look at", text=notes[0], more=tuple(notes[1:]))


def _press(plan: Mapping[str, Any]) -> Row:
    short = plan["forecast"]["run_id"][:8]
    match plan["decision"]:
        case "incomplete":
            return Row(label="press", text=f"producer collect {short}", is_command=True)
        case "nothing":
            return Row(label="press", text="nothing; repair what is blocked, then rehearse again")
        case decision:
            more = ("but make room first; a run that finds the store full waits for it",)
            if plan["command"] is None:
                return Row(label="press", text="the same command without --dry-run")
            return Row(
                label="press",
                text=plan["command"],
                more=more if decision == "no_room" else (),
                is_command=True,
            )


# The real run -----------------------------------------------------------------------------------------------


def bars(plan: Mapping[str, Any]) -> list[Bar]:
    """What was forecast beside what became of it: projects, bytes, time."""
    forecast, became = plan["forecast"], plan["became"]
    found = []
    if forecast["basis"] == "dry_run":
        ready = forecast["projects"]["ready"]
        most = ready + forecast["projects"]["unknown"]
        found.append(
            _bar("Projects", {"low": ready, "likely": ready, "high": most}, became["projects"], _count)
        )
    found.append(_bar("Bytes stored", forecast["bytes"]["stored"], became["stored"], human_bytes))
    found.append(_bar("Can be freed", forecast["bytes"]["freed"], became["reclaimable"], human_bytes))
    if forecast["seconds"] is not None:
        found.append(_bar("Time at work", forecast["seconds"], became["seconds"], human_duration))
    return found


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bar(label: str, band: Mapping[str, Any], real: float, text: Any) -> Bar:
    whole = max(band["high"], real) or 1
    inside = band["low"] <= real <= band["high"]
    expected = text(band["likely"])
    if not _is_exact(band):
        expected += f" ({text(band['low'])} to {text(band['high'])})"
    return Bar(
        label=label,
        low=0.0 if _is_exact(band) else 100 * band["low"] / whole,
        high=100 * band["high"] / whole,
        likely=100 * band["likely"] / whole,
        real=100 * real / whole,
        forecast=expected,
        became=text(real),
        verdict=_verdict(band, real, text, inside=inside),
        inside=inside,
    )


def _verdict(band: Mapping[str, Any], real: float, text: Any, *, inside: bool) -> str:
    if real == band["likely"] and _is_exact(band):
        return "as forecast"
    if inside:
        return "within the band"
    off = real - (band["high"] if real > band["high"] else band["low"])
    return f"{text(abs(off))} {'more' if off > 0 else 'less'} than forecast"


def basis_words(plan: Mapping[str, Any]) -> str:
    """What the forecast of a real run rests on."""
    forecast = plan["forecast"]
    if forecast["basis"] == "dry_run":
        return f"Forecast by dry run {forecast['run_id'][:8]}, of {moment(forecast['made_at'])}"
    return f"An estimate by a sample of heads, of {moment(forecast['made_at'])}"


_NOT_ALL = "The run has not done all of what was forecast, so nothing is compared yet"


def comparison_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines of text."""
    yield f"[bold]{basis_words(plan)}[/]"
    if not plan["is_complete"]:
        yield f"  {_NOT_ALL}"
        return
    for bar in bars(plan):
        yield f"  {bar.label.lower():<13} {bar.became}; forecast {bar.forecast}: {bar.verdict}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What there is and what is needed, to be drawn."""

    room: int
    peak: int

    @property
    def whole(self) -> int:
        """The longer of both."""
        return max(self.room, self.peak, 1)

    @property
    def fits(self) -> bool:
        """Is there enough?"""
        return self.peak <= self.room


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPage:
    """What a page shows of a plan: of a dry run its rows, of a real run bars, or why there are none."""

    headline: str = ""
    rows: Sequence[Row] = ()
    room: Room | None = None
    bars: Sequence[Bar] = ()
    basis: str = ""
    open: str = ""


def of_page(plan: Mapping[str, Any] | None) -> OnPage:
    """What to show; nothing of a run without a plan."""
    if plan is None:
        return OnPage()
    if "decision" in plan:
        room = (plan["conditions"] or {}).get("room")
        peak = plan["forecast"]["bytes"]["peak"]["high"]
        return OnPage(
            headline=headline(plan),
            rows=rows(plan),
            room=None if room is None else Room(room=room, peak=peak),
        )
    if not plan["is_complete"]:
        return OnPage(open=f"{_NOT_ALL}. {basis_words(plan)}.")
    return OnPage(bars=bars(plan), basis=basis_words(plan))
