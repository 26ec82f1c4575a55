"""Text from outside on a terminal: it can neither style a line nor control the terminal."""

from rich.markup import escape as escape_markup

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
"""What control characters are shown as."""


def escape(text: str) -> str:
    """Text from outside, made safe for a line."""
    return escape_markup(text.translate(CONTROLS))
