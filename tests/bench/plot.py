"""Results as one SVG, drawn by hand: a bar for each contender's median, a dot for each run. Measures nothing."""

from collections.abc import Iterator, Sequence
from html import escape
from statistics import median

from tests.bench.results import OURS, Contest

_WIDTH = 900
_LEFT = 230
_RIGHT = 190
_BAR = 16
_STEP = 24
_TOP = 64
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 } .corpus { font-weight: 600 } .note { fill: #57606a }
  .bar { fill: #b8c0cc } .ours { fill: #1f6feb } .run { fill: #24292f; fill-opacity: .75 } .axis { stroke: #8c959f }
"""


def svg(contests: Sequence[Contest], title: str, note: str) -> str:
    """One chart below the other, each with a scale of its own that begins at zero: ratios can be seen, seconds read."""
    parts: list[str] = []
    y = _TOP
    for contest in contests:
        drawn = list(_chart(contest, y))
        parts += drawn
        y += _STEP * (1 + sum(1 for runs in contest.runs.values() if runs)) + 18
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" role="img">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{y}" fill="#fff"/>',
            f'<text class="title" x="16" y="24">{escape(title)}</text>',
            f'<text class="note" x="16" y="44">{escape(note)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


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
