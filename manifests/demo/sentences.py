"""English sentences from an embedded word list and clause templates, with a given number of words, from a seeded
generator. Written for this project: they are grammatical without meaning, and cover every English phoneme."""

import re

import numpy as np

WORDS = {
    "person": """teacher farmer doctor sailor painter lawyer baker singer driver neighbour judge soldier child uncle
        mother father brother sister cousin nurse pilot waiter poet actor captain stranger hunter miller jeweller
        tailor shepherd engineer librarian musician gardener""",
    "thing": """house river bottle garden window letter basket mirror candle blanket hammer ladder picture pocket
        treasure ship engine bicycle umbrella ring coin book chair table carpet feather bridge wheel kettle guitar
        violin clock camera jacket shoe bowl spoon knife rope flag map drum tower barrel cheese orange apple onion
        sausage pudding sugar butter soup bread biscuit berry mushroom rabbit horse donkey goose sheep tiger elephant
        monkey zebra beetle butterfly whale fish pigeon thrush spider puzzle vision measure journey machine youth
        cure tour choice joy noise oyster thumb leather weather thief tooth mouth cloth path bath breath""",
    "adjective": """old young bright heavy narrow quiet gentle broken hollow yellow purple golden silver wooden curious
        strange pleasant useful careful ugly tiny huge thick thin smooth rough warm cold sour sweet bitter clever
        foolish proud humble empty crowded dusty shiny muddy frozen loud silent distant foreign royal annoyed usual
        pure rare square weird thirsty earthy leisurely""",
    "verb": """carried watched measured painted followed noticed polished counted covered forgot remembered repaired
        borrowed delivered discovered gathered imagined joined lifted opened pushed pulled searched touched washed
        wanted admired avoided bought brought caught chose drew found held kept lost made moved owned praised reached
        saw sold shared showed threw took wrapped enjoyed destroyed allowed heard""",
    "intransitive": """laughed waited shouted whispered listened worked smiled slept sneezed coughed danced jumped
        travelled arrived vanished returned wondered hurried stumbled sighed yawned argued agreed swam paused""",
    "adverb": """slowly quickly quietly gladly usually rarely often carefully suddenly finally bravely calmly eagerly
        loudly softly together again early later twice already cheerfully""",
    "place": """river station harbour market village kitchen forest mountain valley castle church school theatre office
        library bakery beach island desert field meadow railway corner cellar attic garage palace street shore""",
    "preposition": """near behind beside above below under inside outside beyond across around through towards
        against""",
    "time": """yesterday tonight tomorrow | in the morning | before noon | after the show | last Thursday | on Friday
        | every winter | in July | at the same hour | for a year | around midnight | once a month""",
    "name": """Arthur Beatrice Charlotte David Edith Felix George Hannah Isaac Joyce Kevin Laura Matthew Nora Oliver
        Paul Ruth Sarah Thomas Ursula Victor Walter Yvonne Zoe""",
    "number": "two three four five six seven eight nine ten eleven twelve thirteen twenty thirty forty fifty sixty",
    "determiner": "the the the a this that every another each her his our their my your",
    "join": "and but because while so although when",
}
TEMPLATES = """
    determiner person verb determiner adjective thing
    name verb determiner thing preposition the place
    determiner adjective person adverb verb determiner thing
    name and name intransitive adverb preposition determiner adjective place
    the number adjective person+s verb determiner thing
    there was a adjective thing preposition the place
    time determiner person intransitive preposition the adjective place
    could you see number thing+s and a adjective thing
    we never verb such a adjective thing
    determiner thing was adjective and adjective
    name said that determiner person verb number thing+s time
    do not touch determiner adjective thing
    it is number miles from the place to the place
    they adverb verb us
    I hope you verb it time
"""
_LISTS = {
    kind: [" ".join(item.split()) for item in text.split("|")] if "|" in text else text.split()
    for kind, text in WORDS.items()
}
_LISTS["time"][:1] = _LISTS["time"][0].split()
_TEMPLATES = [line.split() for line in TEMPLATES.strip().splitlines()]


def make_sentence(rng: np.random.Generator, num_words: int) -> str:
    """Join clauses until about ``num_words`` words are reached (the last clause may exceed it by a few).

    Args:
        rng: source of all choices.
        num_words: least number of words.

    Returns:
        One sentence with a capital, commas between clauses and a full stop or a question mark.
    """
    clauses = [_clause(rng)]
    while sum(len(clause.split()) for clause in clauses) < num_words:
        clauses.append(f"{rng.choice(_LISTS['join'])} {_clause(rng)}")
    sentence = ", ".join(clauses)
    stop = "?" if sentence.startswith("could") else "."
    return sentence[0].upper() + sentence[1:] + stop


def transcript(sentence: str) -> str:
    """Return the sentence in LibriSpeech's form: capital letters and spaces only."""
    return " ".join(re.sub(r"[^A-Z' ]", " ", sentence.upper()).split())


def _clause(rng: np.random.Generator) -> str:
    words = []
    for slot in _TEMPLATES[rng.integers(len(_TEMPLATES))]:
        kind, _, ending = slot.partition("+")
        word = str(rng.choice(_LISTS[kind])) if kind in _LISTS else kind
        words.append(_plural(word) if ending else word)
    text = " ".join(words)
    return re.sub(r"\ba (?=[aeio]|u(?!s))", "an ", text)


def _plural(noun: str) -> str:
    irregular = {"sheep": "sheep", "fish": "fish", "child": "children", "goose": "geese", "knife": "knives",
                 "thief": "thieves", "tooth": "teeth"}  # fmt: skip
    if noun in irregular:
        return irregular[noun]
    if re.search(r"(s|x|ch|sh)$", noun):
        return noun + "es"
    return re.sub(r"([^aeiou])y$", r"\1ie", noun) + "s"
