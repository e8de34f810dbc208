# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, to look at pages as their readers do."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from tests.e2e.patience import wait_until

SIZE: Final = (1300, 1000)

Color = tuple[int, int, int]


class Browser:
    """A browser with one page.

    Args:
        require: Gives the path of a tool, or skips the test.
        folder: Where its profile and log are kept.
    """

    def __init__(self, require: Callable[[str], Path], folder: Path) -> None:
        options = ChromeOptions()
        options.binary_location = str(require("chromium"))
        for word in (
            "--headless=new",
            "--no-sandbox",  # which root cannot have
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--force-device-scale-factor=1",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--user-data-dir={folder / 'browser'}",
        ):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = Service(
            executable_path=str(require("chromedriver")),
            log_output=str(folder / "chromedriver.log"),
        )
        self.driver = Chrome(options=options, service=service)

    def close(self) -> None:
        """Ends it."""
        self.driver.quit()

    def open(self, path: Path) -> None:
        """Opens a file, and waits until it has been drawn."""
        self.driver.get(path.as_uri())
        wait_until(lambda: self.drawn, f"{path.name} is drawn")

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs a script in the page; gives what it returns."""
        return self.driver.execute_script(script, *arguments)

    @property
    def drawn(self) -> int:
        """How often the page's canvas was drawn."""
        return int(self.run("return document.documentElement.dataset.drawn || 0"))

    def redrawn(self, act: Callable[[], object]) -> None:
        """Does something, and waits until the page has been drawn anew."""
        before = self.drawn
        act()
        wait_until(lambda: self.drawn > before, "the page is drawn anew")

    def one(self, selector: str) -> WebElement:
        """The one element of a CSS selector."""
        (found,) = self.all(selector)
        return found

    def all(self, selector: str) -> list[WebElement]:
        """All elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def place(self, selector: str) -> tuple[float, float]:
        """Where in the window an element begins, inside of its border."""
        left, top = self.run(
            "const [one] = arguments, box = one.getBoundingClientRect();"
            "return [box.left + one.clientLeft, box.top + one.clientTop]",
            self.one(selector),
        )
        return left, top

    def point(self, selector: str, x: float, y: float, *, is_click: bool = False) -> None:
        """Moves the mouse to a place in an element, from its upper left corner."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        box = self.place(selector)
        actions = ActionChains(self.driver, duration=0)
        pointer: Any = actions.w3c_actions.pointer_action
        pointer.move_to_location(round(box[0] + x), round(box[1] + y))
        if is_click:
            pointer.click()
        actions.perform()

    def turn_wheel(self, selector: str, x: float, by: int) -> None:
        """Turns the mouse's wheel at a place in an element."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        left, top = self.place(selector)
        self.run(
            "const [one, x, y, by] = arguments; one.dispatchEvent(new WheelEvent('wheel',"
            "{deltaY: by, clientX: x, clientY: y, bubbles: true, cancelable: true}))",
            self.one(selector),
            left + x,
            top + 10,
            by,
        )

    def screenshot(self, path: Path) -> Image.Image:
        """What is seen, which is also kept in a file."""
        data = self.driver.get_screenshot_as_png()
        path.write_bytes(data)
        return Image.open(io.BytesIO(data)).convert("RGB")

    def prefers(self, scheme: str) -> None:
        """Has the user like ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """What the browser logged: broken rules of the page's policy, errors of its script."""
        driver: Any = self.driver
        return [entry["message"] for entry in driver.get_log("browser")]


@contextlib.contextmanager
def browser(require: Callable[[str], Path], folder: Path) -> Iterator[Browser]:
    """A browser, ended at the end."""
    opened = Browser(require, folder)
    try:
        yield opened
    finally:
        opened.close()
