"""A tab of headless Chromium, which a test drives."""

import base64
import contextlib
import io
import json
import shutil
import socket
import subprocess
import time

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking"
    " --disable-component-update --disable-sync --no-first-run --hide-scrollbars"
    " --remote-debugging-pipe"
)


class Page:
    """A tab of headless Chromium, over the pipe of the DevTools protocol."""

    def __init__(self, profile):
        self.socket, theirs = socket.socketpair()
        fd = theirs.fileno()
        self.process = subprocess.Popen(
            # Chromium reads commands from 3 and writes answers to 4.
            ["bash", "-c", f'exec "$0" "$@" 3<&{fd} 4>&{fd}', CHROMIUM, *_FLAGS.split()]
            + [f"--user-data-dir={profile}", "about:blank"],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self.socket.settimeout(60)
        self.session, self.received, self.calls, self.events = None, b"", 0, []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(x["targetId"] for x in targets if x["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self.process.wait(10)
        self.socket.close()

    def call(self, method, **parameters):
        """What the browser answers."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.socket.sendall(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.received:
                more = self.socket.recv(1 << 20)
                if not more:
                    raise ConnectionError("Chromium is gone")
                self.received += more
            answer, _, self.received = self.received.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == self.calls:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def js(self, expression):
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def until(self, expression, wanted=True):
        """Waits until an expression has a value, and fails if it never does."""
        end = time.monotonic() + 20
        while (value := self.js(expression)) != wanted:
            assert time.monotonic() < end, f"{expression} is {value!r}, not {wanted!r}"
            time.sleep(0.02)

    def shows(self, selector, wanted):
        """Waits until an element has a text."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.until(f"{element}?.textContent", wanted)

    def each(self, selector, expression="x.textContent"):
        """What an expression of x is for each of the elements."""
        found = f"document.querySelectorAll({json.dumps(selector)})"
        return self.js(f"[...{found}].map((x) => {expression})")

    def go(self, hash):
        self.js(f"location.hash = {json.dumps(hash)}")

    def window(self, width=1200, height=900, scale=1, mobile=False, theme="light"):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)
        preference = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[preference])

    def open(self, folder, hash="", fresh=True):
        """Loads an atlas from disk; `fresh` forgets the settings of an earlier one."""
        if fresh and self.js("location.protocol") == "file:":
            self.js("localStorage.clear()")
        self.call("Page.navigate", url="about:blank")
        self.until("location.href", "about:blank")
        self.call("Page.navigate", url=f"{(folder / 'index.html').as_uri()}{hash}")
        self.until("location.protocol + document.readyState", "file:complete")
        self.until("document.getElementById('status').textContent !== ''")

    def pixels(self):
        """What is seen, uint8 [height, width, 3]."""
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))

    def looks(self, points, tolerance=10):
        """Waits until points (x, y) have colours."""
        end = time.monotonic() + 20
        while True:
            seen = self.pixels()
            wrong = {
                point: (seen[int(point[1]), int(point[0])].tolist(), wanted)
                for point, wanted in points.items()
                if np.abs(seen[int(point[1]), int(point[0])] - np.array(wanted)).max()
                > tolerance
            }
            if not wrong:
                return
            assert time.monotonic() < end, wrong
            time.sleep(0.05)

    def box(self, selector, index=0):
        """Left, top, width and height in the window."""
        return self.js(
            f"(({{ x, y, width, height }}) => [x, y, width, height])(document"
            f".querySelectorAll({json.dumps(selector)})[{index}].getBoundingClientRect())"
        )

    def middle(self, selector, index=0):
        x, y, width, height = self.box(selector, index)
        element = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        at = f"document.elementFromPoint({x + width / 2}, {y + height / 2})"
        if not self.js(f"{element}.contains({at})"):
            self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.box(selector, index)
        return x + width / 2, y + height / 2

    def move(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector, index=0):
        x, y = self.middle(selector, index)
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            mouse = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", **mouse)

    def tap(self, selector, index=0):
        x, y = self.middle(selector, index)
        touch = "Input.dispatchTouchEvent"
        self.call(touch, type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call(touch, type="touchEnd", touchPoints=[])

    def press(self, key, shift=False):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27, "Tab": 9}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=8 * shift,
                **({"text": text} if kind == "keyDown" and text else {}),
            )

    def problems(self):
        """Whatever the browser complained about, and all it wanted from elsewhere."""
        found = []
        for event in self.events:
            kind, told = event["method"], event["params"]
            if kind in ("Log.entryAdded", "Runtime.exceptionThrown"):
                found.append(told)
            if kind == "Runtime.consoleAPICalled":
                found.append(told["args"])
            if kind == "Network.requestWillBeSent":
                found.append(told["request"]["url"])
        ours = ("file:", "data:", "about:")
        return [x for x in found if not (isinstance(x, str) and x.startswith(ours))]
