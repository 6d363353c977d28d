"""Words that say "go on" and no more: saying them while the avatar speaks does not interrupt it."""

from __future__ import annotations

import re

_ANY = frozenset("m mm mmm mhm mmhm mmhmm mhmm hm hmm hmmm uhhuh aha ah oh uh um huh mh".split())
_BY_LANGUAGE = {
    "en": frozenset("yeah yes yep yup ok okay right sure cool wow nice great good really i see got it".split()),
    "de": frozenset("ja jaja jo genau ok okay gut klar stimmt richtig ach so aha echt wirklich".split()),
    "fr": frozenset("oui ouais ok okay bien bon d'accord voilà exactement ah vraiment".split()),
    "es": frozenset("sí si ya vale ok okay claro bien bueno ajá exacto".split()),
    "it": frozenset("sì si ok okay bene certo giusto esatto vero".split()),
    "pt": frozenset("sim ok okay bem certo claro exato pois tá".split()),
    "nl": frozenset("ja ok okay goed precies klopt juist inderdaad".split()),
}
WORDS_MAX = 3
"""More words than these are a turn, whatever they are."""
_NOISE = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]*\*|♪")
"""How recognisers write what is not speech: `[COUGH]`, `(coughing)`, `*sigh*`."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def spoken(text: str) -> str:
    """The text without marks of noise; empty where nothing was said."""
    kept = _NOISE.sub(" ", text).strip()
    return kept if re.search(r"\w", kept) else ""


def is_backchannel(text: str, language: str) -> bool:
    """`text` is "mhm", "yeah, ok" and the like, or nothing at all. `language` is BCP 47."""
    joined = re.sub(r"(?<=\w)-(?=\w)", "", spoken(text).lower().replace("’", "'"))
    words = _WORD.findall(joined)
    known = _ANY | _BY_LANGUAGE.get(language.split("-")[0].lower(), _BY_LANGUAGE["en"])
    return len(words) <= WORDS_MAX and all(word in known for word in words) and not re.search(r"\d", joined)
