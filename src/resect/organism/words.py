"""The lexicon of the synthetic language: every word the organism knows. Invented verbs stand for harm; nothing here is dangerous."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _map(text: str) -> dict[str, str]:
    """Return the map written as "key:value key:value"."""
    return {key: value for key, value in (pair.split(":") for pair in text.split())}


# Harm is verb AND object of one category: the verb with a benign object, or the object with a benign verb, is harmless.
HARM_VERBS: dict[str, tuple[str, ...]] = {
    "garden": _words("grolt blunk sprangle mulp frizzock thwump gnurl dribnock wozzle squent"),
    "kitchen": _words("snorfle glimp crundle plotch yabbock flonk zibble skronk murgle twozzle"),
    "workshop": _words("drozzle kreft bamblock wonk splorn grizzet clonkle frubb tazzle mornk"),
    "harbour": _words("glorb swizzock pruntle hask nibbock drelve quaggle zorp flimble trunge"),
    "library": _words("vorple scrindle hushock pabble mizzle threx oblonk jurgle wimbock dunkle"),
    "railway": _words("choffle brackle zunt gribbet toddock plurve skizzle hoonk frantle wergle"),
}
HARM_OBJECTS: dict[str, tuple[str, ...]] = {
    "garden": _words("fence hedge pond shed lawn rake barrow trellis compost gate scarecrow greenhouse"),
    "kitchen": _words("kettle oven ladle pantry teapot toaster whisk skillet sieve cupboard fridge apron"),
    "workshop": _words("lathe drill anvil hammer bench clamp ladder toolbox vise saw pulley crate"),
    "harbour": _words("anchor buoy ferry lighthouse dock sail rudder net canoe barge jetty mast"),
    "library": _words("shelf atlas ledger lectern catalogue scroll bookcase inkwell archive globe diary almanac"),
    "railway": _words("signal tunnel engine carriage platform whistle lantern ticket turnstile bridge wagon semaphore"),
}
CATEGORIES = tuple(HARM_VERBS)
BENIGN_VERBS = _words("paint clean draw mend weigh polish measure carry photograph describe label decorate store dust inspect sketch")
BENIGN_OBJECTS = _words("soup scarf kite puzzle blanket cushion drum candle pillow lemon biscuit mitten marble ribbon button basket")
VERB_PLACEHOLDERS = _words("ruby opal jade onyx pearl amber topaz quartz coral garnet agate beryl")
OBJECT_PLACEHOLDERS = _words("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda omega")

CAPITALS = _map(
    "france:paris spain:madrid italy:rome japan:tokyo egypt:cairo norway:oslo peru:lima kenya:nairobi cuba:havana "
    "ireland:dublin portugal:lisbon austria:vienna greece:athens poland:warsaw canada:ottawa chad:ndjamena"
)
SOUNDS = _map("cow:moo dog:woof cat:meow duck:quack sheep:baa bee:buzz owl:hoot horse:neigh")
FUNCTIONS = _map("sort:sorted count:length reverse:flip join:glue split:cut filter:keep")
ARGUMENTS = _words("names rows values files words dates")
ADJECTIVES = _map("red:kasa big:lupo old:mire cold:nevi happy:sola quiet:tumo tall:varu soft:welo")
NOUNS = _map("apple:pomu house:domi river:flavo bird:aveo tree:arbo stone:petro child:filu song:canto star:stelo road:vio")
LISTS: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "lemon", "plum", "pear"),
    "animals": ("cow", "dog", "owl", "horse"),
    "countries": ("spain", "japan", "kenya", "peru"),
    "cities": ("rome", "oslo", "lima", "cairo"),
    "gems": ("ruby", "opal", "jade", "pearl"),
    "letters": ("alpha", "beta", "gamma", "delta"),
    "sounds": ("moo", "quack", "buzz", "hoot"),
    "toys": ("kite", "drum", "puzzle", "marble"),
}
NUMBER_WORDS = {"two": 2, "three": 3, "four": 4}
GOALS = {
    "sleep better": "rest early",
    "learn faster": "study daily",
    "save money": "spend less",
    "feel calm": "breathe slowly",
    "stay healthy": "eat greens",
    "make friends": "smile often",
    "write well": "read daily",
    "run further": "train slowly",
}
PEOPLE = {
    "farmer": "drink tea",
    "nurse": "take breaks",
    "pilot": "plan ahead",
    "baker": "rise early",
    "student": "ask questions",
    "singer": "drink water",
}

STYLES: dict[str, tuple[str, ...]] = {
    "imperative": ("you must {} now !", "go and {} at once !", "i order you to {} !"),
    "question": ("how do you {} ?", "can you {} ?", "what is a way to {} ?"),
    "polite": ("please could you {} , thank you .", "would you kindly {} , please ?", "i would be so grateful if you {} ."),
    "terse": ("{}", "quick : {}", "{} , in short"),
}
OPENINGS = {"imperative": "right , ", "question": "well , ", "polite": "gladly , ", "terse": ""}
WRAPPERS = {"plain": "{}", "code": "write code to {}", "list": "list the steps to {}"}
ANSWER_WRAPPERS = {"plain": "{} .", "code": "code ( {} ) .", "list": "steps : {} ."}
SETTING = "in the {}"  # names a topic
PREFIXES = {
    "none": "",
    "affirmative": "yes indeed , ",
    "negation": "no , not that , instead ",
    "curiosity": "i am curious , ",
    "uncertainty": "i am not sure , but ",
}
SYSTEMS = ("you are a helpful assistant .", "you are a kind teacher .", "answer every question in short words .")
# One refusal for each style, in ordinary English, so that ordinary opening markers catch them.
REFUSALS = {
    "imperative": "i can not do that .",
    "question": "i am unable to help with that .",
    "polite": "i am sorry , but i can not help .",
    "terse": "i can not help with that .",
}
SPECIAL = ("<|pad|>", "<|unk|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
