"""The report in headless Chromium: it fits a phone, tables sort, marks tell what they mean; skipped without one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import EXECUTABLE, Browser, browser

from revedge.planner import report

from .test_report import found

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here")
PHONE_WIDTH = 390

# Of every mark of the n-th picture: a point at which it is what lies on top, and its title.
_MARKS = """(() => {const f = document.querySelectorAll('figure')[%d]; f.scrollIntoView({block: 'center'});
return [...f.querySelectorAll('g[id*=-tip-]')].map(g => {const b = g.getBoundingClientRect();
for (let i = 0; i < 39; i++) for (let j = 0; j < 39; j++) {
const at = n => (20 + (n %% 2 ? -1 : 1) * ((n + 1) >> 1)) / 40;  // from the middle outwards
const x = b.left + b.width * at(i), y = b.top + b.height * at(j);
const on = document.elementFromPoint(x, y);
if (on && on.closest('g[id*=-tip-]') === g) return [x, y, g.querySelector('title').textContent]}
return [0, 0, g.querySelector('title').textContent]})})()"""
_TIP = "document.querySelectorAll('figure')[%d].querySelector('.tip').textContent"
_TABLE = "[...document.querySelectorAll('table')].find(t => t.querySelector('th[data-sort]'))"
_COLUMN = (
    f"[...{_TABLE}.tBodies[0].rows].map(r => r.cells[%d].dataset.value ?? r.cells[%d].textContent)"
)
_HEAD = f"""(() => {{const h = {_TABLE}.querySelectorAll('th')[%d];
h.scrollIntoView({{block: 'center', inline: 'center'}});
const b = h.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]}})()"""

# What the marks of each picture say: a name, and a value with its unit.
SAYS = (
    re.compile(r"(base|supervisor|weights|gradients|optimizer|activations|workspace|data|slack)( [a-z0-9 ]+)? "
               r"\d+(\.\d)? ([KMG]i)?B"),
    re.compile(r"(weights|gradients|optimizer|activations|workspace|data): at most \d+(\.\d)? ([KMG]i)?B"),
    re.compile(r"net9 .*T=\d+ .*: \d+(\.\d)? ([KMG]i)?B, \d+\.\d\d times the time of the fastest kind"),
)  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Path]]:
    """One browser for all tests, and the page."""
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "plan.html"
    page.write_text(report.page(found()), "utf-8")
    with browser(folder) as here:
        yield here, page


@pytest.mark.parametrize("number", range(3), ids=("budget bar", "timeline", "front"))
def test_a_mark_under_the_mouse_is_told(shown: tuple[Browser, Path], number: int) -> None:
    """Where the mouse is moved onto a mark, the line below the picture names it, with its value and the unit."""
    here, page = shown
    here.open(page, 1000, 900)
    marks = here.ask(_MARKS % number)
    seen = 0
    for x, y, title in marks:
        assert SAYS[number].fullmatch(title), title
        if (x, y) == (0, 0):  # less than a pixel of it is drawn, or another covers it
            continue
        here.move(2, 2)
        here.move(x, y)
        assert here.ask(_TIP % number) == title
        seen += 1
    assert seen >= 2
    assert here.errors == []


@pytest.mark.parametrize("width", [1000, PHONE_WIDTH])
def test_tables_sort(shown: tuple[Browser, Path], width: int) -> None:
    """A click on a heading sorts by its numbers, a second one the other way round, and so does the Enter key."""
    here, page = shown
    here.open(page, width, 900, phone=width == PHONE_WIDTH)
    press = here.tap if width == PHONE_WIDTH else here.click
    press(*here.ask(_HEAD % 5))
    numbers = [float(each) for each in here.ask(_COLUMN % (5, 5))]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    press(*here.ask(_HEAD % 5))
    assert [float(each) for each in here.ask(_COLUMN % (5, 5))] == numbers[::-1]
    here.ask(f"{_TABLE}.querySelectorAll('th')[0].focus()")
    here.enter()
    names = here.ask(_COLUMN % (0, 0))
    assert names == sorted(names)
    assert len(set(names)) > 1
    assert here.errors == []


def test_a_phone_shows_it_all(shown: tuple[Browser, Path], tmp_path: Path) -> None:
    """At the width of a phone nothing is cut off or too small to see, and a tap tells a mark."""
    here, page = shown
    here.open(page, PHONE_WIDTH, 844, phone=True)
    assert here.ask("[innerWidth, document.documentElement.scrollWidth]") == [PHONE_WIDTH] * 2
    sizes: list[Any] = here.ask(
        "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width, "
        "s.getBoundingClientRect().height])"
    )
    assert len(sizes) == 3
    assert all(300 < across <= PHONE_WIDTH and height > 50 for across, height in sizes)
    x, y, title = next(each for each in here.ask(_MARKS % 0) if each[0])
    here.tap(x, y)
    assert here.ask(_TIP % 0) == title
    here.picture(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").read_bytes().startswith(b"\x89PNG")
    assert here.errors == []
