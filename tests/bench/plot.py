"""Results as one SVG, drawn by hand: bars for contenders, a dot for each run, lines for growth. Measures
nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from math import log10
from statistics import median

from tests.bench.growth import Step, Team, throughput, words
from tests.bench.results import OURS, Contest

_WIDTH = 900
_LEFT = 230
_RIGHT = 190
_BAR = 16
_STEP = 24
_TOP = 64
_HEIGHT = 150
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 } .corpus { font-weight: 600 } .note { fill: #57606a }
  .line { fill: none; stroke: #1f6feb; stroke-width: 2 } .second { stroke: #b8860b }
  .bar { fill: #b8c0cc } .ours { fill: #1f6feb } .run { fill: #24292f; fill-opacity: .75 } .axis { stroke: #8c959f }
"""


def svg(contests: Sequence[Contest], title: str, note: str) -> str:
    """One chart below the other, each with a scale of its own that begins at zero: ratios can be seen,
    seconds read.
    """
    parts: list[str] = []
    y = _TOP
    for contest in contests:
        drawn = list(_chart(contest, y))
        parts += drawn
        y += _STEP * (1 + sum(1 for runs in contest.runs.values() if runs)) + 18
    return _document(parts, y, title, note)


def growth_svg(steps: Sequence[Step], teams: Sequence[Team], title: str, note: str) -> str:
    """Processor time for one thing over their number, and throughput over that of the workers; numbers
    logarithmic, the rest from zero: what does not grow is level.
    """
    parts: list[str] = []
    y = _TOP
    for kind, of_kind in groupby(steps, key=lambda step: step.kind):
        found = list(of_kind)
        what = "a project of three files" if kind == "projects" else "a file of one project"
        counts = [step.count for step in found]
        lines = {
            "workers": [step.workers_each_s for step in found],
            "servers": [step.servers_each_s for step in found],
        }
        parts += _lines(f"Processor time for {what}", kind, counts, lines, words, y)
        y += _HEIGHT + 70
    if teams:
        lines = {
            corpus: [throughput(teams, team) for team in of_corpus]
            for corpus, of_corpus in groupby(teams, key=lambda team: team.corpus)
        }
        counts = sorted({team.workers for team in teams})
        parts += _lines("Throughput, that of one worker is 1", "workers", counts, lines, "{:.2f}".format, y)
        y += _HEIGHT + 70
    return _document(parts, y, title, note)


def _document(parts: Sequence[str], height: float, title: str, note: str) -> str:
    box = f"0 0 {_WIDTH} {height}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="{box}" role="img">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            f'<text class="title" x="16" y="24">{escape(title)}</text>',
            f'<text class="note" x="16" y="44">{escape(note)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _lines(
    title: str,
    unit: str,
    counts: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    worded: Callable[[float], str],
    y: float,
) -> Iterator[str]:
    """One line for each name, in the same scale."""
    most = max(max(values) for values in lines.values())
    first, last = log10(counts[0]), log10(counts[-1])
    width, bottom = _WIDTH - _LEFT - _RIGHT, y + 20 + _HEIGHT
    across = [_LEFT + width * (log10(count) - first) / (last - first or 1) for count in counts]
    yield f'<text class="corpus" x="16" y="{y + 12}">{escape(title)}</text>'
    for place, (name, values) in enumerate(lines.items()):
        heights = [bottom - _HEIGHT * value / most for value in values]
        dots = list(zip(across, heights, strict=True))
        path = " ".join(f"{x:.1f},{height:.1f}" for x, height in dots)
        yield f'<polyline class="line{" second" if place else ""}" points="{path}"/>'
        for (x, height), value in zip(dots, values, strict=True):
            # Above the first line, below the second, so that they stay apart where the lines meet.
            beside = height + 18 if place else height - 8
            yield f'<circle class="run" cx="{x:.1f}" cy="{height:.1f}" r="2.5"/>'
            yield f'<text x="{x:.1f}" y="{beside:.1f}" text-anchor="middle">{escape(worded(value))}</text>'
        yield f'<text x="{dots[-1][0] + 40:.1f}" y="{dots[-1][1] + 4:.1f}">{escape(name)}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{_LEFT + width}" y1="{bottom}" y2="{bottom}"/>'
    for x, count in zip(across, counts, strict=True):
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{count:,} {unit}</text>'


def _chart(contest: Contest, y: float) -> Iterator[str]:
    shown = {name: [run.seconds for run in runs] for name, runs in contest.runs.items() if runs}
    scale = (_WIDTH - _LEFT - _RIGHT) / max(max(seconds) for seconds in shown.values())
    size = f"{contest.projects} projects, {contest.files} files, {contest.total_bytes / 1e6:.0f} MB"
    yield f'<text class="corpus" x="16" y="{y + 12}">{escape(contest.corpus)} <tspan class="note">{size}</tspan></text>'
    for place, (name, seconds) in enumerate(shown.items(), 1):
        top = y + place * _STEP
        middle = top + _BAR / 2
        width = median(seconds) * scale
        kind = "bar ours" if name == OURS else "bar"
        yield f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
        yield f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR}"/>'
        for each in seconds:
            yield f'<circle class="run" cx="{_LEFT + each * scale:.1f}" cy="{middle}" r="2.5"/>'
        end = _LEFT + max(seconds) * scale + 8
        yield f'<text x="{end:.1f}" y="{middle + 4}">{escape(_words(contest, name, seconds))}</text>'
    bottom = y + _STEP * (len(shown) + 1) - 2
    yield f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{y + _STEP - 4}" y2="{bottom}"/>'


def _words(contest: Contest, name: str, seconds: Sequence[float]) -> str:
    words = f"{median(seconds):.2f} s"
    if name == OURS:
        return words
    return f"{words} · migrator {median(contest.ratios(name)):.2f} of it"
