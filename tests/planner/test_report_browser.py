"""The report in headless Chromium: it fits a phone, tables sort, marks tell what they mean; skipped without one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from revedge.planner import report

from .test_report import found

pytest.importorskip("matplotlib")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

_PROBE = """<script>
const said={};addEventListener('error',e=>said.error=e.message);addEventListener('load',()=>{
const table=[...document.querySelectorAll('table')].find(t=>t.querySelector('th[data-sort]'));
const column=i=>[...table.tBodies[0].rows].map(r=>r.cells[i].dataset.value??r.cells[i].textContent);
const heads=[...table.querySelectorAll('th')];
heads[5].click();said.up=column(5);heads[5].click();said.down=column(5);
heads[0].dispatchEvent(new KeyboardEvent('keydown',{key:'Enter',bubbles:true}));said.names=column(0);
const mark=document.querySelector('figure g[id*=-tip-]');
mark.querySelector('path').dispatchEvent(new MouseEvent('click',{bubbles:true}));
said.title=mark.querySelector('title').textContent;
said.tip=mark.closest('figure').querySelector('.tip').textContent;
said.width=innerWidth;said.page=document.documentElement.scrollWidth;
said.drawn=[...document.querySelectorAll('svg')].map(s=>[s.getBoundingClientRect().width,s.getBoundingClientRect().height]);
const box=document.createElement('pre');box.id='said';box.textContent=JSON.stringify(said);document.body.append(box)})
</script>"""


def browse(page: Path, *words: str) -> str:
    assert CHROMIUM is not None
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
    )
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'profile'}", *words, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("width", [1000, 500])
def test_the_page_works(tmp_path: Path, width: int) -> None:
    """Columns sort both ways and by key, a tapped mark tells its title, and nothing is wider than the window."""
    page = tmp_path / "plan.html"
    page.write_text(report.page(found()).replace("</body>", f"{_PROBE}</body>"), "utf-8")
    dom = browse(page, f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom")
    text = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert text is not None
    said: dict[str, Any] = json.loads(html.unescape(text[1]))
    assert "error" not in said
    numbers = [float(each) for each in said["up"]]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    assert [float(each) for each in said["down"]] == numbers[::-1]
    assert said["names"] == sorted(said["names"])
    assert said["tip"] == said["title"] != ""
    assert said["page"] <= said["width"] == width
    assert len(said["drawn"]) == 3
    assert all(100 < across <= width and height > 50 for across, height in said["drawn"])
