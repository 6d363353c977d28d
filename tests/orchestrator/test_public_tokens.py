"""What a public token counts, and that it counts right however many use it at once, at several orchestrators."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.public_tokens import GRANT_BYTES, HOLD_S, RETAIN_S, SLICE_S, PublicGrant, PublicTokens, Usage, new_id
from orchestrator.store.session_store import MAX_RECORD
from tests.fakes.memory_store import MemoryStore
from tests.virtual_loop import EPOCH_S, passes, virtually

NOW = 1000.0


def grant(**fields: object) -> PublicGrant:
    known: dict[str, object] = {
        "token_id": new_id(),
        "key": "shop",
        "origins": ("https://shop.example",),
        "created_at": NOW,
        "expires_at": EPOCH_S + 3600,
        "minutes": 1,
        "sessions": 2,
        "starts_per_minute": 100,
        "sealed": "…",
    }
    return PublicGrant.model_validate(known | fields)


def code(caught: pytest.ExceptionInfo[ProblemError]) -> str:
    return caught.value.code.value


def test_places_are_given_out_and_taken_back() -> None:
    held = grant()
    held.reserve("a", NOW, 60)
    held.reserve("b", NOW, 60)
    before = held.model_copy(deep=True)
    with pytest.raises(ProblemError) as caught:
        held.reserve("c", NOW + 59, 60)
    assert (code(caught), caught.value.status, caught.value.limit) == ("quota_exceeded", 429, 2)
    assert held == before
    held.release("a", NOW + 59)
    held.reserve("c", NOW + 59, 60)
    held.reserve("d", NOW + 61, 60)  # b has never begun, and its time is over
    assert sorted(held.used.places) == ["c", "d"] and held.used.seconds == 0


def test_starts_are_counted_by_the_minute() -> None:
    held = grant(sessions=100, starts_per_minute=2)
    for name in "ab":
        held.reserve(name, NOW, 60)
    with pytest.raises(ProblemError) as caught:
        held.reserve("c", NOW, 60)
    assert (code(caught), caught.value.limit, caught.value.retry_after_s) == ("rate_limited", 2, 30)
    with pytest.raises(ProblemError):
        held.reserve("c", NOW + 29.9, 60)
    held.reserve("c", NOW + 30, 60)
    assert held.used.starts == 3


def test_time_is_paid_in_advance_and_what_is_left_given_back() -> None:
    held = grant()
    held.reserve("a", NOW, 180)
    assert held.pay("a", 20, NOW + 5) == 20 and held.used.seconds == 20  # the start itself costs nothing
    assert held.pay("a", 20, NOW + 23) == 20 and held.used.seconds == 38
    held.release("a", NOW + 30)
    held.release("a", NOW + 30)
    assert held.used.seconds == pytest.approx(25) and held.used.places == {}


def test_when_the_minutes_are_used_up_the_rest_is_all_there_is() -> None:
    held = grant()
    for name in "ab":
        held.reserve(name, NOW, 60)
        assert held.pay(name, 20, NOW) == 20
    assert held.pay("a", 20, NOW + 20) == 20
    assert held.pay("b", 20, NOW + 20) == 0 and held.used.seconds == 60
    held.release("b", NOW + 20)
    with pytest.raises(ProblemError) as caught:
        held.reserve("c", NOW + 20, 60)
    assert (code(caught), caught.value.status) == ("minutes_exhausted", 403)


def test_who_could_not_pay_for_a_while_owes_it() -> None:
    held = grant()
    held.pay("a", 20, NOW)
    assert held.pay("a", 20, NOW + 35) == 20 and held.used.seconds == 55
    assert held.pay("a", 20, NOW + 70) == -10 and held.used.seconds == 60


def test_however_it_goes_no_token_gives_more_than_its_minutes() -> None:
    for seed in range(200):
        chance, held, now = random.Random(seed), grant(sessions=3), NOW
        running: dict[str, tuple[float, float]] = {}
        spent = 0.0
        for step in range(60):
            now += chance.uniform(0, 9)
            for name, (begun, reaches) in list(running.items()):
                if now >= reaches or chance.random() < 0.2:  # its end: by itself, or stopped
                    held.release(name, now)
                    spent += min(now, reaches) - begun
                    del running[name]
                elif now > reaches - 10:
                    running[name] = begun, now + held.pay(name, SLICE_S, now)
            if len(running) < 3 and held.seconds_left >= 1:
                held.reserve(str(step), now, 60)
                running[str(step)] = now, now + held.pay(str(step), SLICE_S, now)
        assert spent <= 60 + 1e-6 and held.used.seconds <= 60 + 1e-6, seed


async def minted(tokens: PublicTokens, **fields: object) -> tuple[str, PublicGrant]:
    made = grant(**fields)
    return await tokens.mint(made), made


@virtually
async def test_a_token_is_ours_to_the_last_letter() -> None:
    tokens = PublicTokens(MemoryStore(), "secret", time.time)
    token, made = await minted(tokens)
    assert tokens.token_id(token) == made.token_id and await tokens.find(made.token_id) == made
    assert (
        PublicTokens(MemoryStore(), "secret", time.time).token_id(token) == made.token_id
    )  # at any orchestrator of the deployment
    assert PublicTokens(MemoryStore(), "other").token_id(token) is None
    for at in range(len(token)):
        changed = token[:at] + ("a" if token[at] != "a" else "b") + token[at + 1 :]
        assert tokens.token_id(changed) is None
    for wrong in ("", "mtp_", token[:-1], token + "a", token + "\n", f"mtp_{made.token_id}", "é" * 40):
        assert tokens.token_id(wrong) is None


@virtually
async def test_a_forged_token_is_refused_without_asking_the_store() -> None:
    store = MemoryStore()
    tokens = PublicTokens(store, "secret", time.time)
    assert tokens.token_id("mtp_" + "0" * 32 + "A" * 43) is None and store.calls == []


@virtually
async def test_starts_at_once_at_two_orchestrators_do_not_pass_the_limit() -> None:
    store = MemoryStore(delay_s=0.01)
    here, there = PublicTokens(store, "secret", time.time), PublicTokens(store, "secret", time.time)
    _, made = await minted(here, sessions=5)

    async def start(tokens: PublicTokens, number: int) -> str:
        try:
            await tokens.reserve(made.token_id, f"room-{number}", 60)
        except ProblemError as error:
            return error.code.value
        return "ok"

    got = await asyncio.gather(*(start((here, there)[n % 2], n) for n in range(20)))
    assert sorted(got) == ["ok"] * 5 + ["quota_exceeded"] * 15
    known = await there.find(made.token_id)
    assert len(known.used.places) == 5 and known.used.starts == 5


@virtually
async def test_payments_at_once_at_two_orchestrators_are_all_counted() -> None:
    store = MemoryStore(delay_s=0.01)
    here, there = PublicTokens(store, "secret", time.time), PublicTokens(store, "secret", time.time)
    _, made = await minted(here, minutes=2)
    paid = await asyncio.gather(*((here, there)[n % 2].pay(made.token_id, f"room-{n}", SLICE_S) for n in range(10)))
    assert sum(each or 0 for each in paid) == pytest.approx(120, abs=0.5)
    assert (await here.find(made.token_id)).used.seconds == 120


@virtually
async def test_what_is_revoked_is_refused_and_pays_no_more() -> None:
    tokens = PublicTokens(MemoryStore(), "secret", time.time)
    _, made = await minted(tokens)
    await tokens.reserve(made.token_id, "a", 60)
    assert await tokens.revoke(made.token_id) is not None
    for call in (tokens.find(made.token_id), tokens.reserve(made.token_id, "b", 60)):
        with pytest.raises(ProblemError) as caught:
            await call
        assert code(caught) == "unauthorized" and "revoked" in caught.value.detail
    assert await tokens.pay(made.token_id, "a", 20) is None
    assert await tokens.revoke(new_id()) is None


@virtually
async def test_an_origin_is_known_as_long_as_a_token_names_it() -> None:
    store = MemoryStore()
    tokens = PublicTokens(store, "secret", time.time)
    await minted(tokens, expires_at=EPOCH_S - RETAIN_S + 600)
    await minted(tokens, expires_at=EPOCH_S - RETAIN_S + 60)
    assert await tokens.knows_origin("https://shop.example")
    assert not await tokens.knows_origin("https://shop.example:443")
    await asyncio.sleep(599)
    assert await tokens.knows_origin("https://shop.example")
    await asyncio.sleep(2)
    assert not await tokens.knows_origin("https://shop.example")


@virtually
async def test_an_origin_that_another_orchestrator_notes_meanwhile_is_known_as_long_as_the_longer_token() -> None:
    class Contended(MemoryStore):
        """Another orchestrator writes a longer time between this one's look and its change."""

        async def swap_document(self, key: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
            if new.isdigit() and old is None:
                await super().swap_document(key, old, b"%d" % (int(new) + 60), keep_s + 60)
            return await super().swap_document(key, old, new, keep_s)

    tokens = PublicTokens(Contended(), "secret", time.time)
    await minted(tokens, expires_at=EPOCH_S - RETAIN_S + 60)
    await passes(110)
    assert await tokens.knows_origin("https://shop.example")
    await passes(20)
    assert not await tokens.knows_origin("https://shop.example")


@virtually
async def test_a_store_that_fails_is_said_so() -> None:
    store = MemoryStore()
    tokens = PublicTokens(store, "secret", time.time)
    _, made = await minted(tokens)
    store.failing = True
    for call in (tokens.find(made.token_id), tokens.knows_origin("x"), tokens.pay(made.token_id, "a", 20)):
        with pytest.raises(ProblemError) as caught:
            await call
        assert code(caught) == "store_unavailable" and caught.value.retry_after_s is not None


def test_a_place_is_kept_longer_than_its_owner_may_be_silent() -> None:
    held = grant()
    held.pay("a", SLICE_S, NOW)
    assert held.used.places["a"].until == NOW + SLICE_S + HOLD_S


@virtually
async def test_a_grant_that_the_store_could_not_give_back_is_not_made() -> None:
    store = MemoryStore()
    tokens = PublicTokens(store, "secret", time.time)
    with pytest.raises(ProblemError) as caught:
        await minted(tokens, sealed="x" * GRANT_BYTES)
    assert code(caught) == "invalid_request" and store.documents == {}
    running = {f"public-{n:022}": {"until": EPOCH_S + 10, "paid_until": EPOCH_S + 5} for n in range(1000)}
    most = grant(sealed="x" * (GRANT_BYTES - 1000), sessions=1000)
    await tokens.mint(most)
    most.used = Usage.model_validate({"places": running})
    assert len(most.model_dump_json()) < MAX_RECORD
