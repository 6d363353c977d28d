"""A headless Chromium driven over the DevTools protocol: just what the page's tests need, with `websockets` alone."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect

from tests.waiting import NEVER_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--lang=en-US",
    "--accept-lang=en-US",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    # WebRTC on loopback: its candidates are neither left out nor hidden behind mDNS names.
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns,LocalNetworkAccessChecks,MediaRouter,OptimizationHints,Translate,"
    # Else each window loads the pages of its address bar in a process of their own: a third of a CPU second that no test looks at.
    "WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup,SpareRendererForSitePerProcess",
    # What pulses is painted sixty times a second, by the processor.
    "--force-prefers-reduced-motion",
)
LOOK_S = 0.05
"""Between two looks at a page: each runs in three processes."""
MIDDLE = """(async () => {
  const middle = () => {
    const element = document.querySelector(%s);
    element.scrollIntoView({block: 'nearest'});
    const {x, y, width, height} = element.getBoundingClientRect();
    return [x + width / 2, y + height / 2];
  };
  for (let place = middle(); ; ) {
    await new Promise(requestAnimationFrame);
    const now = middle();
    if (now[0] === place[0] && now[1] === place[1]) return now;
    place = now;
  }
})()"""
"""Where an element is, once it has been there for a frame."""
SEEN = """(() => {
  const options = new Set([...document.querySelectorAll('option')].map(({label}) => label));
  const text = ([...document.querySelectorAll('dialog[open]')].at(-1) ?? document.body).innerText;
  const seen = text.split('\\n').filter((line) => line && !options.has(line)).join(' | ');
  return `focus on ${document.activeElement?.id}; ${seen}`;
})()"""
"""The focus, and the text of the dialog or the page without what can be chosen."""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


def find_chromium() -> str | None:
    """Path of a Chromium on PATH, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Page:
    """One tab. Collects console errors, uncaught exceptions, CSP violations and the address of every request."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._pages: dict[str, str] = {}
        self._serving: set[asyncio.Task[Any]] = set()
        self.context: dict[str, str] = {}
        """What names its browser context where the protocol asks for one."""

    async def watch(self) -> None:
        """Errors and requests are collected from now on."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")

    async def listen(self) -> None:
        """Hands out answers and collects events until the connection closes."""
        async for raw in self._socket:
            message = json.loads(raw)
            if (answer := self._answers.pop(message.get("id", 0), None)) is not None:
                if not answer.done():
                    answer.set_result(message)
            elif "method" in message:
                self._note(message["method"], message.get("params", {}))

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Fetch.requestPaused":
            self._fulfil(about["requestId"], self._pages[about["request"]["url"].partition("#")[0]])
        elif method == "Network.webSocketCreated":
            self.requests.append(about["url"])
        elif method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls the DevTools protocol; raises `RuntimeError` when it answers with an error."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        message = await asyncio.wait_for(answer, NEVER_S)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    async def open(self, url: str) -> None:
        """Loads a page and waits for its load event."""
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), NEVER_S)

    async def serve(self, url: str, html: str) -> None:
        """Answers `url` with this page from now on, as if its host did."""
        self._pages[url] = html
        await self.send("Fetch.enable", patterns=[{"urlPattern": page} for page in self._pages])

    def _fulfil(self, request: str, html: str) -> None:
        headers = [{"name": "Content-Type", "value": "text/html; charset=utf-8"}]
        body = base64.b64encode(html.encode()).decode()
        answer = self.send(
            "Fetch.fulfillRequest", requestId=request, responseCode=200, responseHeaders=headers, body=body
        )
        task = asyncio.create_task(answer)
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def run(self, script: str, *, gesture: bool = False) -> Any:
        """Value of a JavaScript expression, awaited when it is a promise; `gesture`: as if in a click."""
        result = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=gesture
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script[:80]}: {result['exceptionDetails'].get('exception', {}).get('description')}")
        return result["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Waits for a JavaScript expression to be true, and gives its value.

        Raises AssertionError, which says what the page showed, after `NEVER_S`.
        """
        try:
            return await until(lambda: self.run(condition), NEVER_S, every_s=LOOK_S)
        except AssertionError:
            errors = "; ".join(self.errors) or "none"
            raise AssertionError(f"never: {condition}\nerrors: {errors}\nseen: {await self.run(SEEN)}") from None

    async def click(self, selector: str) -> None:
        """A real click, which unlocks sound as a person's does: pressed and released in one place, once the element rests there."""
        x, y = await self.run(MIDDLE % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def key(self, key: str, *, hold: Callable[[], Awaitable[object]] | None = None) -> None:
        """Presses `Tab`, `Enter`, `Escape` or the space bar, and releases it when `hold` has returned."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        await self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        if hold is not None:
            await hold()
        await self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    async def tab_to(self, element: str) -> None:
        """Presses Tab until the element with this id, or this value, has the focus; raises AssertionError after 20 times."""
        for _ in range(20):
            if await self.run("document.activeElement.id || document.activeElement.value") == element:
                return
            await self.key("Tab")
        raise AssertionError(f"{element} cannot be reached with Tab")

    async def type(self, text: str) -> None:
        """Types into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def size(self, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
        """Size of the window in CSS pixels, its pixel ratio and colour scheme; narrow ones are phones."""
        phone = width < 500
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        await self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Saves what is to be seen, or the whole page, as PNG."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


class Chromium:
    """A process for many tests: to start one takes one and a half CPU seconds. Starts again when it has ended.

    Args:
        flags: more than `FLAGS`.
        without: one of `FLAGS` that is left out.
    """

    def __init__(self, program: str, *flags: str, without: str = "") -> None:
        self._command = [program, *(flag for flag in FLAGS if flag != without), *flags, "--remote-debugging-port=0"]
        self._process: subprocess.Popen[bytes] | None = None
        self._profile: tempfile.TemporaryDirectory[str] | None = None

    @asynccontextmanager
    async def tab(self, *, painted: bool = True) -> AsyncIterator[Page]:
        """An empty tab in a browser context of its own, which shares no storage, cache or permission with another.

        One that is not `painted` has no window, which is most of what a tab costs: its scripts run as usual, but it gets no
        clicks and no animation frames.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._profile is not None
        address = await _address(Path(self._profile.name))
        async with _connected(address) as whole:
            context = await whole.send("Target.createBrowserContext")
            try:
                place = {"newWindow": True} if painted else {"hidden": True}
                target = (await whole.send("Target.createTarget", url="about:blank", **place, **context))["targetId"]
                async with _connected(f"{address.partition('/devtools')[0]}/devtools/page/{target}") as page:
                    page.context = context
                    await page.watch()
                    yield page
            finally:
                await whole.send("Target.disposeBrowserContext", **context)

    def _start(self) -> None:
        self.close()
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        command = [*self._command, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": self._profile.name},  # it leaves a folder behind there
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """Ends it, if it runs. Its profile is gone afterwards."""
        if self._process is not None and self._profile is not None:
            self._process.terminate()
            self._process.wait()
            self._profile.cleanup()


@asynccontextmanager
async def browser(program: str, *extra_flags: str) -> AsyncIterator[Page]:
    """A tab of a fresh Chromium; it and its profile are gone afterwards."""
    chromium = Chromium(program, *extra_flags)
    try:
        async with chromium.tab() as tab:
            yield tab
    finally:
        await asyncio.to_thread(chromium.close)


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Page]:
    async with connect(address, max_size=64 * 2**20, proxy=None) as socket:
        page = Page(socket)
        listener = asyncio.create_task(page.listen())
        try:
            yield page
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def _address(profile: Path) -> str:
    """DevTools address of the browser: Chromium writes its port into the profile when it is ready."""
    port_file = profile / "DevToolsActivePort"

    async def written() -> list[str] | None:
        words = await asyncio.to_thread(lambda: port_file.read_text().split() if port_file.exists() else [])
        return words if len(words) == 2 else None

    words = await until(written)
    assert words is not None
    port, path = words
    return f"ws://127.0.0.1:{port}{path}"
