"""Short notes and letters: open-ended text with real entropy, to measure the speed-up where many continuations fit.

Frozen: any change needs a new `corpus.GENERATOR_VERSION`.
"""

import random

from .words import DAYS, FEMALE_NAMES, MALE_NAMES, MONTHS

_FILL = {
    "adj": [
        "lovely",
        "quiet",
        "strange",
        "wonderful",
        "long",
        "busy",
        "simple",
        "bright",
        "cold",
        "warm",
        "funny",
        "peaceful",
        "odd",
        "happy",
        "grey",
    ],
    "place": [
        "lake",
        "old town",
        "market",
        "station",
        "museum",
        "beach",
        "forest",
        "harbor",
        "castle",
        "village",
        "park",
        "cafe",
        "theater",
        "school",
    ],
    "food": [
        "soup",
        "fresh bread",
        "pancakes",
        "apple cake",
        "noodles",
        "grilled fish",
        "salad",
        "cheese",
        "honey",
        "plum jam",
        "roast potatoes",
    ],
    "relative": [
        "brother",
        "sister",
        "mother",
        "father",
        "uncle",
        "aunt",
        "cousin",
        "grandmother",
        "grandfather",
        "neighbor",
        "teacher",
        "dog",
    ],
    "object": [
        "bicycle",
        "kite",
        "lamp",
        "piano",
        "camera",
        "boat",
        "table",
        "clock",
        "radio",
        "guitar",
        "tent",
        "jacket",
        "notebook",
    ],
    "feel": ["glad", "a little tired", "very happy", "curious", "proud", "surprised", "calm", "excited", "hopeful"],
    "time": [
        "yesterday",
        "last week",
        "this morning",
        "on {day}",
        "in {month}",
        "two days ago",
        "in the evening",
        "after lunch",
    ],
    "plan": [
        "visit you",
        "paint the kitchen",
        "learn to swim",
        "read more",
        "plant a tree",
        "take the night train",
        "cook together",
        "write a song",
        "fix the roof",
    ],
    "day": DAYS,
    "month": MONTHS,
}
_OPENINGS = (
    "I hope you are well.",
    "Thank you for your last letter.",
    "How are you?",
    "It has been a long time.",
    "I have some news for you.",
    "I was so {feel} to hear from you.",
    "I am writing from the {place}.",
)
_TOPICS: dict[str, tuple[str, ...]] = {
    "a trip": (
        "We went to the {place} {time}.", "The road to the {place} was {adj}.", "My {relative} forgot the {object} at the {place}.",
        "From the {place} you can see the {place2}.", "It was {adj} and a bit {adj2}.", "We slept in a {adj} house near the {place}.",
    ),
    "the garden": (
        "The roses are {adj} this year.", "My {relative} built a {adj} bench.", "{Time} the rain came at last.",
        "We found a {object} under the old tree.", "The birds are {adj} in the morning.", "I planted herbs next to the {object}.",
    ),
    "the kitchen": (
        "I made {food} {time}.", "The {food} tasted of {food2}.", "My {relative} burned the {food}.", "We ate {food} and {food2} on the floor.",
        "The recipe is from my {relative}.", "The whole house smells of {food}.",
    ),
    "work": (
        "The office is {adj} since {month}.", "My desk stands next to the {object}.", "{Time} we had a {adj} meeting about the {object}.",
        "The new colleague likes {food}.", "I feel {feel} about the new task.", "They sent me to the {place} {time}.",
    ),
    "a party": (
        "The party is on {day} at the {place}.", "Bring your {object} and some {food}.", "My {relative} will sing a {adj} song.",
        "There will be {food} for everyone.", "Last year it was {adj}.", "Tell your {relative} to come too.",
    ),
    "music": (
        "I bought a {object} {time}.", "The concert at the {place} was {adj}.", "My {relative} plays better than I do.",
        "We practice every {day}.", "The song is {adj} and {adj2}.", "I was {feel} after the concert.",
    ),
}  # fmt: skip
_GENERAL = (
    "I want to {plan} soon.",
    "My {relative} says hello.",
    "Do you still have the {object}?",
    "I feel {feel} today.",
    "The weather is {adj}.",
    "Maybe we can {plan} in {month}.",
    "I often think of the {place}.",
)
_CLOSINGS = ("Yours,", "Love,", "Best wishes,", "See you soon,", "With a hug,", "Take care,")
TOPICS = tuple(_TOPICS)


def _fill(rng: random.Random, template: str) -> str:
    values = {key: rng.choice(options) for key, options in _FILL.items()}
    values["place2"] = rng.choice([p for p in _FILL["place"] if p != values["place"]])
    values["food2"] = rng.choice([f for f in _FILL["food"] if f != values["food"]])
    values["adj2"] = rng.choice([a for a in _FILL["adj"] if a != values["adj"]])
    values["time"] = values["time"].format(day=values["day"], month=values["month"])
    values["Time"] = values["time"][0].upper() + values["time"][1:]
    return template.format(**values)


def make_letter(rng: random.Random) -> tuple[str, str]:
    """(prompt, letter)."""
    sender, receiver = rng.sample(FEMALE_NAMES + MALE_NAMES, 2)
    topic = rng.choice(TOPICS)
    form = rng.choice(("short letter", "letter", "note"))
    body = rng.sample(_TOPICS[topic], rng.randint(2, 4)) + rng.sample(_GENERAL, rng.randint(1, 2))
    if rng.random() < 0.5:
        rng.shuffle(body)
    lines = [_fill(rng, t) for t in body]
    if form != "note":
        lines.insert(0, _fill(rng, rng.choice(_OPENINGS)))
    prompt = f"Write a {form} from {sender} to {receiver} about {topic}."
    return prompt, f"Dear {receiver},\n{' '.join(lines)}\n{rng.choice(_CLOSINGS)}\n{sender}"
