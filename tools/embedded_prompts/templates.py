"""Our own ask templates for the embedded prompts, by task, and the ways to frame an ask with its rules."""

from typing import NamedTuple


class Ask(NamedTuple):
    """One way to ask.

    text: whole sentences with {topic}, and {other} for a second topic of the same family.
    sort: topics it fits, "doing", "thing" or "any".
    claims: what it settles about the answer itself, in the vocabulary of `check_kinds.Kind.claims`, so that
        "in one sentence" never meets "at least 40 words".
    """

    text: str
    sort: str = "any"
    claims: tuple[str, ...] = ()


SHORT = ("length", "shape", "sentences")  # one line or a few: no room for another length or layout
PLAIN = ("prose",)  # a text that would be odd inside a JSON object

TASKS: dict[str, tuple[Ask, ...]] = {
    "explain": (
        Ask("Explain {topic} to a ten-year-old."),
        Ask("In simple terms, what should everyone know about {topic}?"),
        Ask("Explain why {topic} can be harder than it looks.", "doing"),
        Ask("Give a short explanation of {topic} for readers of a local paper."),
        Ask("Explain briefly what makes {topic} interesting.", claims=("length",)),
    ),
    "advise": (
        Ask("I am new to {topic}. What would you advise?", "doing"),
        Ask("Give me one useful tip for {topic}.", "doing"),
        Ask("What is your best advice for someone who wants to know about {topic}?"),
        Ask("A friend has trouble with {topic}. What should I tell her?"),
        Ask("Give one piece of practical advice about {topic}."),
    ),
    "list": (
        Ask("List a few things to keep in mind about {topic}.", claims=("sentences",)),
        Ask("Name the most important things to have ready before {topic}.", "doing", ("sentences",)),
        Ask("What comes to mind first when you think of {topic}? Name a few things.", claims=("sentences",)),
        Ask("Name some words that go well with {topic} and say why.", claims=("sentences",)),
    ),
    "describe": (
        Ask("Describe {topic} to someone who has never seen it.", "thing"),
        Ask("Describe what one sees and hears while {topic}.", "doing"),
        Ask("Write a short description of {topic} for a children's book.", claims=PLAIN),
        Ask("Describe a typical scene that has to do with {topic}."),
    ),
    "story": (
        Ask("Write a very short story about {topic}.", claims=PLAIN),
        Ask("Tell a little story in which somebody learns something about {topic}.", claims=PLAIN),
        Ask("Make up a funny episode about {topic}.", claims=PLAIN),
        Ask("Write the opening of a story about {topic}.", claims=PLAIN),
    ),
    "letter": (
        Ask("Write a short email to a friend about {topic}.", claims=PLAIN),
        Ask("Write a note to my aunt in which I tell her about {topic}.", claims=PLAIN),
        Ask("Draft a friendly letter to a newspaper about {topic}.", claims=PLAIN),
        Ask("Write an invitation to a talk about {topic}.", claims=PLAIN),
    ),
    "slogan": (
        Ask("Write a catchy slogan about {topic}.", claims=SHORT + PLAIN),
        Ask("Suggest a slogan for a club that is all about {topic}.", claims=SHORT),
        Ask("Find a good name for a small magazine about {topic} and say why it fits.", claims=("shape",)),
    ),
    "define": (
        Ask("Define {topic} in your own words.", "thing"),
        Ask("What do people mean when they talk about {topic}?"),
        Ask("Write a dictionary entry for {topic}.", "thing", PLAIN),
        Ask("Say in a sentence or two what {topic} means to most people.", claims=SHORT),
    ),
    "pros_cons": (
        Ask("Name one advantage and one drawback of {topic}."),
        Ask("What speaks for {topic}, and what speaks against it?"),
        Ask("Weigh the good and the bad sides of {topic}."),
    ),
    "steps": (
        Ask("Describe the main steps of {topic}.", "doing"),
        Ask("How does one begin with {topic}? Go step by step.", "doing", ("sentences",)),
        Ask("What is the right order of things when {topic}?", "doing"),
    ),
    "question": (
        Ask("Why do people care about {topic}?"),
        Ask("What goes wrong most often with {topic}?"),
        Ask("What would the world be like without {topic}?", "thing"),
        Ask("What does one need for {topic}?", "doing"),
        Ask("Who would enjoy {topic}, and why?"),
    ),
    "opinion": (
        Ask("What do you think about {topic}? Give one reason."),
        Ask("Do people talk too much about {topic}? Say what you think."),
        Ask("Is it worth knowing more about {topic}? Take a side."),
    ),
    "dialogue": (
        Ask("Write one line of dialogue in which a shopkeeper mentions {topic}.", claims=SHORT + PLAIN),
        Ask("Write a short chat between two neighbours about {topic}.", claims=PLAIN),
        Ask("What would a proud grandfather say about {topic}? Write it in his voice.", claims=PLAIN),
    ),
    "compare": (
        Ask("Compare {topic} with {other}."),
        Ask("What do {topic} and {other} have in common?"),
        Ask("What would you rather read about, {topic} or {other}? Give your reason."),
    ),
    "poem": (
        Ask("Write a short poem about {topic}.", claims=("prose", "sentences")),
        Ask("Write a few rhyming lines about {topic}.", claims=("prose", "sentences")),
    ),
    "fact": (
        Ask("Tell me one interesting fact about {topic}."),
        Ask("Tell me something about {topic} that most people do not know."),
        Ask("What might surprise a visitor from another country about {topic}?"),
    ),
    "mistake": (
        Ask("What mistake do beginners make when {topic}?", "doing"),
        Ask("Which wrong idea do many people have about {topic}?"),
        Ask("Name a common mistake to do with {topic} and how to avoid it."),
    ),
    "announce": (
        Ask("Write a short advertisement about {topic}.", claims=PLAIN),
        Ask("Write a diary entry about {topic}.", claims=PLAIN),
        Ask("Write a short notice about {topic} for the board in the hall.", claims=PLAIN),
        Ask("Write a paragraph about {topic} for a club's website.", claims=("shape", "prose")),
    ),
}

# Background that asks for nothing, so that it goes with every ask and every check.
LEADS = (
    "I help to run a small library.",
    "My niece asked me about this yesterday and I had no good answer.",
    "We are putting together a booklet for new members of our club.",
    "I am preparing a talk for my neighbours.",
    "This is for the back page of our school paper.",
    "I have been curious about this for a while.",
    "A visitor will ask me about this tomorrow.",
    "I am practising my English and like everyday subjects.",
    "Our evening group picks a new subject each time.",
    "I would like to read your answer aloud to my class.",
    "I write a little column for a local website.",
    "My brother and I could not agree on this at breakfast.",
    "I am making a poster and need some text.",
    "You are a patient friend who likes to help.",
    "I am collecting texts for a calendar.",
    "It is for a quiz among colleagues, and nobody there is an expert.",
)

# {rules} are clauses in the imperative joined together; {Rules} the same with a capital.
FRAMES = (
    "{ask} {Rules}.",
    "{ask} {Rules}.",
    "{ask} Please {rules}.",
    "{ask}\n\n{Rules}.",
    "{Rules}. {ask}",
    "Please {rules}. {ask}",
    "{ask} When you answer, {rules}.",
    "{ask} It matters to me that you keep to this: {rules}.",
    "{ask}\nRules for the answer: {rules}.",
)

# By number of rules.
JOINTS = {
    1: ("{0}",),
    2: ("{0} and {1}", "{0}, and {1}", "{0}. Also, {1}", "{0}. In addition, {1}"),
    3: ("{0}, {1}, and {2}", "{0} and {1}. Also, {2}", "{0}. Also, {1} and {2}"),
}
