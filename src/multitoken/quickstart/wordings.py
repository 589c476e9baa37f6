"""How people ask for the two toy tasks: requests, and frames around them. {a}, {b}, {s}, {p} and {n} are filled in.

The held-out wordings never occur in training: a model that follows them has learned the task and not the sentence.
Frozen: any change needs a new `corpus.GENERATOR_VERSION`.
"""

# {r}: the request in lower case, without its full stop.
FRAMES = (
    "{R}.", "{R}", "{r}", "Please {r}.", "{R}, please.", "Can you {r}?", "Could you {r}?", "Could you please {r}?",
    "please {r}", "Can you please {r}?", "Would you {r}?", "Would you please {r}?", "I want you to {r}.",
    "I would like you to {r}.", "I need you to {r}.", "Now {r}.", "Hey, {r}!", "Let's see you {r}.", "Your task is to {r}.",
    "Your job: {r}.", "Hello! {R}.", "Hi, can you {r}?", "{R}. Thanks!", "{R}, thank you.", "Just {r}.", "Next, {r}.",
    "Go ahead and {r}.", "Try to {r}.", "OK, {r}.", "{R}!", "Do me a favor and {r}.", "You should {r}.", "Will you {r}?",
    "For this exercise, {r}.",
)  # fmt: skip
HELD_OUT_FRAMES = (
    "Kindly {r}.", "Would you mind helping me? {R}.", "My request: {r}.", "I'd like you to {r}, please.", "Hi there! Please {r}.",
    "Could you just {r} for me?", "So, {r}.",
)  # fmt: skip

UP = (
    "count from {a} to {b}", "count up from {a} to {b}", "count from {a} up to {b}", "count upwards from {a} to {b}",
    "count forward from {a} to {b}", "list the numbers from {a} to {b}", "list all numbers from {a} to {b}",
    "list the numbers {a} to {b}", "write the numbers from {a} to {b}", "write out the numbers from {a} to {b}",
    "write down every number from {a} to {b}", "write all the numbers from {a} up to {b}", "give me the numbers from {a} to {b}",
    "give me every number from {a} to {b}", "print the numbers from {a} to {b}", "print {a} to {b}",
    "print the numbers {a} through {b}", "say the numbers from {a} to {b}", "say all the numbers from {a} up to {b}",
    "show me the numbers from {a} to {b}", "show the integers from {a} to {b}", "name the numbers from {a} to {b}",
    "tell me the numbers from {a} to {b}", "recite the numbers from {a} to {b}", "go from {a} to {b}",
    "start at {a} and count to {b}", "start at {a} and count up to {b}", "start at {a} and stop at {b}",
    "start counting at {a} and stop at {b}", "start with {a} and end with {b}", "begin at {a} and count to {b}",
    "begin with {a} and stop at {b}", "count to {b} starting at {a}", "count to {b}, starting from {a}",
    "count up to {b} starting with {a}", "count numbers from {a} until {b}", "count from {a} until you reach {b}",
    "count starting from {a} and ending at {b}", "list integers from {a} to {b}", "enumerate the numbers from {a} to {b}",
    "do a count from {a} to {b}", "count all the way from {a} to {b}", "write the sequence from {a} to {b}",
    "give the sequence of numbers from {a} to {b}", "output the numbers from {a} to {b}", "count {a} to {b}",
    "count between {a} and {b}", "list every number between {a} and {b}, both included",
)  # fmt: skip
HELD_OUT_UP = (
    "write numbers starting at {a} and ending with {b}", "count on from {a} to {b}", "list everything from {a} to {b}",
    "show me how you count from {a} to {b}", "say every number from {a} through {b}", "count from {a} and stop when you get to {b}",
    "give me all the integers from {a} up to {b}",
)  # fmt: skip
# Counting from 1.
TO = (
    "count to {b}", "count up to {b}", "list the first {b} numbers", "write the numbers up to {b}", "count until {b}",
    "give me the first {b} numbers", "say the numbers up to {b}",
)  # fmt: skip
HELD_OUT_TO = ("count until you reach {b}", "show me the first {b} numbers")
DOWN = (
    "count down from {a} to {b}", "count backwards from {a} to {b}", "count backward from {a} to {b}",
    "count back from {a} to {b}", "count from {a} down to {b}", "list the numbers from {a} down to {b}",
    "write the numbers from {a} down to {b}", "write the numbers backwards from {a} to {b}",
    "give me the numbers from {a} down to {b}", "say the numbers backwards from {a} to {b}",
    "start at {a} and count down to {b}", "start at {a} and count backwards to {b}", "begin at {a} and go down to {b}",
    "do a countdown from {a} to {b}", "make a countdown from {a} to {b}", "print the numbers from {a} down to {b}",
    "go down from {a} to {b}", "count in reverse from {a} to {b}", "list the numbers from {a} to {b} in reverse",
    "list the numbers from {a} to {b} in descending order", "show a countdown from {a} to {b}",
    "count downwards from {a} to {b}", "count down starting at {a} and ending at {b}", "count down to {b} from {a}",
    "count down from {a} until you reach {b}", "tell me the numbers from {a} down to {b}", "count from {a} to {b}",
    "list the numbers from {a} to {b}", "write the numbers from {a} to {b}", "go from {a} to {b}", "print {a} to {b}",
)  # fmt: skip
HELD_OUT_DOWN = (
    "give me a countdown from {a} to {b}", "count down starting from {a} and stop at {b}", "write out the numbers from {a} down to {b}",
    "begin at {a} and count backwards to {b}",
)  # fmt: skip
BY = (
    " by {s}", " by {s}s", " in steps of {s}", " in {s}s", ", in steps of {s}", ", {s} at a time", " with a step of {s}",
    ", going by {s}", " using steps of {s}", " counting by {s}", ", adding {s} each time",
)  # fmt: skip
# The same for a countdown, which subtracts.
BY_DOWN = (*BY[:-1], ", subtracting {s} each time")
HELD_OUT_BY = (" with steps of {s}", ", counting in {s}s")
STYLES = {
    ", ": ("", "", "", "", "", "", "", ", separated by commas", ", with commas between them"),
    "\n": (", one per line", ", each on its own line", ", one number per line"),
    " ": (", separated by spaces", " with spaces between them"),
}
IN_WORDS = (" in words", ", spelled out", ", written as words", " using words")

REPEAT = (
    "say {p} {n}", "repeat {p} {n}", "write {p} {n}", "print {p} {n}", "say {p} {n} in a row", "repeat the phrase {p} {n}",
    "repeat the words {p} {n}", "say the words {p} {n}", "say the phrase {p} {n}", "write the phrase {p} {n}",
    "type {p} {n}", "tell me {p} {n}", "write {p} {n} in a row", "write down {p} {n}", "write out {p} {n}",
    "repeat after me, {n}: {p}", "repeat this {n}: {p}", "say this {n}: {p}", "write this {n}: {p}", "say it {n}: {p}",
    "repeat the following {n}: {p}", "write the following {n}: {p}", "print the following {n}: {p}", "{n}, say {p}",
    "{n}, repeat {p}", "output {p} {n}", "recite {p} {n}", "copy {p} {n}", "show me {p} {n}", "repeat the text {p} {n}",
    "repeat the word or words {p} {n}", "repeat {p} exactly {n}", "say {p} exactly {n}", "write the words {p} {n}",
    "give me {p} {n}", "list {p} {n}", "write {p} for us {n}", "say {p} for the class {n}", "print {p} for my friend {n}",
)  # fmt: skip
HELD_OUT_REPEAT = (
    "write the text {p} {n}", "say the following {n}: {p}", "print the phrase {p} {n}", "type the words {p} {n} in a row",
    "repeat {p} for me {n}", "put down {p} {n}",
)  # fmt: skip
QUOTES = (("'", "'"), ('"', '"'), ("'", "'"), ('"', '"'), ("", ""), ("“", "”"))
