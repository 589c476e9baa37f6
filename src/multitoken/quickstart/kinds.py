"""The kinds of word problem. Each has a setting, its things, and the wordings of each operation.

A telling is a pair (present, gerund): "buys {n} more {things}" / "buying {n} more {things}". The problem uses
the first, the worked answer uses both. Products take {a} (how many groups) and {b} (how many in each).
Frozen: any change needs a new `corpus.GENERATOR_VERSION`.
"""

from dataclasses import dataclass, field

Telling = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """One setting. `state` says how much there is; `question` asks for it; an operation without tellings never occurs."""

    name: str
    things: tuple[str, ...]
    starts: tuple[str, ...]
    state: str
    questions: tuple[str, ...]
    tellings: dict[str, tuple[Telling, ...]]
    subject: str | None = None  # None: a person
    compare: str | None = None  # how a second person's amount is told, for the kinds that have one
    extra: tuple[str, ...] = field(default=())  # sentences without numbers that may appear anywhere


COLLECT = Kind(
    name="collect",
    things=(
        "stamps",
        "marbles",
        "shells",
        "cards",
        "stickers",
        "coins",
        "buttons",
        "stones",
        "beads",
        "badges",
        "postcards",
        "comics",
        "magnets",
        "feathers",
        "pins",
        "bottle caps",
        "toy cars",
        "key rings",
        "puzzle pieces",
        "paper cranes",
    ),
    starts=(
        "{Name} has {v} {things}.",
        "{Name} owns {v} {things} in a box.",
        "{Name} starts a collection with {v} {things}.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} does {name} have now?",
        "How many {things} does {name} have in the end?",
        "Find how many {things} {name} has.",
    ),
    compare="has",
    tellings={
        "add": (
            ("buys {n} more {things}", "buying {n} more {things}"),
            ("finds {n} {things} in the attic", "finding {n} {things}"),
            ("gets {n} {things} from {friend}", "getting {n} {things}"),
        ),
        "sub": (
            ("gives {n} {things} to {friend}", "giving away {n} {things}"),
            ("loses {n} {things}", "losing {n} {things}"),
            ("trades away {n} {things}", "trading away {n} {things}"),
        ),
        "mul": (
            ("makes the collection {n} times as large", "making it {n} times as large"),
            ("wins so often that the number of {things} becomes {n} times what it was", "winning"),
        ),
        "div": (
            ("splits the {things} into {n} equal piles and keeps one pile", "keeping one of {n} piles"),
            ("shares the {things} equally among {n} people and keeps one share", "sharing among {n} people"),
        ),
        "addprod": (
            ("buys {a} packs of {b} {things} each", "buying {a} packs of {b}"),
            ("gets {b} {things} from each of {a} friends", "getting {b} from each of {a} friends"),
        ),
        "subprod": (
            ("gives {b} {things} to each of {a} friends", "giving {b} to each of {a} friends"),
            ("sells {a} bags of {b} {things} each", "selling {a} bags of {b}"),
        ),
    },
    extra=("The box is made of wood.", "It is a hobby since childhood."),
)
BAKERY = Kind(
    name="bakery",
    things=("cookies", "muffins", "rolls", "pies", "cakes", "tarts", "bagels", "buns", "pretzels", "waffles"),
    starts=(
        "{Name} bakes {v} {things} in the morning.",
        "At the bakery, {name} has {v} {things}.",
        "{Name} begins the day with {v} {things}.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} are left?",
        "How many {things} does {name} have at the end?",
        "What is the number of {things} then?",
    ),
    compare="bakes",
    tellings={
        "add": (
            ("bakes {n} more {things}", "baking {n} more"),
            ("takes {n} {things} out of the freezer", "taking out {n} {things}"),
        ),
        "sub": (
            ("sells {n} {things}", "selling {n} {things}"),
            ("burns {n} of the {things}", "burning {n}"),
            ("gives {n} {things} to the neighbors", "giving away {n} {things}"),
        ),
        "mul": (("bakes until there are {n} times as many {things}", "baking until there are {n} times as many"),),
        "div": (("packs the {things} into {n} equal boxes and keeps one box", "keeping one of {n} boxes"),),
        "addprod": (
            ("bakes {a} trays of {b} {things} each", "baking {a} trays of {b}"),
            ("fills {a} plates with {b} new {things} each", "filling {a} plates with {b}"),
        ),
        "subprod": (
            ("sells {a} boxes of {b} {things} each", "selling {a} boxes of {b}"),
            ("sends {b} {things} to each of {a} schools", "sending {b} to each of {a} schools"),
        ),
    },
    extra=("The oven is new.", "The shop smells of butter.", "It is a rainy day."),
)
FARM = Kind(
    name="farm",
    things=(
        "apples",
        "pears",
        "plums",
        "eggs",
        "melons",
        "carrots",
        "potatoes",
        "onions",
        "lemons",
        "pumpkins",
        "peaches",
        "cabbages",
    ),
    starts=(
        "{Name} picks {v} {things} on the farm.",
        "{Name} brings {v} {things} to the market.",
        "In the barn {name} stores {v} {things}.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} does {name} have left?",
        "How many {things} are there now?",
        "How many {things} remain?",
    ),
    compare="picks",
    tellings={
        "add": (
            ("picks {n} more {things}", "picking {n} more"),
            ("receives {n} {things} from {friend}", "receiving {n} {things}"),
        ),
        "sub": (
            ("sells {n} {things}", "selling {n} {things}"),
            ("throws away {n} bad {things}", "throwing away {n}"),
            ("feeds {n} {things} to the animals", "feeding {n} to the animals"),
        ),
        "mul": (("works all week and ends with {n} times as many {things}", "working all week"),),
        "div": (("divides the {things} evenly over {n} carts and keeps one cart", "keeping one of {n} carts"),),
        "addprod": (
            ("fills {a} baskets with {b} {things} each", "filling {a} baskets with {b}"),
            ("gathers {b} {things} from each of {a} fields", "gathering {b} from each of {a} fields"),
        ),
        "subprod": (
            ("sells {a} sacks of {b} {things} each", "selling {a} sacks of {b}"),
            ("gives {b} {things} to each of {a} helpers", "giving {b} to each of {a} helpers"),
        ),
    },
    extra=("The sun is shining.", "The farm lies near a river."),
)
SAVINGS = Kind(
    name="savings",
    things=("dollars",),
    starts=(
        "{Name} has {v} dollars.",
        "{Name} has saved {v} dollars for a trip.",
        "There are {v} dollars in the bank account of {name}.",
    ),
    state="has {r} dollars",
    questions=(
        "How many dollars does {name} have now?",
        "How much money does {name} have at the end?",
        "How much is left?",
    ),
    compare="has",
    tellings={
        "add": (
            ("earns {n} dollars by washing cars", "earning {n} dollars"),
            ("gets {n} dollars for a birthday", "getting {n} dollars"),
            ("sells a bike for {n} dollars", "selling the bike"),
        ),
        "sub": (
            ("spends {n} dollars on shoes", "spending {n} dollars"),
            ("pays {n} dollars for a ticket", "paying {n} dollars"),
            ("lends {n} dollars to {friend}", "lending {n} dollars"),
        ),
        "mul": (("invests well, and the money grows to {n} times as much", "investing well"),),
        "div": (("splits the money evenly among {n} people and keeps one part", "splitting it among {n} people"),),
        "addprod": (
            ("works {a} hours for {b} dollars an hour", "working {a} hours for {b} dollars"),
            ("sells {a} paintings for {b} dollars each", "selling {a} paintings for {b} dollars"),
        ),
        "subprod": (
            ("buys {a} books for {b} dollars each", "buying {a} books for {b} dollars"),
            ("pays {b} dollars a week for {a} weeks", "paying {b} dollars for {a} weeks"),
        ),
    },
    extra=("The money is kept in a jar.", "The trip is planned for the summer."),
)
READING = Kind(
    name="reading",
    things=("pages",),
    starts=(
        "{Name} has {v} pages to read.",
        "{Name} must read {v} pages for school.",
        "The reading list of {name} has {v} pages.",
    ),
    state="has {r} pages to read",
    questions=(
        "How many pages does {name} still have to read?",
        "How many pages are left to read?",
        "What is the number of pages left?",
    ),
    tellings={
        "add": (
            ("is given {n} more pages by the teacher", "being given {n} more pages"),
            ("adds a story of {n} pages", "adding {n} pages"),
        ),
        "sub": (
            ("reads {n} pages", "reading {n} pages"),
            ("skips {n} pages", "skipping {n} pages"),
            ("listens to {n} pages as a recording", "listening to {n} pages"),
        ),
        "mul": (("signs up for a course with {n} times as many pages", "signing up for the course"),),
        "div": (("divides the pages evenly over {n} days and looks at one day", "dividing over {n} days"),),
        "addprod": (("borrows {a} booklets of {b} pages each", "borrowing {a} booklets of {b} pages"),),
        "subprod": (
            ("reads {b} pages a day for {a} days", "reading {b} pages for {a} days"),
            ("finishes {a} chapters of {b} pages each", "finishing {a} chapters of {b} pages"),
        ),
    },
    extra=("The lamp is on.", "The book is about a long journey."),
)
TRAVEL = Kind(
    name="travel",
    things=("miles", "kilometers"),
    starts=(
        "{Name} plans a tour of {v} {things}.",
        "{Name} has {v} {things} to go.",
        "A trail of {v} {things} lies before {name}.",
    ),
    state="has {r} {things} to go",
    questions=(
        "How many {things} does {name} still have to go?",
        "How many {things} are left?",
        "How long is the rest of the way in {things}?",
    ),
    tellings={
        "add": (
            ("takes a detour of {n} {things}", "taking the detour"),
            ("must go back {n} {things}", "going back {n} {things}"),
        ),
        "sub": (
            ("walks {n} {things}", "walking {n} {things}"),
            ("rides {n} {things} by bus", "riding {n} {things}"),
            ("finds a way that is {n} {things} shorter", "finding the shorter way"),
        ),
        "mul": (("chooses a route that is {n} times as long", "choosing the longer route"),),
        "div": (("splits the way into {n} equal parts and does only one part", "doing one of {n} parts"),),
        "addprod": (("adds {a} loops of {b} {things} each", "adding {a} loops of {b}"),),
        "subprod": (
            ("drives {a} hours at {b} {things} an hour", "driving {a} hours at {b} {things}"),
            ("walks {b} {things} a day for {a} days", "walking {b} {things} for {a} days"),
        ),
    },
    extra=("The weather is fine.", "The map is old."),
)
LIBRARY = Kind(
    name="library",
    subject="the library",
    things=("books", "maps", "records", "films", "magazines", "games"),
    starts=(
        "The library has {v} {things}.",
        "A small library opens with {v} {things}.",
        "There are {v} {things} in the library.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} does the library have now?",
        "How many {things} are in the library?",
        "How many {things} are there in the end?",
    ),
    tellings={
        "add": (
            ("buys {n} new {things}", "buying {n} new {things}"),
            ("gets back {n} {things}", "getting back {n} {things}"),
        ),
        "sub": (
            ("lends out {n} {things}", "lending out {n} {things}"),
            ("sells {n} old {things}", "selling {n} {things}"),
            ("loses {n} {things} in a flood", "losing {n} {things}"),
        ),
        "mul": (("grows until it has {n} times as many {things}", "growing"),),
        "div": (("divides its {things} evenly among {n} towns and keeps one part", "dividing them among {n} towns"),),
        "addprod": (
            ("fills {a} shelves with {b} new {things} each", "filling {a} shelves with {b}"),
            ("receives {a} crates of {b} {things} each", "receiving {a} crates of {b}"),
        ),
        "subprod": (
            ("sends {b} {things} to each of {a} schools", "sending {b} to each of {a} schools"),
            ("lends {b} {things} a day for {a} days", "lending {b} a day for {a} days"),
        ),
    },
    extra=("The roof was painted in {month}.", "It opens at noon."),
)
SCHOOL = Kind(
    name="school",
    things=("pencils", "crayons", "notebooks", "rulers", "brushes", "erasers", "folders", "pens"),
    starts=(
        "A teacher, {name}, has {v} {things}.",
        "{Name} orders {v} {things} for the class.",
        "In the cupboard {name} counts {v} {things}.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} does {name} have left?",
        "How many {things} are there now?",
        "How many {things} does the class have at last?",
    ),
    compare="orders",
    tellings={
        "add": (
            ("orders {n} more {things}", "ordering {n} more"),
            ("finds {n} {things} under the desks", "finding {n} {things}"),
        ),
        "sub": (
            ("hands out {n} {things}", "handing out {n} {things}"),
            ("breaks {n} {things}", "breaking {n}"),
            ("lends {n} {things} to {friend}", "lending {n} {things}"),
        ),
        "mul": (("orders until there are {n} times as many {things}", "ordering until there are {n} times as many"),),
        "div": (("deals the {things} evenly to {n} tables and looks at one table", "dealing them to {n} tables"),),
        "addprod": (
            ("opens {a} boxes with {b} {things} each", "opening {a} boxes with {b}"),
            ("collects {b} {things} from each of {a} rooms", "collecting {b} from each of {a} rooms"),
        ),
        "subprod": (
            ("gives {b} {things} to each of {a} pupils", "giving {b} to each of {a} pupils"),
            ("puts away {a} boxes of {b} {things} each", "putting away {a} boxes of {b}"),
        ),
    },
    extra=("The bell rings at nine.", "The class is noisy."),
)
GARDEN = Kind(
    name="garden",
    things=("roses", "tulips", "daisies", "lilies", "herbs", "ferns", "bushes", "seedlings"),
    starts=(
        "{Name} plants {v} {things} in the garden.",
        "{Name} grows {v} {things}.",
        "In spring there are {v} {things} in the garden of {name}.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} does {name} have now?",
        "How many {things} grow in the garden?",
        "How many {things} are left in the garden?",
    ),
    compare="grows",
    tellings={
        "add": (
            ("plants {n} more {things}", "planting {n} more"),
            ("gets {n} {things} as a present", "getting {n} {things}"),
        ),
        "sub": (
            ("cuts {n} {things}", "cutting {n} {things}"),
            ("loses {n} {things} to the frost", "losing {n} {things}"),
            ("gives {n} {things} to {friend}", "giving away {n} {things}"),
        ),
        "mul": (("waters them well, and soon there are {n} times as many", "watering them"),),
        "div": (("moves the {things} into {n} equal beds and counts one bed", "counting one of {n} beds"),),
        "addprod": (
            ("plants {a} rows of {b} {things} each", "planting {a} rows of {b}"),
            ("fills {a} pots with {b} {things} each", "filling {a} pots with {b}"),
        ),
        "subprod": (
            ("ties {a} bunches of {b} {things} each and sells them", "selling {a} bunches of {b}"),
            ("digs out {a} rows of {b} {things} each", "digging out {a} rows of {b}"),
        ),
    },
    extra=("Bees are everywhere.", "The soil is dark."),
)
FACTORY = Kind(
    name="factory",
    subject="the factory",
    things=("toys", "lamps", "chairs", "clocks", "phones", "bikes", "kettles", "bowls", "drums"),
    starts=(
        "A factory makes {v} {things}.",
        "The factory has {v} {things} in store.",
        "In {month} the factory makes {v} {things}.",
    ),
    state="has {r} {things}",
    questions=(
        "How many {things} does the factory have now?",
        "How many {things} are in store?",
        "How many {things} are left at the factory?",
    ),
    tellings={
        "add": (("makes {n} more {things}", "making {n} more"), ("repairs {n} {things}", "repairing {n} {things}")),
        "sub": (
            ("ships {n} {things}", "shipping {n} {things}"),
            ("scraps {n} broken {things}", "scrapping {n} {things}"),
            ("sells {n} {things}", "selling {n} {things}"),
        ),
        "mul": (("runs day and night until it has {n} times as many {things}", "running day and night"),),
        "div": (("sends the {things} to {n} stores in equal parts and counts one part", "counting one of {n} parts"),),
        "addprod": (
            ("makes {b} {things} a day for {a} days", "making {b} a day for {a} days"),
            ("gets {a} crates of {b} {things} each", "getting {a} crates of {b}"),
        ),
        "subprod": (
            ("ships {a} crates of {b} {things} each", "shipping {a} crates of {b}"),
            ("sends {b} {things} to each of {a} shops", "sending {b} to each of {a} shops"),
        ),
    },
    extra=("The machines are loud.", "The workers sing."),
)
TRAIN = Kind(
    name="train",
    subject="the train",
    things=("passengers",),
    starts=(
        "A train leaves with {v} passengers.",
        "The train has {v} passengers.",
        "There are {v} passengers on the train.",
    ),
    state="has {r} passengers",
    questions=(
        "How many passengers does the train have now?",
        "How many passengers are on the train?",
        "How many passengers arrive?",
    ),
    tellings={
        "add": (("takes on {n} passengers", "taking on {n} passengers"),),
        "sub": (("lets off {n} passengers", "letting off {n} passengers"),),
        "mul": (("fills up until it has {n} times as many passengers", "filling up"),),
        "div": (("is divided into {n} equal parts and goes on with one part", "going on with one of {n} parts"),),
        "addprod": (("takes on {b} passengers at each of {a} stations", "taking on {b} at each of {a} stations"),),
        "subprod": (("lets off {b} passengers at each of {a} stations", "letting off {b} at each of {a} stations"),),
    },
    extra=("The train is late.",),
)
TANK = Kind(
    name="tank",
    subject="the tank",
    things=("liters",),
    starts=(
        "A tank holds {v} liters of water.",
        "The tank has {v} liters of water.",
        "In {month} the tank has {v} liters.",
    ),
    state="has {r} liters",
    questions=(
        "How many liters does the tank have now?",
        "How many liters are in the tank?",
        "How many liters are left?",
    ),
    tellings={
        "add": (
            ("gains {n} liters from the rain", "gaining {n} liters"),
            ("is filled with {n} more liters", "being filled with {n} liters"),
        ),
        "sub": (("loses {n} liters", "losing {n} liters"), ("gives {n} liters to the garden", "giving {n} liters")),
        "mul": (("is filled until it has {n} times as many liters", "being filled"),),
        "div": (("is emptied into {n} equal barrels, and one barrel counts", "counting one of {n} barrels"),),
        "addprod": (("gets {a} buckets of {b} liters each", "getting {a} buckets of {b} liters"),),
        "subprod": (("loses {b} liters a day for {a} days", "losing {b} liters for {a} days"),),
    },
    extra=("The tank is round.",),
)

TRAINED_KINDS = (COLLECT, BAKERY, FARM, SAVINGS, READING, TRAVEL, LIBRARY, SCHOOL, GARDEN, FACTORY)
HELD_OUT_KINDS = (TRAIN, TANK)
