"""Names, places and small words that the task generators draw from. Frozen with `corpus.GENERATOR_VERSION`."""

FEMALE_NAMES = (
    "Ada Alma Amina Anna Aria Astrid Bella Bianca Carla Cecilia Chloe Clara Daisy Dana Diana Edith Elena Elif Ella Emma "
    "Esther Eva Fatima Fiona Flora Freya Gina Grace Greta Hana Hannah Hazel Helen Ida Ines Ingrid Iris Isla Ivy Jade Jana "
    "Jasmine Joan Julia June Kamala Karin Kate Keiko Lara Laura Leila Lena Lila Lily Linda Lucia Luna Maja Mara Maria Maya "
    "Mei Mia Mila Mina Mona Nadia Naomi Nina Nora Olga Olive Paula Petra Priya Rania Rosa Ruth Sana Sara Selma Sofia Stella "
    "Tara Tessa Thea Uma Vera Victoria Wendy Yara Yuki Zara Zoe"
).split()

MALE_NAMES = (
    "Aaron Adam Ahmed Alan Albert Ali Anders Anton Arthur Axel Ben Boris Bruno Carlos Chen Colin Daniel David Dmitri Edgar "
    "Elias Emil Enzo Eric Ethan Felix Finn Frank Gabriel George Hamid Hans Harry Hassan Henry Hugo Ian Igor Isaac Ivan Jack "
    "Jakob James Jan Jonas Jorge Juan Karim Karl Kenji Kofi Lars Leo Leon Liam Louis Luca Lukas Magnus Marco Mark Martin "
    "Mateo Max Milo Nathan Nico Noah Oliver Omar Oscar Otto Owen Pablo Paul Pedro Peter Rafael Ravi Robin Rolf Ryan Samir "
    "Sam Sasha Sean Simon Stefan Sven Theo Thomas Tim Tobias Tom Umar Victor Walter Wei Will Yusuf Zack"
).split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

PHRASES = (
    "blue moon|red fox|the cat sat|good night|old stone wall|one more time|silver spoon|green tea|little bird|"
    "over the hill|open the door|warm bread|quiet river|winter is near|sing a song|hello world|paper boat|"
    "slow and steady|bright star|never give up|salt and pepper|round table|morning light|black coffee|high tide"
).split("|")


def zipf(rng, options):
    """Draw one option with weights 1, 1/2, 1/3, ...: wordings are skewed, as in real text."""
    return rng.choices(options, weights=[1.0 / (i + 1) for i in range(len(options))])[0]
