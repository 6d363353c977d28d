"""The page's language: the browser's at first, then the one that was chosen."""

from __future__ import annotations

import pytest

from tests.browser.chromium import Page

pytestmark = [pytest.mark.browser]

SHOWN = """({
  language: document.documentElement.lang,
  title: document.title,
  start: document.getElementById('start').textContent,
  status: document.getElementById('status').textContent,
  hint: document.getElementById('text').placeholder,
  captions: document.getElementById('captions-toggle').getAttribute('aria-label'),
})"""
ENGLISH = {
    "language": "en",
    "title": "Talking avatar",
    "start": "Say",
    "status": "Press Talk or Say to meet the avatar.",
    "hint": "Type something and press Enter",
    "captions": "Captions",
}
CHINESE = {
    "language": "zh-CN",
    "title": "会说话的数字人",
    "start": "复述",
    "status": "点击“对话”或“复述”，与数字人见面。",
    "hint": "输入文字，按回车键发送",
    "captions": "字幕",
}


async def prefer(page: Page, languages: str) -> None:
    """The browser asks for these, as its user would set them."""
    agent = await page.run("navigator.userAgent")
    await page.send("Network.setUserAgentOverride", userAgent=agent, acceptLanguage=languages)


async def test_the_browsers_language_is_shown(unseen_page: Page, web: str) -> None:
    page = unseen_page
    for languages, expected in (("zh-CN,zh,en", CHINESE), ("zh-TW", CHINESE), ("en-GB,zh", ENGLISH), ("de", ENGLISH)):
        await prefer(page, languages)
        await page.open(f"{web}/index.html?{languages}")
        assert await page.run(SHOWN) == expected, languages
    assert [error for error in page.errors if "page/token" not in error] == []  # files are all that this server has


async def test_a_choice_is_kept(page: Page, web: str) -> None:
    await page.size(1280, 800)
    await page.open(f"{web}/index.html")
    assert await page.run(SHOWN) == ENGLISH
    await page.click("#language")
    assert await page.run(SHOWN) == CHINESE
    await page.open(f"{web}/index.html?again")
    assert await page.run(SHOWN) == CHINESE
    await page.click("#language")
    assert await page.run(SHOWN) == ENGLISH
    await page.open(f"{web}/index.html")
    assert await page.run(SHOWN) == ENGLISH


async def test_an_error_is_in_the_pages_language(page: Page, web: str) -> None:
    await page.size(390, 844)
    await prefer(page, "zh-CN")
    await page.open(f"{web}/index.html")
    await page.click("#add-avatar")
    await page.click("input[value=url]")
    await page.click("#add-go")
    await page.until("!document.getElementById('add-problem').hidden")
    problem = await page.run("document.querySelector('#add-problem p').textContent")
    assert problem == "请输入人脸素材的网址，以 http:// 或 https:// 开头。"
    await page.key("Escape")
    await page.click("#start")
    await page.until("document.getElementById('key-dialog').open")
    await page.key("Escape")
    await page.until("!document.getElementById('problem').hidden")
    assert await page.run("document.getElementById('problem-text').textContent") == "此服务器需要 API 密钥。"
    assert await page.run("document.getElementById('status').textContent") == "启动失败。点击“对话”或“复述”重新开始。"
    assert await page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
