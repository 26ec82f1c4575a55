"""What is seen of any page of ours: rows, widths, contrast."""

from selenium.webdriver import Chrome


def shown_rows(page: Chrome) -> list[str]:
    """The rows of the table that a search leaves, by their anchors."""
    rows: list[str] = page.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden).map(r => r.id)"
    )
    return rows


def too_wide(page: Chrome) -> bool:
    """Does the page, or any of its text, end right of the window?"""
    found: bool = page.execute_script(
        """
        const width = document.documentElement.clientWidth;
        return document.documentElement.scrollWidth > width
          || [...document.querySelectorAll('h1, h2, h3, p, dd, code, th, label')].some(
               e => e.getClientRects().length && e.getBoundingClientRect().right > width + 1
                    && getComputedStyle(e).position !== 'absolute');
        """
    )
    return found


def worst_contrast(page: Chrome) -> float:
    """The least of the contrasts between text and the page."""
    found: float = page.execute_script(_WORST_CONTRAST)
    return found


_WORST_CONTRAST = """
const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
                     return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
const page = light(getComputedStyle(document.body).backgroundColor);
const seen = new Set([...document.querySelectorAll('h1, h2, p, small, dt, dd, td, th, a, code, caption')]
  .filter(e => !e.matches('.skip') && e.textContent.trim() && e.getClientRects().length).map(e => getComputedStyle(e).color));
return Math.min(...[...seen].map(c => { const l = light(c);
  return (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05); }));
"""
