"""`membart serve` on an exported folder, in a real browser."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest

from tests.support import browser as support
from tests.support.fitted import export, fitted
from tools.serve.cli import open_door

pytestmark = support.needed
SLOTS = 4
FIRST, SECOND = "hello, i am <b>anna</b>.", "what is my name?"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server answers for an exported folder, as `membart serve` sets it up."""
    folder = export(fitted(), tmp_path_factory.mktemp("model"))
    said = io.StringIO()
    with redirect_stdout(said), open_door(folder, None, 0, "127.0.0.1", False, "cpu") as (server, door):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        yield said.getvalue().splitlines()[0]
        server.should_exit = True
        thread.join()


class Page:
    """The page as a person uses it."""

    def __init__(self, driver: Any, address: str) -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver, self._css, self._wait = driver, By.CSS_SELECTOR, WebDriverWait(driver, 60, 0.02)
        driver.get(address)
        driver.execute_script("sessionStorage.clear()")
        driver.refresh()
        self.until(lambda: self.one("#send").is_enabled() and self.text("#facts"))

    def one(self, selector: str) -> Any:
        return self.driver.find_element(self._css, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(self._css, selector))

    def text(self, selector: str) -> str:
        return str(self.one(selector).text)

    def until(self, true: Any) -> None:
        from selenium.common.exceptions import TimeoutException

        try:
            self._wait.until(lambda _: true())
        except TimeoutException:
            shown = self.text("body")
        else:
            return
        pytest.fail(f"in vain; the page shows: {shown}")

    def say(self, text: str) -> None:
        number = len(self.all("#turns .turn"))
        self.one("#text").send_keys(text + "\n")
        self.until(lambda: len(self.all("#turns .turn")) == number + 2 and self.one("#send").is_enabled())


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)


def test_a_person_talks_and_sees_what_memory_holds(page: Page) -> None:
    for fact in ("family\nmembart", f"slots\n{SLOTS} × 16", "memory\ncarry", "window\n24 tokens"):
        assert fact in page.text("#facts")
    assert not page.one("#charts").is_displayed()

    page.say(FIRST)
    assert page.text("#turns .you .words") == FIRST, "what is typed is shown as text"
    assert page.text("#turns .reset .words") == "the same words", "nothing was before the first message"
    page.say(SECOND)
    drawn = [item.get_attribute("class").split()[1:] for item in page.all("#turns .turn")]
    assert [drawn[0], drawn[2], drawn[3]] == [["you", "memory"], ["you", "window"], ["model", "next"]]
    assert "only memory holds it" in page.text("#turns .turn.you.memory .note")
    assert page.text("#turns .border") == "the context window begins here"
    both = page.all("#turns .turn:last-child .both h3")
    assert [side.text for side in both] == ["with memory", "memory reset"]

    gate = page.all("#gate .bars i")
    assert [bar.get_attribute("title").split(":")[0] for bar in gate] == [f"slot {n}" for n in range(SLOTS)]
    shown = [float(bar.get_attribute("title").split()[-1]) for bar in gate]
    heights = [bar.rect["height"] / page.one("#gate .bars").rect["height"] for bar in gate]
    assert heights == pytest.approx(shown, abs=0.05)
    for name, who in (("reading", "tokens of the message"), ("writing", "tokens of the reply")):
        assert len(page.all(f"#{name} .bars i")) == SLOTS
        assert who in page.text(f"#{name} .sum")
        layers = page.all(f"#{name} option")
        assert [one.text for one in layers] == ["mean of layers", "layer 1", "layer 2"]
        before = page.text(f"#{name} .sum")
        layers[1].click()
        assert page.text(f"#{name} .sum") != before
    assert support.complaints(page.driver) == []


def test_the_conversation_outlives_a_reload_and_ends_with_reset(page: Page) -> None:
    page.say(FIRST)
    before = page.text("#turns")
    page.driver.refresh()
    page.until(lambda: page.text("#turns") == before and page.one("#charts").is_displayed())
    page.one("#compare").click()
    page.one("#settings summary").click()
    page.one("#beams").clear()
    page.one("#beams").send_keys("99")
    page.one("#text").send_keys(SECOND + "\n")
    page.until(lambda: page.one("#error").is_displayed())
    assert page.text("#error") == "wishes.beams: Input should be less than or equal to 16"
    assert page.text("#turns") == before
    page.one("#beams").clear()
    page.one("#beams").send_keys("1")
    page.one("#send").click()
    page.until(lambda: len(page.all("#turns .turn")) == 4)
    assert not page.one("#error").is_displayed()
    assert page.all("#turns .turn:last-child .both") == []

    page.one("#persona-settings summary").click()
    page.one("#persona-text").send_keys("i like coffee.")
    page.one("#reset").click()
    page.until(lambda: not page.all("#turns .turn"))
    assert not page.one("#charts").is_displayed()
    assert page.text("#persona .words") == "i like coffee."
    complaints = support.complaints(page.driver)
    assert len(complaints) == 1, "the refused message"
    assert "422" in complaints[0]


def test_the_page_fits_a_telephone(page: Page) -> None:
    page.say(FIRST)
    support.resize(page.driver, 400)
    left = [page.one(name).rect["x"] for name in ("#talk", "#memory")]
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 400
    assert left[0] == left[1], "the memory stands below the conversation"
