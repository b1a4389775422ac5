"""A run's report and MLflow's pages on its SQLite store, as a browser shows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.page import Section
from pretrain.report import save_section, write_report
from pretrain.tracking import Tracker
from pretrain.tracking.destination import local_store
from tests.support import browser as support
from tools.serve.cli import listen, make_server

pytestmark = support.needed


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps in the store that runs have by default."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    tracker = Tracker.start(
        folder, experiment="novels", run_name="tiny", params={"lr": 0.1}, tags={}, system_interval=None
    )
    for step in range(1, 11):
        tracker.log(step, "train", {"loss": 9 - step / 2, "tokens_per_second": 51000.0})
    tracker.log(10, "validation", {"validation/perplexity": 40.0, "validation/perplexity_reset": 42.0})
    assert tracker.finish("FINISHED", timeout=60)
    (folder / "recipe.yaml").write_text("name: tiny\n")
    return folder


def test_the_report_is_whole(run_dir: Path, browser: Any) -> None:
    save_section(run_dir, "masks", Section("Masks", text="a word " + "without-an-end" * 40))
    report = write_report(run_dir)
    browser.get(report.page.as_uri())
    assert browser.title == "tiny"
    pictures = browser.execute_script(
        "return [...document.images].map(one => [one.alt, one.complete && one.naturalWidth > 100])"
    )
    assert [name for name, _ in pictures] == list(report.content.plots.panels)
    assert all(drawn for _, drawn in pictures)
    tables = [table.text for table in browser.find_elements("css selector", "table")]
    assert "held-out perplexity, with memory 40.00" in tables[0]
    assert f"run folder {run_dir}" in tables[1]
    assert not browser.find_element("css selector", "details pre").is_displayed()
    browser.find_element("css selector", "summary").click()
    assert browser.find_element("css selector", "details pre").text == "name: tiny"
    for width in (1280, 400):
        support.resize(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), width
    assert support.complaints(browser) == []


@pytest.fixture
def mlflow_ui(run_dir: Path) -> Iterator[str]:
    """MLflow's own server on the run's store, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.server import constants

        patch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, local_store(run_dir))
        patch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, (run_dir.parent / "mlartifacts").as_uri())
        from mlflow.server.fastapi_app import app

        with listen("127.0.0.1", 0) as door:
            server = make_server(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
            thread.start()
            yield f"http://127.0.0.1:{door.getsockname()[1]}/"
            server.should_exit = True
            thread.join()


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # MLflow's own import
def test_mlflow_lists_the_run(mlflow_ui: str, browser: Any) -> None:
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    # These pages draw themselves anew while they load: what was found may be gone a moment later.
    wait = WebDriverWait(browser, 60, 0.1, ignored_exceptions=(WebDriverException,))

    def press(text: str) -> None:
        def pressed(driver: Any) -> bool:
            driver.find_element("xpath", f"//*[text()='{text}']").click()
            return True

        wait.until(pressed)

    browser.get(f"{mlflow_ui}#/experiments")
    press("Model training")
    press("novels")
    press("tiny")
    wait.until(lambda driver: "Finished" in driver.find_element("css selector", "main").text)
    assert "/runs/" in browser.current_url
    shown = browser.find_element("css selector", "main").text
    for said in ("loss\n4", "tokens_per_second\n51000", "validation/perplexity_reset\n42", "lr\n0.1"):
        assert said in shown
