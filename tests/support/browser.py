"""A real browser for tests: Debian's Chromium without a window, where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needed = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("chromium", "chromedriver")),
    reason="needs Chromium: apt-get install chromium chromium-driver",
)
"""Marks tests that need it."""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver of a fresh Chromium whose files lie in `profile`; nothing is ever downloaded."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ):
        options.add_argument(word)
    options.add_argument("--disable-background-networking")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(executable_path=str(shutil.which("chromedriver"))))
    try:
        driver.set_page_load_timeout(60)
        driver.set_window_size(1280, 1000)
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int) -> None:
    """Show pages as on a screen so wide; a narrow one is a telephone's."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def complaints(driver: Any) -> list[str]:
    """What pages have complained of in the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
