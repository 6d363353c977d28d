"""*Talk* in a real Chromium: the page's conversation over the real stack and worker. The microphone plays a recording: in one test
Chromium's own, which comes round by itself, in the others the page's, when the test wants it. The models are stand-ins, so that
their answers are known.
"""

from __future__ import annotations

import asyncio
import base64
import json
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from orchestrator.conversation.conversations import find_python
from tests.browser.chromium import Chromium, Page, find_chromium
from tests.browser.conftest import CHEAP, Stack, stop_sessions
from tests.browser.talking import FIRST, LINES, RATE, REPLIES, SPOKEN, STATE, TRACKS, agree, given_back, said, write
from tests.browser.test_browser_page import LIVE, LOUD, OVERFLOW, PROBE, TARGETS, clean, session_id, stopped, watch
from tests.fakes.openai_models import FakeModels

pytestmark = [
    pytest.mark.browser,
    pytest.mark.livekit,
    pytest.mark.network,  # `test_browser_short` reaches every block of the page's scripts that these reach
    pytest.mark.voice,
    pytest.mark.skipif(
        find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
    ),
]
LONG = " ".join(["And then the cat went on to the next house, and looked in at every window."] * 8)
# `cut()` takes the line from every WebSocket, and from those that are opened while `isCut`. (Offline in Chromium's emulation, its
# network process takes a whole processor until LiveKit notices after a quarter of a minute.)
CUT = """globalThis.sockets = [];
globalThis.WebSocket = class extends WebSocket {
  constructor(address, protocols) {
    super(globalThis.isCut ? 'ws://127.0.0.1:9' : address, protocols);
    sockets.push(this);
  }
};
globalThis.cut = () => {
  globalThis.isCut = true;
  sockets.forEach((socket) => socket.close(4000));
};"""
# What each track that is sent was when the connection got it.
SENT = """globalThis.sent = [];
const add = RTCPeerConnection.prototype.addTransceiver;
RTCPeerConnection.prototype.addTransceiver = function (track, ...rest) {
  if (track instanceof MediaStreamTrack) sent.push(track.enabled);
  return add.call(this, track, ...rest);
};"""


@pytest.fixture(scope="module")
def recording(speech: NDArray[np.int16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentence between quiet: 1.5 s before it, 20 s after. Chromium plays it again and again."""
    whole = np.concatenate([np.zeros(RATE * 3 // 2), speech, np.zeros(20 * RATE)])
    noise = np.random.default_rng(1).normal(0, 8, whole.size)  # a microphone is never digitally silent
    path = tmp_path_factory.mktemp("recording") / "microphone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((whole + noise).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def listener(recording: Path) -> Iterator[Chromium]:
    """A Chromium whose microphone plays the recording from its beginning whenever it is opened."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH")
    microphone = f"--use-file-for-fake-audio-capture={recording}"
    made = Chromium(program, microphone, without="--use-fake-ui-for-media-stream")  # see `permit`
    yield made
    made.close()


@pytest.fixture
async def recorded_page(listener: Chromium, stack: Stack) -> AsyncIterator[Page]:
    """A tab of that Chromium; no session stays behind."""
    async with listener.tab() as tab:
        await tab.send("Page.addScriptToEvaluateOnNewDocument", source=CHEAP + TRACKS + SENT)
        yield tab
    await asyncio.to_thread(stop_sessions, stack)


@pytest.fixture
async def page(recorded_page: Page, speech: NDArray[np.int16]) -> Page:
    """The same; its microphone is quiet until the page's `say()`, which has resolved when the sentence was said."""
    spoken = SPOKEN % (RATE, base64.b64encode(speech.tobytes()).decode())
    await recorded_page.send("Page.addScriptToEvaluateOnNewDocument", source=spoken)
    return recorded_page


async def permit(page: Page, stack: Stack, *, microphone: bool) -> None:
    setting = "granted" if microphone else "denied"
    microphone_of = {"permission": {"name": "microphone"}, "origin": stack.url}
    await page.send("Browser.setPermission", setting=setting, **microphone_of, **page.context)


async def start(page: Page, stack: Stack, *, microphone: bool = True) -> None:
    """Opens the page and presses Talk; the avatar is seen and listens afterwards."""
    await page.size(1280, 800)
    await permit(page, stack, microphone=microphone)
    await page.open(f"{stack.url}/")
    await page.click("#start-talk")
    await page.until(LIVE)
    await page.until(f"{REPLIES} === 0 && {STATE} === 'listening'")  # it has greeted


async def test_what_is_said_is_shown_and_answered_aloud(recorded_page: Page, stack: Stack, fake: FakeModels) -> None:
    page = recorded_page
    fake.replies = ["My name is Ada, and I am glad that you ask me this."]
    await start(page, stack, microphone=False)
    assert await page.run("document.getElementById('problem-code').textContent") == "microphone_forbidden"
    assert "Allow it in the address bar" in await page.run("document.getElementById('problem-text').textContent")
    assert await page.run("document.getElementById('talk-state').textContent") == "Waits for your message"
    await page.run(PROBE.read_text(), gesture=True)
    idle = await watch(page, 30)
    assert await page.run(f"{FIRST}.querySelector('.words').textContent") == "Hello! What would you like to talk about?"

    await permit(page, stack, microphone=True)
    await page.click("#mic")
    await page.until("!document.getElementById('hearing').hidden")  # its level is measured
    assert await page.run("asked.audio") == {
        "channelCount": 1,
        "echoCancellation": True,
        "noiseSuppression": True,
        "autoGainControl": True,
    }
    await page.until(f"{LINES}.some(([role]) => role === 'user')")
    await page.until(f"probe.rms() > {LOUD}")
    said = await watch(page, 30)
    # A busy browser shows some frames late and none in between: by the most that ten in a row move more than the forehead does.
    moved = np.convolve(said[:, 1] - said[:, 2], np.full(10, 0.1), "valid").max()
    assert moved > 1.5 * np.median(idle[:, 1]) + 0.5, "the mouth moves"
    await page.until(f"{REPLIES} === 1")
    assert await agree(page, stack) == [
        ["user", "What is your name?", False],
        ["assistant", fake.replies[0], False],
    ]
    assert fake.heard_s[0] > 0.3, "a recording of it was recognised"
    assert await page.run("document.getElementById('messages').role") == "log"
    assert await page.run("document.getElementById('messages').ariaLive") == "polite"
    assert await page.run("document.getElementById('captions-log').children.length") == 0  # nothing is announced twice

    await page.click("#stop")
    await page.until("document.body.dataset.phase === 'ready'")
    assert await given_back(page)
    clean(page)


async def test_texts_work_without_a_microphone_and_after_a_lost_conversation(
    page: Page, stack: Stack, fake: FakeModels
) -> None:
    fake.replies = [LONG, "Very well.", LONG, "I am here."]
    await start(page, stack, microphone=False)
    await write(page, "Tell me a story.")
    await page.until(f"{STATE} === 'speaking'")
    await page.until(
        "document.querySelector('#growing .assistant .words')?.textContent.split(' ').length > 4"
    )  # as the words come
    await page.until("document.getElementById('captions-text').textContent.includes('And then')")
    await write(page, "Stop, please.")
    await page.until(f"{REPLIES} === 2")
    lines = await agree(page, stack)
    assert [[role, cut] for role, _, cut in lines] == [
        ["user", False],
        ["assistant", True],
        ["user", False],
        ["assistant", False],
    ]
    assert LONG.startswith(lines[1][1]) and len(lines[1][1]) < len(LONG)
    assert lines[3][1] == "Very well."
    assert await page.run("document.querySelectorAll('#growing .line').length") == 0

    await page.until(f"{STATE} === 'listening'")
    await write(page, "Once more.")
    await page.until("document.querySelector('#growing .assistant .words')?.textContent.split(' ').length > 4")
    await page.key("Escape")
    await page.until(f"{REPLIES} === 3 && {STATE} === 'listening'")
    reply, cut = (await agree(page, stack))[-1][1:]
    assert cut and LONG.startswith(reply) and len(reply) < len(LONG)

    await page.run(f"""globalThis.states = [], new MutationObserver(() => states.push({STATE})).observe(
      document.getElementById('conversation'), {{attributes: true, attributeFilter: ['data-state']}}), null""")
    await asyncio.to_thread(kill_worker, stack)
    await page.until("states.includes('away')")
    await write(page, "And now?")
    await page.until(f"{REPLIES} === 4")
    assert [text for _, text, _ in (await page.run(LINES))[-3:]] == [reply, "And now?", "I am here."]
    assert await page.run(LIVE)
    clean(page)


async def test_the_microphone_is_muted_and_pushed_by_keys_and_given_back_with_the_session(
    page: Page, stack: Stack, fake: FakeModels
) -> None:
    await start(page, stack)
    await page.until("document.getElementById('mic').dataset.state === 'on'")
    assert await page.run("document.activeElement.id") == "chat-text"

    await page.tab_to("mic")
    await page.key("Enter")
    assert await page.run("document.getElementById('mic-text').textContent") == "Unmute"
    assert await page.run("tracks[0].enabled") is False
    await page.until("document.getElementById('talk-state').textContent === 'Muted: it does not hear you'")
    await page.key("Enter")
    assert await page.run("tracks[0].enabled") is True

    await page.tab_to("push-to-talk")
    await page.key(" ")
    assert await page.run("[tracks[0].enabled, document.getElementById('mic').hidden]") == [False, True]
    await page.until("document.getElementById('talk-state').textContent === 'Hold the button and talk'")
    await page.tab_to("chat-text")
    await page.tab_to("push")

    async def spoken() -> None:
        assert await page.run("document.getElementById('push').ariaPressed") == "true"
        await page.until("tracks[0].enabled")
        await page.run("globalThis.said = say(), null")
        await page.until("!document.getElementById('hearing').hidden")
        await page.run("said")

    await page.key(" ", hold=spoken)
    await page.until("!tracks[0].enabled")
    await page.until(f"{LINES}.some(([role]) => role === 'user')")
    await page.until(f"{REPLIES} >= 1")
    session = await session_id(page)

    await page.run("document.activeElement.blur()")
    await page.key(" ", hold=spoken)  # nothing has the focus: the key itself talks
    await asyncio.to_thread(stack.post, f"/session/{session}/stop")
    await page.until("document.body.dataset.phase === 'ready'")
    assert await given_back(page)
    await the_choice_of_push_to_talk_stays(page, stack)
    clean(page)


async def the_choice_of_push_to_talk_stays(page: Page, stack: Stack) -> None:
    await page.open(f"{stack.url}/")
    await page.click("#start-talk")
    await page.until(LIVE)
    await page.until("!document.getElementById('push').hidden")
    assert await page.run("document.getElementById('push-to-talk').checked")
    await page.until("sent.length > 0")
    assert await page.run("sent") == [False]  # not for a moment is it open
    assert await page.run("tracks.at(-1).enabled") is False
    await page.click("#switch")
    await page.until("document.body.dataset.mode === 'say'")
    await page.until(LIVE)
    assert await given_back(page)
    assert await page.run("document.getElementById('conversation').hidden && !document.getElementById('hold').hidden")


LANGUAGES = ("en", "zh-CN")
ERROR = """(() => {
  document.getElementById('problem-text').textContent =
    'The browser may not use the microphone. Allow it in the address bar, then try again.';
  document.getElementById('problem-code').textContent = 'microphone_forbidden';
  document.getElementById('problem').hidden = false;
  scrollTo(0, 0);
})()"""


async def test_phone_shows_the_conversation_without_scrolling_sideways_and_leaving_ends_the_session(
    page: Page, stack: Stack, fake: FakeModels
) -> None:
    fake.replies = [LONG]
    await page.size(360, 740, scale=2)
    await permit(page, stack, microphone=True)
    await page.open(f"{stack.url}/")
    await fits(page)
    await page.click("#start-talk")
    await page.until(LIVE)
    sessions = (await asyncio.to_thread(stack.get, "/sessions")).json()["sessions"]
    (session,) = (each["session_id"] for each in sessions if each["state"] not in ("stopped", "failed"))
    await page.until("document.getElementById('mic').dataset.state === 'on'")
    await page.until(f"{STATE} === 'listening'")
    await page.click("#chat-text")
    await page.type("Tell me a story.")
    await page.click("#chat-send")
    await page.until("document.querySelector('#growing .assistant .words')?.textContent.length > 100")
    await fits(page)
    for _ in LANGUAGES:
        await page.run(ERROR)
        assert await page.run(OVERFLOW) == 0
        for element in ("video", "problem", "messages-box", "chat-text", "mic", "stop"):
            box = await page.run(
                f"(({{top, bottom}}) => [top, bottom])(document.getElementById('{element}').getBoundingClientRect())"
            )
            assert 0 <= box[0] < box[1] <= 740, f"#{element} is not in view"
        small = {name: height for name, height in await page.run(TARGETS) if height < 24}
        assert small == {}
        await page.run("document.getElementById('language').click()")
    await page.open("about:blank")
    await stopped(stack, session)
    clean(page)


async def fits(page: Page) -> None:
    """Nothing is to the side in either language; the page is in the first one afterwards, as before."""
    for language in reversed(LANGUAGES):
        await page.run("document.getElementById('language').click()")
        assert await page.run("document.documentElement.lang") == language
        assert await page.run(OVERFLOW) == 0


JOIN = """(async () => {
  const { Avatar } = await import('/avatar.js');
  globalThis.avatar = new Avatar({ video: document.querySelector('video') });
  globalThis.messages = new Map();
  avatar.on('message', (message) => messages.set(message.id, message));
  await avatar.join(%s);
})()"""


async def test_a_page_without_a_key_sees_the_words_and_writes(page: Page, stack: Stack, fake: FakeModels) -> None:
    fake.replies = ["I have read it."]
    body: dict[str, object] = {"room": "keyless", "engine": "pattern", "conversation": {}}
    started = (await asyncio.to_thread(stack.post, "/session/start", body)).json()
    await page.serve(f"{stack.url}/keyless.html", "<video playsinline></video>")
    await page.open(f"{stack.url}/keyless.html")
    names = ("session_id", "livekit_url", "viewer_token", "avatar_identity", "audio_url", "conversation")
    await page.run(JOIN % json.dumps({name: started[name] for name in names}), gesture=True)
    await page.until("avatar.conversation.state === 'listening'")
    assert await page.run("avatar.link") is None
    await page.run("avatar.send('Can you read this?')")
    await page.until("[...messages.values()].some(({role, final}) => role === 'assistant' && final)")
    assert await page.run("[...messages.values()].map(({role, text, typed}) => [role, text, typed])") == [
        ["user", "Can you read this?", True],
        ["assistant", "I have read it.", False],
    ]
    assert fake.asked[0][-1][1] == "Can you read this?"
    await page.run("avatar.leave()")


async def test_the_microphone_is_heard_again_after_the_connection_was_lost(
    page: Page, stack: Stack, fake: FakeModels
) -> None:
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=CUT)
    await start(page, stack)
    await page.until("document.getElementById('mic').dataset.state === 'on'")
    await said(page, fake)
    await page.until(f"{REPLIES} >= 1")
    await page.run("""globalThis.chips = [], new MutationObserver(([{target}]) => chips.push(target.dataset.state)).observe(
      document.getElementById('chip'), {attributes: true, attributeFilter: ['data-state']}), null""")
    await page.run("cut(), null")
    await page.until("chips.includes('reconnecting')")
    await page.run("globalThis.isCut = false")
    await page.until("chips.at(-1) !== 'reconnecting'")
    await said(page, fake)
    assert await page.run("tracks.every((track) => track.readyState === 'live' && track.enabled)")
    await agree(page, stack)


def kill_worker(stack: Stack) -> None:
    """-9, to the conversation worker of this demo alone."""
    (worker,) = (
        child
        for child in psutil.Process(stack.pid).children(recursive=True)
        if "orchestrator.conversation.worker" in child.cmdline()
    )
    worker.kill()
