# ruff: noqa: E501  (lists of sentences)
"""Sentences to speak: varied English, rich in lip sounds, GRID-like commands, and some other languages' own sentences."""

from __future__ import annotations

import random

_SUBJECTS = (
    "my mother|the happy puppy|a famous baker|bob and pam|the mayor of memphis|five brave farmers|our old boss|the weather|"
    "every member of the family|the big brown bear|a young woman|the phone company|my best friend|the purple balloon|"
    "nobody|the beautiful museum|a very funny movie|the first bus|whoever came by|the river|your favourite uncle|the captain|"
    "those two boys|the voice in the room|an elephant|the shop on the corner|the chef|a yellow umbrella|the final report"
).split("|")
_VERBS = (
    "bought|pushed|moved|found|made up|broke|will remember|wants to improve|carried|never forgot|puts|is looking for|"
    "has just opened|could have missed|jumped over|was afraid of|laughed about|asked for|gave away|is full of|prefers|"
    "would love to have|cannot believe|dropped|watched|showed me|usually chooses|described|keeps|threw"
).split("|")
_OBJECTS = (
    "a pair of blue boots|the map of bavaria|maybe five or six apples|a cup of coffee|all the pumpkins|the other book|"
    "some warm bread and butter|the bathroom mirror|a huge pile of paper|fresh vegetables|too much shampoo|a violin|"
    "the vanilla pudding|an important message|the view from above|a wooden box|my mobile phone|these four problems|"
    "the whole truth|a thousand voices|the garage door|a good question|his own opinion|soup and fish|the empty bottle|"
    "the computer program|a heavy hammer|music for piano|your room number|the measure of things"
).split("|")
_ENDS = (
    "before breakfast|at half past four|by the sea|on a farm near paris|with a smile|for the moment|in the middle of november|"
    "above the old bridge|from time to time|without a problem|because of the rain|in front of everybody|last summer|"
    "while we were asleep|every february|as far as i know|up on the roof|this evening|with both hands|after the show|"
    "between you and me|on wednesday|over there|just for fun|in the afternoon"
).split("|")
_LOOSE = (
    "Hello, how are you?|Good morning, and welcome back.|Oh, I see what you mean.|Peter Piper picked a peck of pickled peppers.|"
    "She sells sea shells by the sea shore.|Please call me back as soon as possible.|Well, that's a very good point.|"
    "I am a face in a room, and I can speak to you.|Whatever happens, we will be fine.|The quick brown fox jumps over the lazy dog.|"
    "Five fine fellows from Vermont have very few fears.|Mum made me a map of the Amazon.|How much wood would a woodchuck chuck?|"
    "Maybe the problem is somewhere above the pump.|You owe me a favour, remember?|Bring the bomb squad up to platform number nine!|"
    "My mama may have many more mumbling mummies.|Pop up, Bob, or be beaten by a baboon.|Who knew the moon could move you too?|"
    "Far, far away, the calm water shone like glass.|See these three green trees.|Ask not what your country can do for you.|"
    "The answer is zero point five percent.|One, two, three, four, five, six, seven, eight, nine, ten.|Above all, love your family.|"
    "Sure, give me a minute and I'll look that up.|Thanks for waiting. Your package will arrive on Friday.|"
    "There are several ways to improve the performance of the pump."
).split("|")
OTHER_LANGUAGES: dict[str, str] = {
    "de": "Guten Morgen, mein Name ist Bob.|Bitte bringen Sie mir fünf frische Brötchen mit Butter.|Das Wetter wird übermorgen besser.|"
    "Wir müssen heute Abend noch einmal darüber sprechen.|Auf der Brücke stehen viele junge Menschen.|Öffne bitte das Fenster!",
    "fr": "Bonjour, je m'appelle Paul.|Nous avons beaucoup mangé au bord de la mer.|Pouvez-vous répéter, s'il vous plaît?|"
    "Mon ami veut acheter une voiture bleue.|Il fait beau, mais le vent est froid.|Une famille heureuse habite ici.",
    "es": "Buenos días, me llamo Pablo.|Por favor, traiga un vaso de agua.|Mi familia vive en una ciudad bonita.|"
    "El problema es que no tenemos tiempo.|Vamos a empezar mañana por la mañana.|Me gusta mucho la música.",
    "it": "Buongiorno, mi chiamo Marco.|Abbiamo bisogno di una mappa più grande.|Vorrei un bicchiere d'acqua, per favore.|"
    "La mamma prepara la pasta con il pomodoro.|Che bella giornata, facciamo una passeggiata.",
    "pt-br": "Bom dia, meu nome é Pedro.|Vamos tomar um café e falar sobre o problema.|A minha família mora perto da praia.",
    "pl": "Dzień dobry, mam na imię Piotr.|Proszę bardzo, poproszę wodę.|Moja babcia mówi powoli.",
    "nl": "Goedemorgen, mijn naam is Bob.|Wij wonen bij een mooie brug.|Mag ik een kopje koffie, alstublieft?",
    "sv": "God morgon, jag heter Pelle.|Vi bor vid ett vackert berg.|Min mamma bakar bröd.",
}


def english(count: int, seed: int) -> list[str]:
    """`count` sentences, the same for the same seed: a third loose or GRID-like, the rest from a grammar."""
    rng = random.Random(seed)
    out: list[str] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.12:
            out.append(grid_like(rng))
        elif kind < 0.25:
            out.append(rng.choice(_LOOSE))
        else:
            parts = [rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_OBJECTS)]
            if rng.random() < 0.6:
                parts.append(rng.choice(_ENDS))
            text = " ".join(parts)
            if rng.random() < 0.25:
                text += rng.choice((", but ", " and ", ", so ", ", while ")) + rng.choice(_SUBJECTS) + " "
                text += rng.choice(_VERBS) + " " + rng.choice(_OBJECTS)
            out.append(text[0].upper() + text[1:] + rng.choice("...?!"))
    return out


def grid_like(rng: random.Random) -> str:
    """A command in the grammar of the GRID corpus: command, colour, preposition, letter, digit, adverb."""
    words = (
        rng.choice("bin lay place set".split()),
        rng.choice("blue green red white".split()),
        rng.choice("at by in with".split()),
        rng.choice("abcdefghijklmnopqrstuvxyz"),
        rng.choice("zero one two three four five six seven eight nine".split()),
        rng.choice("again now please soon".split()),
    )
    return " ".join(words)


def foreign(language: str, count: int, seed: int) -> list[str]:
    """`count` sentences of a language, drawn with repetition."""
    rng = random.Random(f"{language}{seed}")
    return [rng.choice(OTHER_LANGUAGES[language].split("|")) for _ in range(count)]
