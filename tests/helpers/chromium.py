"""Headless Chromium for tests, spoken to through two pipes in its DevTools protocol: no package, no port.

Protocol: chromedevtools.github.io/devtools-protocol.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One page. `problems`: what its console complained about, such as what its policy forbade; `asked`: the addresses
    it requested."""

    def __init__(self, width: int = 1000, height: int = 900, *, timeout_s: float = 60) -> None:
        assert PROGRAM
        self.timeout_s, self.problems, self.asked = timeout_s, list[str](), list[str]()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (read_commands, self._commands), (self._answers, write_answers) = os.pipe(), os.pipe()

        def place_pipes() -> None:  # where --remote-debugging-pipe expects them
            commands, answers = os.dup(read_commands), os.dup(write_answers)
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            "--no-first-run",
        )
        args = [
            PROGRAM,
            *options,
            f"--user-data-dir={self._profile.name}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(args, close_fds=False, preexec_fn=place_pipes, **quiet)
        os.close(read_commands)
        os.close(write_answers)
        self._unread, self._count, self._session, self._loaded = b"", 0, "", set[str]()
        pages = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self(f"{domain}.enable")
        self("Page.setLifecycleEventsEnabled", enabled=True)
        phone = width < 600  # a window cannot be so narrow
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def __call__(self, method: str, **params: Any) -> Any:
        """One command of the protocol, and its result."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": params} | (
            {"sessionId": self._session} if self._session else {}
        )
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, address: str) -> None:
        answer = self("Page.navigate", url=address)
        assert not answer.get("errorText"), (address, answer["errorText"])
        loader = answer["loaderId"]
        while loader not in self._loaded:  # an empty page is loaded, too, and may say so late
            self._note(self._next())

    def value(self, script: str) -> Any:
        """Of an expression, a promise awaited."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until an expression is true."""
        until = time.monotonic() + self.timeout_s
        while not (found := self.value(script)):
            assert time.monotonic() < until, f"{script} is not so: {self.value('document.body.innerText')}"
            time.sleep(0.1)
        return found

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Files in an <input type="file">, as a user chooses them."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def draw(self, points: Sequence[tuple[float, float]]) -> None:
        """One stroke of the mouse, in CSS pixels."""
        for kind, (x, y) in [
            ("mousePressed", points[0]),
            *(("mouseMoved", p) for p in points[1:]),
            ("mouseReleased", points[-1]),
        ]:
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {
            "Enter": 13,
            " ": 32,
            "Tab": 9,
            "Delete": 46,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }[key]
        self(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key=key,
            windowsVirtualKeyCode=code,
            **({"text": text} if text else {}),
        )
        self("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(
            base64.b64decode(self("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"])
        )

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event.get("method") == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded.add(params["loaderId"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
