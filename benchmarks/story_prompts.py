"""Openings of children's stories, one JSON prompt a line: `python -m benchmarks.story_prompts --number 2000 > prompts.jsonl`.

They are for models that can only continue stories, such as stories260K. The splits "train" and "test" share no prompt.
"""

import argparse
import json
import random
from collections.abc import Iterator

NAMES = [
    "Lily",
    "Tom",
    "Ben",
    "Mia",
    "Sam",
    "Anna",
    "Max",
    "Sara",
    "Tim",
    "Lucy",
    "Jack",
    "Emma",
    "Leo",
    "Amy",
    "Bob",
    "Zoe",
    "Dan",
    "Ella",
    "Sue",
    "Fred",
    "Jane",
    "Kim",
    "Nina",
    "Jim",
]
HEROES = [
    "girl",
    "boy",
    "cat",
    "dog",
    "bird",
    "bear",
    "rabbit",
    "fish",
    "mouse",
    "duck",
    "frog",
    "lion",
    "fox",
    "bee",
    "horse",
    "pig",
]
QUALITIES = ["little", "happy", "kind", "brave", "small", "curious", "shy", "clever", "sad", "funny", "big", "lazy"]
PLACES = ["park", "forest", "garden", "house", "beach", "lake", "river", "farm", "school", "kitchen", "yard", "field"]
THINGS = [
    "ball",
    "toy",
    "hat",
    "book",
    "box",
    "cake",
    "flower",
    "stone",
    "boat",
    "doll",
    "kite",
    "key",
    "car",
    "drum",
    "shell",
    "bag",
]
WISHES = [
    "play outside",
    "sing",
    "run",
    "eat apples",
    "help others",
    "draw",
    "jump",
    "find new things",
    "swim",
    "dance",
]
OPENINGS = (
    "Once upon a time, there was a {quality} {hero} named {name}.",
    "One day, {name} went to the {place} with a {thing}.",
    "{name} was a {quality} {hero}. {name} liked to {wish}.",
    "Once upon a time, a {quality} {hero} lived near the {place}.",
    "One day, a {quality} {hero} found a {thing} in the {place}.",
    "{name} and {other} were friends. They liked to {wish} in the {place}.",
    "{name} had a {thing}. It was very {quality}.",
    "There was a {hero} who wanted to {wish}.",
)


def prompts(split: str) -> Iterator[str]:
    """An endless sequence without repetition, in an order that depends only on the split. One prompt in five belongs to "test"."""
    rng = random.Random(split)
    seen: set[str] = set()
    while True:
        name, other = rng.sample(NAMES, 2)
        prompt = rng.choice(OPENINGS).format(
            name=name,
            other=other,
            hero=rng.choice(HEROES),
            quality=rng.choice(QUALITIES),
            place=rng.choice(PLACES),
            thing=rng.choice(THINGS),
            wish=rng.choice(WISHES),
        )
        is_test = random.Random(prompt).random() < 0.2
        if prompt not in seen and is_test == (split == "test"):
            seen.add(prompt)
            yield prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    a = parser.parse_args()
    source = prompts(a.split)
    for _ in range(a.number):
        print(json.dumps({"prompt": next(source)}))


if __name__ == "__main__":
    main()
