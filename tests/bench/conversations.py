"""`python -m tests.bench.conversations`: the wait for an answer, many at once, a worker that is killed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from tests.bench.figures import Figure, percentile
from tests.bench.person import Person, person, speech
from tests.bench.stack import Demo, demo, environment
from tests.fakes import openai_models, openai_speech
from tests.fakes.openai_models import FakeModels
from tests.fakes.openai_speech import FakeOpenAI
from tests.fakes.serving import plain_config, serving
from tests.waiting import until

USER_VOICE = "piper:joe"
QUESTIONS = [
    "What is your name?",
    "How are you today?",
    "Where do you come from?",
    "What can you do for me?",
    "Do you like the sea?",
    "What is the capital of France?",
    "Tell me something nice about dogs.",
    "How do I cook an egg?",
    "What is a good book to read?",
    "Can you sing a song?",
]
ANSWER = "I have heard you, and here is my answer. It has a second sentence, which takes a little longer to say."
MANY = 10
TRANSCRIPT_S, FIRST_WORD_S, FIRST_BYTE_S, WORD_S = 0.15, 0.25, 0.15, 0.02
"""What real providers take: the transcript of a turn, the first word of an answer, its first audio, and between two words."""


async def embedded(turns: int) -> list[Figure]:
    """Everything on this machine, the avatar too."""
    async with demo() as stack, person(stack, watches=False, **_body()) as talking:
        return await _answers("everything embedded", talking, turns, 2.5, 4.0)


async def standins(turns: int) -> list[Figure]:
    """The same with models that take as long as real ones, and are elsewhere."""
    name = "stand-ins of real providers"
    async with _standins() as providers, person(providers.demo, watches=False, **_body(voice="openai:any")) as talking:
        return [*await _answers(name, talking, turns, 1.1, None), *_chain(name, talking, providers)]


async def many(turns: int) -> list[Figure]:
    """Ten conversations at once."""
    words = await speech(QUESTIONS, USER_VOICE)
    async with AsyncExitStack() as exits:
        exits.enter_context(environment(AGENT_MAX_SESSIONS=str(MANY)))
        stack = (await exits.enter_async_context(_standins("--engine", "pattern"))).demo
        before = stack.memory_mb()
        talking: list[Person] = []
        memory: list[dict[str, float]] = []
        for count in (1, MANY):
            while len(talking) < count:
                one = person(stack, watches=False, **_body(voice="openai:any"))
                talking.append(await exits.enter_async_context(one))
                print(f"person {len(talking)} is heard", file=sys.stderr, flush=True)
            await asyncio.gather(*(each.turn(words[0]) for each in talking))  # warms what is still cold
            memory.append(stack.memory_mb())
        used, begun = stack.cpu_s(), time.monotonic()
        rounds = max(1, turns // 5)

        async def talk(who: Person, first: int) -> list[float | None]:
            return [await who.turn(words[(first + number) % len(words)]) for number in range(rounds)]

        answers = [wait for waits in await asyncio.gather(*map(talk, talking, range(MANY))) for wait in waits]
        took_s = time.monotonic() - begun
        cores = {name: (cpu_s - used.get(name, 0.0)) / took_s for name, cpu_s in stack.cpu_s().items()}
        busy = "; ".join(f"{name} {value:.2f}" for name, value in cores.items() if value > 0.005)
        waits = [wait for wait in answers if wait is not None]
        each = {name: (memory[-1][name] - memory[0].get(name, 0.0)) / (MANY - 1) for name in memory[-1]}
        note = "; ".join(f"{name} {value:.1f}" for name, value in each.items() if abs(value) > 0.5)
        whole = sum(memory[-1].values()) - sum(before.values())
        return [
            Figure(
                f"{MANY} conversations at once, {rounds} turns each: without an answer",
                len(answers) - len(waits),
                "",
                0,
            ),
            *_waits(f"{MANY} conversations at once", waits, None, None),
            Figure("memory per conversation after the first one, all processes", sum(each.values()), "MB", note=note),
            Figure(f"memory of {MANY} conversations with their worker", whole, "MB"),
            Figure(f"cores used by the stack while {MANY} talk", sum(cores.values()), "cores", note=busy),
        ]


async def killed(turns: int) -> list[Figure]:
    """The worker is killed in the middle of a reply."""
    words = await speech(QUESTIONS[:2], USER_VOICE)
    back: list[float] = []
    dark: list[float] = []
    kept = 0
    rounds = max(1, turns // 5)
    async with _standins() as providers, person(providers.demo, **_body(voice="openai:any")) as talking:
        await talking.turn(words[0])
        for _ in range(rounds):
            await talking.quiet()
            history = await _messages(talking)
            await talking.say(words[0])
            known = len(talking.of("reply.started"))
            await until(lambda known=known: len(talking.of("reply.started")) > known)
            await asyncio.sleep(0.5)  # in mid-sentence
            at = time.monotonic()
            _worker(providers.demo).kill()
            await until(
                lambda at=at: [
                    e for e in talking.of("conversation.state") if e["at"] > at and e["state"] == "listening"
                ]
            )
            back.append(time.monotonic() - at)
            assert await talking.turn(words[1]) is not None, "no answer after the worker was killed"
            shown = [each[0] for each in talking.viewer.video if each[0] > at - 1]
            dark.append(float(max(np.diff(shown))))
            now = await _messages(talking)
            kept += now[: len(history)] == history and any(each["interrupted"] for each in now[len(history) :])
    return [
        Figure(f"worker killed in mid-sentence: it listens again, longest of {rounds}", max(back), "s", 10.0),
        Figure("longest time without a frame of the avatar meanwhile", max(dark), "s", 1.0),
        Figure("rounds in which the history was kept, with the broken reply", kept, "", rounds, at_least=True),
    ]


BENCHES = {"embedded": embedded, "standins": standins, "many": many, "killed": killed}


@dataclass
class Providers:
    """A stack whose models are stand-ins in this process."""

    demo: Demo
    models: FakeModels
    voice: FakeOpenAI


@asynccontextmanager
async def _standins(*options: str) -> AsyncIterator[Providers]:
    models = FakeModels(replies=[ANSWER], transcript_s=TRANSCRIPT_S, first_word_s=FIRST_WORD_S, word_s=WORD_S)
    voice = FakeOpenAI(first_byte_s=FIRST_BYTE_S, letter_ms=20, tone=True, block_bytes=9600)
    async with serving(plain_config(models.app)) as models_url, serving(plain_config(voice.app)) as voice_url:
        variables = {
            "LLM_BASE_URL": f"{models_url}/v1",
            "LLM_API_KEY": openai_models.KEY,
            "LLM_MODEL": "stand-in",
            "STT_BASE_URL": f"{models_url}/v1",
            "STT_API_KEY": openai_models.KEY,
            "STT_MODEL": "stand-in",
            "OPENAI_API_KEY": openai_speech.KEY,
            "OPENAI_BASE_URL": f"{voice_url}/v1",
        }
        with environment(**variables):
            async with demo(*options) as stack:
                yield Providers(stack, models, voice)


def _body(**conversation: str) -> dict[str, Any]:
    return {"room": f"bench-{uuid.uuid4().hex[:8]}", "avatar_id": "demo", "conversation": conversation}


def _worker(stack: Demo) -> psutil.Process:
    children = psutil.Process(stack.process.pid).children(recursive=True)
    return next(each for each in children if "orchestrator.conversation.worker" in each.cmdline())


async def _messages(talking: Person) -> list[dict[str, Any]]:
    answer = await talking.demo.http.get(f"/session/{talking.started['session_id']}/messages")
    messages: list[dict[str, Any]] = answer.json()["messages"]
    return messages


async def _answers(name: str, talking: Person, turns: int, median_s: float, p90_s: float | None) -> list[Figure]:
    words = await speech(QUESTIONS, USER_VOICE)
    await talking.turn(words[0])  # warms what is still cold
    answers: list[float | None] = []
    for number in range(turns):
        answers.append(await talking.turn(words[number % len(words)]))
        print(f"turn {number + 1}: {answers[-1]}", file=sys.stderr)
    waits = [wait for wait in answers if wait is not None]
    parts: dict[str, list[float]] = {}
    for event in talking.of("turn")[1:]:
        for part, value in event["data"].items():
            parts.setdefault(part, []).append(float(value))
    medians = {part: float(np.median(values)) for part, values in parts.items()}
    rest = 1000 * float(np.median(waits)) - sum(medians.values()) if waits else 0.0
    holes = talking.holes()
    worst = f"longest {max(holes, default=0):.2f}, {len(holes)} answers"
    return [
        *_waits(name, waits, median_s, p90_s),
        *(Figure(f"{name}: of it {part.removesuffix('_ms')}, median", value, "ms") for part, value in medians.items()),
        Figure(
            f"{name}: of it the room and the avatar (the rest; model and voice begin before the turn is over)",
            rest,
            "ms",
        ),
        *(
            Figure(f"{name}: end of the question to {kind}, median", 1000 * float(np.median(marks)), "ms")
            for kind, marks in talking.marks.items()
        ),
        Figure(f"{name}: turns without an answer, or one before the question's end", turns - len(waits), "", 0),
        Figure(f"{name}: longest silence within an answer, median", percentile(holes, 50), "s", note=worst),
    ]


def _chain(name: str, talking: Person, providers: Providers) -> list[Figure]:
    """When each link of the chain was reached, after the end of the question: what counted is the last before the first sound, but
    of the voice the first after the model's first word."""
    models, voice = providers.models, providers.voice
    first = {"voice asked": voice.asked_at, "voice first byte": voice.first_bytes}
    links: dict[str, list[float]] = {}
    for ended, sounded in talking.turns[1:]:
        times = {what: at for what, at in models.marks if ended - 0.5 < at < sounded}
        times |= {
            what: next((at for at in reached if at > times.get("llm first word", ended)), sounded)
            for what, reached in first.items()
        }
        decided = [e["at"] for e in talking.of("conversation.state") if e["state"] == "thinking"]
        times["end of turn decided"] = next((at for at in decided if ended < at < sounded), sounded)
        for what, at in times.items():
            links.setdefault(what, []).append(1000 * (at - ended))
    medians = {what: float(np.median(reached)) for what, reached in links.items()}
    return [
        Figure(f"{name}: end of the question to {what}, median", at, "ms")
        for what, at in sorted(medians.items(), key=lambda each: each[1])
    ]


def _waits(name: str, waits: list[float], median_s: float | None, p90_s: float | None) -> list[Figure]:
    name += ": end of the question to the answer's first sound at a viewer"
    note = f"shortest {min(waits, default=0):.2f}, longest {max(waits, default=0):.2f}, {len(waits)} turns"
    return [
        Figure(f"{name}, median", percentile(waits, 50), "s", median_s, note=note),
        Figure(f"{name}, p90", percentile(waits, 90), "s", p90_s),
    ]


def main() -> int:
    """Prints one JSON line a figure."""
    parser = argparse.ArgumentParser(prog="bench.conversations", description=__doc__)
    parser.add_argument("--only", default="", help=f"names separated by commas: {', '.join(BENCHES)}")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    for name in [n for n in options.only.split(",") if n] or BENCHES:
        for figure in asyncio.run(BENCHES[name](options.turns)):
            print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
