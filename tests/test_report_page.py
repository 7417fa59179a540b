"""index.html: its content, no network requests, text that stays text, and its behavior in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main
from rgpo.report.figures.render import inline

EVIL = '<script>document.title="hacked"</script><img src=http://evil.example/x.png onerror=alert(1)> & "quoted"'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "input", "br", "img", "link"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a language and a control experiment, with a failed run and a hostile completion."""
    here = tmp_path_factory.mktemp("page")
    folders = fixtures.write_language(here / "results", iterations=20)
    fixtures.write_samples(folders[-1], "rgpo", 3, 20, EVIL)
    fixtures.write_experiment(here / "results", tasks=("hopper",), algos=("ppo", "rgpo"))
    fixtures.write_run(here / "results", seed=7, status="failed", reached=12, reason=f"loss is nan {EVIL}")
    fixtures.write_gates(here / "results/gates.parquet")
    figures = "figures=[learning_curves,frontier,proxy_against_gold,kl,spikes,gates]"
    assert main([f"results_dir={here}/results", f"out={here}/report", "formats=[svg]", "num_resamples=200", figures]) == 1
    return here / "report/index.html"


class Reader(HTMLParser):
    """Tags with their attributes, the text outside of scripts, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)


def test_the_page_makes_no_network_requests(page: Path) -> None:
    text = page.read_text()
    reader = Reader(text)
    assert reader.open == []
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy and "img-src" not in policy
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert not {tag for tag, _ in reader.tags} & {"link", "img", "iframe", "object", "form", "base"}
    for tag, attributes in reader.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "xlink:href") and value:
                assert not re.match(r"(https?:)?//", value), value
    assert "url(http" not in text and "@import" not in text


def test_every_link_leads_somewhere(page: Path) -> None:
    reader = Reader(page.read_text())
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.tags:
        target = attributes.get("href") or attributes.get("xlink:href")
        if not target or target.startswith("data:text/csv"):
            continue
        if target.startswith("#"):
            assert target[1:] in ids or tag == "use", target
        else:
            assert (page.parent / target).exists(), target
    for reference in re.findall(r"url\(#([^)]+)\)", page.read_text()) + re.findall(
        r'<use [^>]*href="#([^"]+)"', page.read_text()
    ):
        assert reference in ids


def test_text_stays_text_and_everything_is_shown(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script>") == 1 and "&lt;script&gt;document.title=" in text
    words = " ".join(Reader(text).words)
    for told in (EVIL, "failed at iteration 12 of 30 (loss is nan", "qwen_rlhf (embedded)", "+14.8 % [P]", "not tested"):
        assert told in words, told
    for told in (
        "0123456789abcdef",
        "torch 2.13.0",
        "some cpu",
        "'figures=[kl]'",
        "Thick: mean over 3 seeds",
        "before (the reference)",
    ):
        assert told in words, told


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page in an offline tab; the console must stay empty, and no request may be made."""
    context = browser.new_context(offline=True, viewport={"width": 400, "height": 900})
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert said == [] and asked == [page.as_uri()]
    context.close()


def test_a_completion_runs_nothing_in_a_browser(tab: Any) -> None:
    assert tab.title() == "rgpo report" and tab.locator("article script, article img").count() == 0
    assert EVIL in tab.locator("article pre").all_inner_texts()
    assert tab.evaluate("document.documentElement.scrollWidth") == 400  # nothing sticks out of a telephone


def test_tables_sort_by_click_and_by_key(tab: Any) -> None:
    column = "#embedded_rlhf table.rewards tbody tr td:nth-child(5)"
    values = lambda: [float(v) for v in tab.locator(column).evaluate_all("cells => cells.map(c => c.dataset.value)")]  # noqa: E731
    button = tab.locator("#embedded_rlhf table.rewards th:nth-child(5) button")
    button.click()
    assert values() == sorted(values()) and button.locator("..").get_attribute("aria-sort") == "ascending"
    button.focus()
    tab.keyboard.press("Enter")
    assert values() == sorted(values(), reverse=True)


def test_series_axes_and_raw_seeds_are_switched(tab: Any) -> None:
    figure = tab.locator("#embedded_rlhf figure").first
    mean = figure.locator('.drawing:visible .mean[data-label="rgpo"]').first
    seed = figure.locator('.drawing:visible .seed[data-label="rgpo"]').first
    assert mean.is_visible() and seed.is_visible()
    figure.get_by_role("button", name="raw seeds").click()
    assert not mean.is_visible() and seed.is_visible()
    box = tab.locator("#embedded_rlhf .series input[value=rgpo]")
    box.focus()
    tab.keyboard.press("Space")
    assert not seed.is_visible() and figure.locator('.drawing:visible .seed[data-label="ppo"]').first.is_visible()
    first, second = figure.locator(".drawing").all()
    axis = figure.locator("button.axis")
    axis.click()
    assert not first.is_visible() and second.is_visible() and axis.get_attribute("aria-pressed") == "true"


def test_completions_are_browsed(tab: Any) -> None:
    articles, count = tab.locator("article:visible"), tab.locator(".completions output")
    everything = articles.count()
    assert everything == 36 and count.inner_text() == "36 shown"
    tab.locator(".completions select").select_option("grpo")
    assert articles.count() == 12
    tab.locator(".completions input").fill("number 2")
    assert articles.count() == 3 and "An answer of grpo after 20 iterations, number 2." in articles.first.inner_text()


def test_dark_and_light_have_contrast(tab: Any) -> None:
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        ink, paper = tab.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        first, second = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper))
        assert abs(first - second) > 500 and (first < second) == (scheme == "light")


def test_the_cut_edge_of_a_box_is_faded_until_it_is_scrolled_there(tab: Any) -> None:
    assert tab.locator("#embedded_rlhf figure").first.locator(".drawing.more").count() == 0  # one panel fits a telephone
    figure = tab.locator("#embedded_rlhf figure").nth(1)
    figure.locator(".drawing.more:visible").wait_for()
    figure.locator(".drawing:visible").evaluate("box => box.scrollTo(box.scrollWidth, 0)")
    figure.locator(".drawing:not(.more):visible").wait_for()


def test_numbers_that_are_read_keep_their_digits(page: Path) -> None:
    drawn = (page.parent / "first_evidence/figures/kl.svg").read_text()
    shown = inline(drawn.encode(), "f1")
    texts = [re.findall(r"<text [^>]*>([^<]*)</text>", svg) for svg in (drawn, shown)]
    assert texts[0] == texts[1] and any("." in text for text in texts[0])
    svg = b'<svg viewBox="0 0 504 9"><path d="M 1.23456 0.98765"/><text x="3.14159">0.005</text></svg>'
    assert 'd="M 1.23 0.98"/><text x="3.14">0.005</text>' in inline(svg, "f1")


def test_raw_seeds_are_offered_where_there_are_any(tmp_path: Path) -> None:
    fixtures.write_experiment(tmp_path / "results", tasks=("hopper",), algos=("ppo", "rgpo"))
    words = [f"results_dir={tmp_path}/results", f"out={tmp_path}/report", "formats=[svg]", "num_resamples=200"]
    for name, offered in (("profiles", 0), ("kl", 1)):
        assert main([*words, f"figures=[{name}]"]) == 0
        assert (tmp_path / "report/index.html").read_text().count('class="raw"') == offered
