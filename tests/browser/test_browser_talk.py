"""*Talk* in a real Chromium: the page's conversation over the real stack and worker. The microphone plays a recording: in one test
Chromium's own, which comes round by itself, in the others the page's, when the test wants it. The models are stand-ins, so that
their answers are known.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from orchestrator.conversation.conversations import find_python
from tests.browser.chromium import LOOK_S, Chromium, Page, find_chromium
from tests.browser.conftest import CHEAP, CHEAP_VOICE, Stack, running_demo, stop_sessions
from tests.browser.test_browser_page import LIVE, LOUD, OVERFLOW, PROBE, TARGETS, clean, session_id, stopped, watch
from tests.fakes.openai_models import KEY, FakeModels
from tests.fakes.serving import plain_config, serving
from tests.integrations.conversation import warm_python
from tests.waiting import NEVER_S, until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.livekit,
    pytest.mark.voice,
    pytest.mark.skipif(
        find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
    ),
]
RATE = 48_000
PAUSE_S = 2.0
"""After a sentence, until it is said again: long enough that it is known to be over."""
LONG = " ".join(["And then the cat went on to the next house, and looked in at every window."] * 8)
TRACKS = """globalThis.tracks = [];
const ask = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
if (ask) navigator.mediaDevices.getUserMedia = async (wanted) => {
  globalThis.asked = wanted;
  const stream = await (globalThis.granted ?? ask)(wanted);
  tracks.push(...stream.getTracks());
  return stream;
};"""
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
# In place of the microphone that a person allowed: what `say` is given, on a faint noise, since none is digitally silent.
SPOKEN = """globalThis.granted = async (wanted) => {
  (await ask(wanted)).getTracks().forEach((track) => track.stop());
  const context = new AudioContext({sampleRate: %d});
  const buffer = (values) => {
    const made = context.createBuffer(1, values.length, context.sampleRate);
    made.copyToChannel(values, 0);
    return made;
  };
  const microphone = context.createMediaStreamDestination();
  const play = (options) => {
    const node = new AudioBufferSourceNode(context, options);
    node.connect(microphone);
    node.start();
    return new Promise((resolve) => node.addEventListener('ended', resolve));
  };
  void play({loop: true, buffer: buffer(Float32Array.from({length: context.sampleRate}, () => (Math.random() - 0.5) / 1024))});
  const speech = new Int16Array(Uint8Array.from(atob('%s'), (letter) => letter.charCodeAt(0)).buffer);
  globalThis.say = () => play({buffer: buffer(Float32Array.from(speech, (value) => value / 32768))});
  return microphone.stream;
};"""
# What each track that is sent was when the connection got it.
SENT = """globalThis.sent = [];
const add = RTCPeerConnection.prototype.addTransceiver;
RTCPeerConnection.prototype.addTransceiver = function (track, ...rest) {
  if (track instanceof MediaStreamTrack) sent.push(track.enabled);
  return add.call(this, track, ...rest);
};"""
FIRST = "document.querySelector('#messages > .line')"
LINES = """[...document.querySelectorAll('#messages > .line')].slice(1).map((line) => [
  line.classList.contains('user') ? 'user' : 'assistant', line.querySelector('.words').textContent,
  !line.querySelector('.mark').hidden])"""
STATE = "document.getElementById('conversation').dataset.state"
REPLIES = "(document.querySelectorAll('#messages > .line.assistant').length - 1)"
"""As `LINES` without the greeting."""


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[FakeModels, str]]:
    """Stand-ins for the models and their address, served by a thread for all tests of this module."""
    fake, ready, address = FakeModels(), threading.Event(), list[str]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(plain_config(fake.app)) as url:
            address.append(url + "/v1")
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(NEVER_S)
    yield fake, address[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def talking(models: tuple[FakeModels, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A demo whose conversations use those models."""
    url = models[1]
    providers = {"LLM_BASE_URL": url, "LLM_API_KEY": KEY, "STT_BASE_URL": url, **CHEAP_VOICE}
    providers["CONVERSATION_PYTHON"] = warm_python.path()
    with running_demo(tmp_path_factory.mktemp("talking") / "log", **providers) as stack:
        yield stack


@pytest.fixture
def fake(models: tuple[FakeModels, str]) -> FakeModels:
    """The models, as new."""
    made, fresh = models[0], FakeModels()
    for name in ("replies", "transcripts", "asked", "heard_s", "_answer", "_speech"):
        setattr(made, name, getattr(fresh, name))
    return made


@pytest.fixture(scope="module")
def speech(talking: Stack) -> NDArray[np.int16]:
    """A sentence of the product's neural voice, at `RATE`."""
    asked = {"model": "tts-1", "voice": "piper:joe", "input": "What is your name?", "response_format": "pcm"}
    answer = talking.post("/v1/audio/speech", asked)
    assert answer.status_code == 200, answer.text
    return np.repeat(np.frombuffer(answer.content, np.int16), 2)  # it comes at 24 kHz


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
async def recorded_page(listener: Chromium, talking: Stack) -> AsyncIterator[Page]:
    """A tab of that Chromium; no session stays behind."""
    async with listener.tab() as tab:
        await tab.send("Page.addScriptToEvaluateOnNewDocument", source=CHEAP + TRACKS + SENT)
        yield tab
    await asyncio.to_thread(stop_sessions, talking)


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


async def write(page: Page, text: str) -> None:
    await page.click("#chat-text")
    await page.type(text)
    await page.key("Enter")


async def agree(page: Page, stack: Stack) -> list[list[Any]]:
    """The lines of the page after the greeting, once the orchestrator's history has the same."""
    session = await session_id(page)

    async def same() -> list[list[Any]]:
        answer = await asyncio.to_thread(stack.get, f"/session/{session}/messages")
        known = [[each["role"], each["text"].strip(), each["interrupted"]] for each in answer.json()["messages"]]
        lines: list[list[Any]] = await page.run(LINES)
        return lines if known and lines == known[1:] else []

    return await until(same, every_s=LOOK_S)


async def said(page: Page, fake: FakeModels) -> None:
    """The sentence is said and recognised; again and again, since it is lost while the room takes the microphone's track."""
    before = len(fake.heard_s)

    async def recognised() -> bool:
        if len(fake.heard_s) == before:
            await page.run("say()")
        return len(fake.heard_s) > before

    await until(recognised, every_s=PAUSE_S)


async def given_back(page: Page) -> bool:
    """Whether every microphone track that was asked for has ended."""
    return bool(await page.run("tracks.length > 0 && tracks.every((track) => track.readyState === 'ended')"))


async def test_what_is_said_is_shown_and_answered_aloud(recorded_page: Page, talking: Stack, fake: FakeModels) -> None:
    page = recorded_page
    fake.replies = ["My name is Ada, and I am glad that you ask me this."]
    await start(page, talking, microphone=False)
    assert await page.run("document.getElementById('problem-code').textContent") == "microphone_forbidden"
    assert "Allow it in the address bar" in await page.run("document.getElementById('problem-text').textContent")
    assert await page.run("document.getElementById('talk-state').textContent") == "Waits for your message"
    await page.run(PROBE.read_text(), gesture=True)
    idle = await watch(page, 30)
    assert await page.run(f"{FIRST}.querySelector('.words').textContent") == "Hello! What would you like to talk about?"

    await permit(page, talking, microphone=True)
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
    assert await agree(page, talking) == [
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
    page: Page, talking: Stack, fake: FakeModels
) -> None:
    fake.replies = [LONG, "Very well.", LONG, "I am here."]
    await start(page, talking, microphone=False)
    await write(page, "Tell me a story.")
    await page.until(f"{STATE} === 'speaking'")
    await page.until(
        "document.querySelector('#growing .assistant .words')?.textContent.split(' ').length > 4"
    )  # as the words come
    await page.until("document.getElementById('captions-text').textContent.includes('And then')")
    await write(page, "Stop, please.")
    await page.until(f"{REPLIES} === 2")
    lines = await agree(page, talking)
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
    reply, cut = (await agree(page, talking))[-1][1:]
    assert cut and LONG.startswith(reply) and len(reply) < len(LONG)

    await page.run(f"""globalThis.states = [], new MutationObserver(() => states.push({STATE})).observe(
      document.getElementById('conversation'), {{attributes: true, attributeFilter: ['data-state']}}), null""")
    await asyncio.to_thread(kill_worker, talking)
    await page.until("states.includes('away')")
    await write(page, "And now?")
    await page.until(f"{REPLIES} === 4")
    assert [text for _, text, _ in (await page.run(LINES))[-3:]] == [reply, "And now?", "I am here."]
    assert await page.run(LIVE)
    clean(page)


async def test_the_microphone_is_muted_and_pushed_by_keys_and_given_back_with_the_session(
    page: Page, talking: Stack, fake: FakeModels
) -> None:
    await start(page, talking)
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
    await asyncio.to_thread(talking.post, f"/session/{session}/stop")
    await page.until("document.body.dataset.phase === 'ready'")
    assert await given_back(page)
    await the_choice_of_push_to_talk_stays(page, talking)
    clean(page)


async def the_choice_of_push_to_talk_stays(page: Page, talking: Stack) -> None:
    await page.open(f"{talking.url}/")
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
    page: Page, talking: Stack, fake: FakeModels
) -> None:
    fake.replies = [LONG]
    await page.size(360, 740, scale=2)
    await permit(page, talking, microphone=True)
    await page.open(f"{talking.url}/")
    await fits(page)
    await page.click("#start-talk")
    await page.until(LIVE)
    sessions = (await asyncio.to_thread(talking.get, "/sessions")).json()["sessions"]
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
    await stopped(talking, session)
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


async def test_a_page_without_a_key_sees_the_words_and_writes(page: Page, talking: Stack, fake: FakeModels) -> None:
    fake.replies = ["I have read it."]
    body: dict[str, object] = {"room": "keyless", "engine": "pattern", "conversation": {}}
    started = (await asyncio.to_thread(talking.post, "/session/start", body)).json()
    await page.serve(f"{talking.url}/keyless.html", "<video playsinline></video>")
    await page.open(f"{talking.url}/keyless.html")
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
    page: Page, talking: Stack, fake: FakeModels
) -> None:
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=CUT)
    await start(page, talking)
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
    await agree(page, talking)


def kill_worker(stack: Stack) -> None:
    """-9, to the conversation worker of this demo alone."""
    (worker,) = (
        child
        for child in psutil.Process(stack.pid).children(recursive=True)
        if "orchestrator.conversation.worker" in child.cmdline()
    )
    worker.kill()
