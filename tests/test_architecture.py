"""docs/architecture.md draws the states of runs, jobs and waves from the table that defines them."""

import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def _diagram(engine: Engine, machine: str) -> str:
    """The state machine as Mermaid: a line an arrow, with its meaning."""
    with engine.connect() as conn:
        arrows = conn.execute(
            text(
                "select from_state, to_state, meaning from migration_state_arrows where machine = :machine"
                " order by from_state <> '', from_state, to_state"
            ),
            {"machine": machine},
        ).all()
    lines = [
        f"    {arrow.from_state or '[*]'} --> {arrow.to_state}: {_plain(arrow.meaning)}" for arrow in arrows
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _plain(meaning: str) -> str:
    """Mermaid ends a label at a semicolon and begins another at a colon."""
    return meaning.replace(";", ",").replace(":", ",")


@pytest.mark.parametrize("machine", ["run", "job", "wave"])
def test_the_states_that_are_drawn_are_those_of_the_database(database: Engine, machine: str):
    drawn = re.search(
        rf"<!-- states of a {machine} -->\n(.*?)\n<!-- /states", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )

    assert drawn is not None
    assert drawn[1] == _diagram(database, machine)
