"""index.html: its content, no network requests, text that stays text, and its behavior in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main
from rgpo.report.figures.render import inline
from rgpo.report.page.columns import STEPS, encode

EVIL = '<script>document.title="hacked"</script><img src=http://evil.example/x.png onerror=alert(1)> & "quoted"'
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
    assert main([f"results_dir={here}/results", f"out={here}/report", "format=svg", "num_resamples=200", figures]) == 1
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
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert "img-src" not in policy and "connect-src" not in policy
    assert [a.get("type") for tag, a in reader.tags if tag == "script"] == ["application/gzip", "application/gzip", None]
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
    for _, attributes in reader.tags:
        target = attributes.get("href") or attributes.get("xlink:href")
        if target and target.startswith("#go="):
            assert parse_qs(target[1:])["go"][0] in ids
        elif target and target.startswith("#"):
            assert target[1:] in ids, target
        elif target:
            assert (page.parent / target).exists(), target


def test_text_stays_text_and_everything_is_shown(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script>") == 1 and "&lt;script&gt;document.title=" in text
    words = " ".join(Reader(text).words)
    for told in (EVIL, "failed at iteration 12 of 30 (loss is nan", "qwen_rlhf (embedded)", "+14.8 % [P]", "not tested"):
        assert told in words, told
    for told in ("0123456789abcdef", "torch 2.13.0", "some cpu", "'figures=[kl]'", "the tables use 0.04 nats"):
        assert told in words, told
    pairs = [pair for section in fixtures.page_data(page)["sections"] for pair in section["pairs"]]
    sides = [side["text"] for pair in pairs for side in pair["sides"]]
    assert EVIL in sides and len(sides) == 72


def test_rows_of_long_tables_are_packed_and_inserted_as_text(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for seed in range(1, 32):
        fixtures.write_run(tmp_path / "results", seed=seed, iterations=3, status="failed", reached=2, reason=EVIL)
    main([f"results_dir={tmp_path}/results", f"out={tmp_path}/report", "figures=[]", "num_resamples=200"])
    page = tmp_path / "report/index.html"
    [rows] = fixtures.page_data(page, "rows")
    assert rows.count("<tr data-label=") == 31 > page.read_text().count("<tr data-label=")
    assert Reader(rows).open == [] and not {"script", "img"} & {tag for tag, _ in Reader(rows).tags}
    tab = request.getfixturevalue("browser").new_page()
    tab.goto(page.as_uri())
    tab.wait_for_selector("table.runs tbody tr", state="attached")
    assert tab.title() == "rgpo report" and tab.locator("table.runs tbody tr").count() == 31
    tab.close()


def test_curves_keep_their_values(tmp_path: Path) -> None:
    kl = np.geomspace(1e-6, 10.0, 300)
    kl[7] = np.nan
    assert encode(np.full(4, np.nan)) is None
    for values, error in ((kl, 1e-3 * kl), (np.linspace(-5, 300, 300), 305 / 131_000), (np.full(3, 2.0), 1e-9)):
        low, high, log, text = encode(values) or pytest.fail("nothing")
        codes = np.frombuffer(base64.b64decode(text), dtype="<u2").astype(float)
        found = np.where(codes > STEPS, np.nan, low + (high - low) * codes / STEPS)
        found = np.exp(found) if log else found
        assert (np.isnan(found) == np.isnan(values)).all() and (np.abs(found - values) <= error)[~np.isnan(values)].all()


def test_the_page_has_every_run_once_with_what_varies(page: Path) -> None:
    (language, control) = fixtures.page_data(page)["sections"]
    assert len(control["runs"]) == 7 and control["keys"][0] == "choices.algo" and control["baselines"] == {"hopper": "ppo"}
    assert {metric["name"] for metric in control["metrics"]} >= {"return/train_mean", "return/eval_mean", "kl/old_exact"}
    assert all(len(metric["of"]) == 7 for metric in control["metrics"])
    assert len(control["axes"]["env_steps"]["points"]) == 2  # every run has the same but the failed one
    assert language["score"] == "reward/eval_proxy_change" and set(language["axes"]) == {
        "iteration",
        "env_steps",
        "samples",
        "wall",
    }
    colors = [look[0] for look in language["lines"].values()]
    assert len(set(colors)) == len(colors)


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
    assert said == [] and set(asked) == {page.as_uri()}
    context.close()


def test_a_completion_runs_nothing_in_a_browser(tab: Any) -> None:
    tab.locator(".completions").scroll_into_view_if_needed()
    tab.locator(".completions .more").click()
    tab.locator(".completions .more").click()
    assert tab.title() == "rgpo report" and tab.locator("article script, article img").count() == 0
    assert EVIL in tab.locator("article pre").all_inner_texts()
    assert tab.evaluate("document.documentElement.scrollWidth") == 400  # nothing sticks out of a telephone


def test_tables_sort_by_click_and_by_key(tab: Any) -> None:
    column = "#embedded_rlhf table.rewards tbody tr td:nth-child(5)"
    read = "cells => cells.map(c => c.dataset.value ?? c.textContent)"
    values = lambda: [float(v) for v in tab.locator(column).evaluate_all(read)]  # noqa: E731
    button = tab.locator("#embedded_rlhf table.rewards th:nth-child(5) button")
    button.locator("..").click(position={"x": 2, "y": 2})  # the whole cell of the header
    assert values() == sorted(values()) and button.locator("..").get_attribute("aria-sort") == "ascending"
    button.focus()
    tab.keyboard.press("Enter")
    assert values() == sorted(values(), reverse=True)


def first_plot(tab: Any, name: str = "first_evidence") -> Any:
    """The first chart of an experiment, scrolled to, so that it is drawn."""
    home = tab.locator(f"#{name}")
    home.locator(".explorer").evaluate("box => box.scrollIntoView()")
    home.locator(".explorer .chart").first.wait_for(state="attached")
    home.locator(".explorer .chart").first.evaluate("box => box.scrollIntoView({block: 'center'})")
    plot = home.locator(".explorer .plot").first
    plot.wait_for()
    return plot


def test_arms_are_switched_and_the_address_remembers(tab: Any) -> None:
    home = tab.locator("#first_evidence")
    label = lambda: first_plot(tab).get_attribute("aria-label")  # noqa: E731
    assert "ppo ends at" in label() and "rgpo ends at" in label()
    home.get_by_role("button", name="only rgpo").click()
    assert "ppo ends at" not in label() and "rgpo ends at" in label()
    assert not home.locator('table.returns tr[data-label="ppo"]').is_visible()
    home.get_by_label("x axis").select_option("wall")
    assert "over wall time, s" in label() and "wall" in tab.evaluate("location.hash")
    tab.reload()
    assert "over wall time, s" in label() and "ppo ends at" not in label()


def test_values_are_shown_at_the_pointer_and_zoomed_by_key(tab: Any) -> None:
    plot = first_plot(tab)
    plot.hover()
    tip = plot.locator(".tip")
    assert tip.is_visible() and "rgpo: " in tip.inner_text() and "environment steps" in tip.inner_text()
    plot.focus()
    before = tip.inner_text()
    tab.keyboard.press("ArrowRight")
    assert tip.inner_text() != before
    limits = "() => (s => [s.min, s.max])([...charts][0].u.scales.x)"
    first = tab.evaluate(limits)
    tab.keyboard.press("+")
    tab.wait_for_timeout(100)
    low, high = tab.evaluate(limits)
    assert high - low < first[1] - first[0]
    tab.keyboard.press("Escape")
    tab.wait_for_timeout(100)
    assert tab.evaluate(limits) == first


def test_an_address_of_other_results_is_read_as_far_as_it_fits(tab: Any) -> None:
    tab.evaluate(
        """location.hash = '#first_evidence={"axis":"x","metrics":7,"group":"y","filter":{"z":["1"]},"off":["trpo","ppo"]}'"""
    )
    tab.reload()
    assert "rgpo ends at" in first_plot(tab).get_attribute("aria-label")
    assert "ppo ends at" not in first_plot(tab).get_attribute("aria-label")


def test_runs_are_filtered_by_a_setting(tab: Any) -> None:
    home = tab.locator("#first_evidence")
    first_plot(tab)
    home.locator(".filters summary").click()
    home.locator('.filters input[data-key="choices.algo"][value="ppo"]').uncheck()
    assert "ppo ends at" not in first_plot(tab).get_attribute("aria-label")
    assert home.locator('.legend input[value="ppo"]').count() == 0


def test_completions_are_browsed(tab: Any) -> None:
    tab.locator(".completions").scroll_into_view_if_needed()
    articles, count = tab.locator("article:visible"), tab.locator(".completions output")
    articles.first.wait_for()
    assert count.inner_text() == "36 found" and articles.count() == 8
    tab.locator(".completions select").select_option("grpo")
    assert count.inner_text() == "12 found"
    tab.locator(".completions input").fill("number 2")
    assert articles.count() == 3 and "An answer of grpo after 20 iterations, number 2." in articles.first.inner_text()
    assert "KL 2.00 nats" in articles.first.inner_text()


@pytest.mark.parametrize("width", [400, 900, 1400, 1920])
def test_every_part_is_drawn_in_light_and_dark(browser: Any, page: Path, width: int) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(offline=True, viewport={"width": width, "height": 1000}, color_scheme=scheme)
        tab = context.new_page()
        said: list[str] = []
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.goto(page.as_uri())
        ink, paper = tab.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        first, second = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper))
        assert abs(first - second) > 500 and (first < second) == (scheme == "light")
        for part in tab.locator(".explorer, .extra, figure.panels, .completions").all():
            part.scroll_into_view_if_needed()
            tab.wait_for_timeout(60)
        assert tab.locator(".explorer .plot canvas").count() >= 2 and tab.locator("svg.shape").count() >= 2
        assert said == [] and tab.evaluate("document.documentElement.scrollWidth") == width
        context.close()


def test_numbers_that_are_read_keep_their_digits(page: Path) -> None:
    drawn = (page.parent / "first_evidence/figures/kl.svg").read_text()  # as a module of the user's own would be drawn
    shown = inline(drawn.encode(), "f1")
    texts = [re.findall(r"<text [^>]*>([^<]*)</text>", svg) for svg in (drawn, shown)]
    assert texts[0] == texts[1] and any("." in text for text in texts[0])
    svg = b'<svg viewBox="0 0 504 9"><path d="M 1.23456 0.98765"/><text x="3.14159">0.005</text></svg>'
    assert 'd="M 1.23 0.98"/><text x="3.14">0.005</text>' in inline(svg, "f1")
