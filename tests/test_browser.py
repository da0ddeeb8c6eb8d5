"""Notebooks in JupyterLab, in a real browser: widgets answer when they are moved, and the console stays clean.

Needs Chromium, which pip does not install: `apt install chromium`, or name one in CHROMIUM. Pictures of what was
seen are left in build/browser/.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, Route, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SEEN = ROOT / "build/browser"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell in the page, seen or not
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}
# Wait for the kernel of the one notebook, and ask again until it answers, since a first connection may be dropped; then
# run all cells. `window.ran` tells when that is done.
RUN_ALL = """async () => {
    const session = jupyterapp.shell.currentWidget.sessionContext;
    const waited = () => new Promise(resolve => setTimeout(() => resolve(false), 5000));
    const asked = async () => {
        try { await session.session.kernel.requestExecute({code: ""}).done; return true } catch { return waited() }
    };
    await session.ready;
    while (!await Promise.race([asked(), waited()])) {}
    const tell = fine => { window.ran = fine ? "fine" : "failed" };
    jupyterapp.commands.execute("notebook:run-all-cells").then(tell, () => tell(false));
}"""
MOVES = {  # of each notebook's widget: what is moved, one after the other
    "00_generate_step_by_step": ("step", "seed", "prompt"),
    "01_zero_shot_orm": ("3", "5", "next prompt"),
    "03_prm": ("step", "path"),
    "07_parm": ("go on", "stop 1", "start again", "prompt"),
}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it, or name one in CHROMIUM"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab of this environment, with settings, guesses and notebooks of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    for plugin, settings in SETTINGS.items():
        file = home / f"settings/{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(settings)
    folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    folders |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "COTGEN_GUESSES": "guesses.json"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", f"--ServerApp.root_dir={home / 'notebooks'}"]
    options += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    with (home / "log").open("w") as log:
        environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=environment, cwd=home
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page; at the end the kernel of its notebook is shut down."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    yield page
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


def run(page: Page, address: str, complaints: list[str]) -> None:
    """Open a notebook as soon as the server answers, and run it from top to bottom.

    complaints: what the console calls errors from the first cell on. (Before, Jupyter's own start-up may stumble: it
    answers 500 when asked for its kernels while one is starting.)
    """
    for _ in range(60):
        try:
            page.goto(address)
            break
        except Error:  # the server is not there yet
            time.sleep(1)
    else:
        pytest.fail("JupyterLab did not start within a minute")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.evaluate(RUN_ALL)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.wait_for_function("window.ran", timeout=600_000)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert page.evaluate("window.ran") == "fine", errors


def find(widget: Locator, name: str) -> Locator:
    """What of a widget can be moved: the button of this name, or the slider or menu with this description."""
    button = widget.get_by_role("button", name=name, exact=True)
    box = widget.locator(".widget-inline-hbox").filter(has=widget.page.get_by_text(name, exact=True))
    return button.or_(box.locator(".noUi-handle, select"))


def at_rest(picture: Locator) -> bytes:
    """What a picture shows once it has stopped changing."""
    seen = b""
    while seen != (now := picture.screenshot()):
        seen = now
        time.sleep(0.5)
    return seen


def move(control: Locator) -> None:
    """Press a button, choose a menu's last entry, or push a slider by one step."""
    kind = control.evaluate("element => element.tagName")
    if kind == "BUTTON":
        control.click()
    elif kind == "SELECT":
        control.select_option(index=control.locator("option").count() - 1)
    else:
        control.focus()
        at_the_end = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemax")
        control.press("ArrowLeft" if at_the_end else "ArrowRight")


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVES)
def test_widget_answers_and_console_is_clean(lab: str, page: Page, name: str) -> None:
    complaints: list[str] = []
    page.set_default_timeout(60_000)

    def outside(route: Route) -> None:  # badges and the like: a browser without a network would complain of them
        here = route.request.url.startswith(lab)
        route.continue_() if here else route.fulfill(status=200, content_type="image/svg+xml", body="<svg/>")

    page.route(lambda url: url.startswith("http"), outside)
    run(page, f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb", complaints)  # in a workspace without other notebooks

    widget = page.locator(".jp-OutputArea-output:has(.widget-image)")
    picture = widget.locator(".widget-image")
    picture.scroll_into_view_if_needed()
    SEEN.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SEEN / f"{name}.png")
    for what in MOVES[name]:
        before, deadline = at_rest(picture), time.monotonic() + 30
        move(find(widget, what))
        while picture.screenshot() == before:
            assert time.monotonic() < deadline, f"moving {what!r} left the picture as it was; console: {complaints}"
            time.sleep(0.2)
        page.screenshot(path=SEEN / f"{name} {what}.png")
    assert not complaints
