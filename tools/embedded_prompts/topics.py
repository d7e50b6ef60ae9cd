"""Our own topics for the embedded prompts, in families: phrase, then three words that belong to it.

A phrase reads well after "about". One whose first word ends in -ing is something one does ("doing"),
any other is a noun phrase ("thing"). No keyword occurs in its own phrase, so using it is a choice of the
answer; no keyword of a held-out topic occurs anywhere in the training topics, nor the other way round.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """One topic: its family, its phrase, and 3 single lower-case words for the keyword checks."""

    family: str
    phrase: str
    keywords: tuple[str, ...]

    @property
    def sort(self) -> str:
        """Return which asks it fits: "doing" (baking bread) or "thing" (a loaf)."""
        return "doing" if self.phrase.split()[0].endswith("ing") else "thing"


def read_topics(text: str) -> tuple[Topic, ...]:
    """Read the topics of a text of `[family]` headings and `phrase: keyword, keyword, keyword` lines."""
    family, topics = "", []
    for line in text.strip().splitlines():
        if line.startswith("["):
            family = line.strip("[]")
        else:
            phrase, _, keywords = line.partition(": ")
            topics.append(Topic(family, phrase, tuple(keywords.split(", "))))
    return tuple(topics)


TRAINING = read_topics("""
[cooking]
baking a loaf of bread: oven, flour, crust
a pot of vegetable soup: carrot, broth, spoon
frying an egg: pan, butter, yolk
homemade tomato sauce: garlic, basil, simmer
packing a lunch box: sandwich, fruit, lid
a plate of pancakes: batter, syrup, griddle
cooking rice: grain, steam, simmer
a green salad: lettuce, vinegar, bowl
roasting a chicken: thyme, skin, gravy
fresh pasta: dough, salt, fork
making strawberry jam: sugar, jar, berries
a cup of strong coffee: beans, filter, mug
[garden]
growing tomatoes on a balcony: pot, sunlight, stake
a compost heap: leaves, worms, soil
pruning a rose bush: shears, thorns, bud
a herb bed: mint, parsley, seed
watering house plants: roots, drip, saucer
a vegetable patch: onion, row, spade
mowing the lawn: grass, blade, edge
an apple orchard: blossom, ladder, harvest
planting tulips in autumn: bulb, depth, spring
a garden shed: tools, shelf, rake
keeping slugs away from young plants: snail, trap, night
a small greenhouse: glass, heat, seedling
[travel]
packing a suitcase: socks, label, zipper
a night train across the mountains: bunk, ticket, tunnel
booking a cheap hotel: price, lobby, review
a weekend in a small village: market, inn, lane
camping in the forest: tent, stove, lantern
a long flight: seat, pillow, aisle
reading a map: compass, scale, north
a passport: stamp, border, photo
learning a few words before a trip: dialect, accent, greeting
a road trip with friends: fuel, snacks, motorway
hiking up a steep trail: boots, summit, backpack
a tour of the museum: painting, guide, gallery
[science]
measuring the temperature of a room: thermometer, degree, sensor
magnets: iron, pole, field
growing crystals at home: salt, string, solution
the water cycle: rain, vapour, cloud
looking through a microscope: lens, slide, cell
the speed of sound: echo, air, wave
mixing vinegar and baking soda: bubbles, gas, reaction
gravity: weight, fall, mass
weighing very small things: gram, balance, error
the colours of the rainbow: light, prism, violet
testing an idea with an experiment: result, control, guess
atoms: electron, nucleus, matter
[space]
watching the night sky: star, telescope, dark
the phases of the moon: crescent, shadow, month
landing a probe on another planet: parachute, dust, signal
the planet Mars: red, rover, desert
living on a space station: orbit, crew, weightless
a total eclipse of the sun: corona, shadow, minutes
launching a rocket: engine, countdown, flame
the Milky Way: galaxy, spiral, stars
naming a newly found comet: tail, ice, discovery
the rings of Saturn: particles, ice, gap
training to become an astronaut: helmet, fitness, simulator
satellites: orbit, antenna, signal
[history]
printing books five hundred years ago: ink, press, paper
the pyramids of Egypt: stone, pharaoh, tomb
writing with a quill: ink, feather, parchment
the Roman roads: legion, paving, empire
digging up an ancient town: pottery, brush, layer
the first railways: steam, engine, coal
trading along the Silk Road: camel, spice, caravan
the invention of the wheel: cart, axle, potter
keeping a family tree: ancestor, record, grandmother
the old lighthouses: lamp, keeper, coast
sending messages by telegraph: wire, code, operator
medieval castles: moat, tower, knight
[jobs]
preparing for a job interview: employer, suit, handshake
a useful meeting: agenda, minutes, decision
working from home: desk, routine, screen
the first day in a new job: colleague, badge, desk
asking for a pay rise: salary, manager, reason
a tidy inbox: message, folder, subject
giving feedback to a colleague: praise, example, tone
a lunch break: walk, rest, canteen
writing a short report: summary, draft, margin
a job in a bakery: apron, dawn, customer
planning the week ahead: calendar, priority, deadline
teamwork: trust, task, share
[health]
sleeping well: pillow, bedtime, quiet
a healthy breakfast: oats, yogurt, fruit
drinking enough water: bottle, thirst, glass
a sore back: posture, stretch, chair
stretching in the morning: muscle, breath, mat
vitamins: fruit, diet, sunlight
taking a short walk every day: step, shoes, air
a visit to the dentist: tooth, brush, drill
calming down after a stressful day: breath, tea, bath
the common cold: nose, tissue, fever
washing your hands properly: soap, towel, germs
a first aid kit: bandage, plaster, scissors
[nature]
watching birds in winter: feeder, robin, seed
the life of a honey bee: hive, nectar, queen
climbing an old oak tree: branch, acorn, bark
a coral reef: fish, tropical, algae
following animal tracks: paw, mud, print
the Amazon rainforest: river, jungle, canopy
picking wild mushrooms: basket, poison, moss
a desert at noon: sand, cactus, heat
protecting hedgehogs: nest, leaves, hibernation
volcanoes: lava, ash, crater
walking along a frozen lake: ice, crack, snow
the tides: moon, beach, shore
[technology]
choosing a strong password: symbols, secret, account
solar panels: roof, power, sunlight
fixing a slow computer: memory, restart, disk
the electric car: battery, charger, motor
backing up your photos: copy, disk, cloud
a digital camera: lens, flash, focus
writing your first program: code, bug, loop
the bicycle: chain, pedal, wheel
spotting a fake message: link, sender, bank
robots in the kitchen: sensor, arm, recipe
printing a toy in plastic: layer, nozzle, model
wireless headphones: battery, ear, cable
[crafts]
folding a paper crane: crease, wing, corner
a wooden spoon carved by hand: knife, chip, grain
weaving a basket: willow, strand, handle
a clay pot: kiln, glaze, wheel
binding a notebook: thread, glue, cover
candles: wax, wick, flame
painting a landscape: brush, horizon, canvas
a patchwork cushion: padding, stitch, filling
building a bird house: nail, plank, hole
stained glass: lead, colour, pane
drawing a face: pencil, eye, shade
a handmade birthday card: ribbon, glitter, envelope
[home]
cleaning the windows: cloth, streak, bucket
a leaking tap: washer, spanner, drip
painting a bedroom wall: roller, tape, ladder
a cosy reading corner: lamp, blanket, armchair
sharing a flat with others: rent, chores, noise
a broken chair: glue, leg, clamp
saving electricity: bulb, switch, bill
a tidy kitchen drawer: fork, divider, clutter
moving to a new house: boxes, van, curtains
the family dinner table: plate, chat, candle
sorting the rubbish: bin, recycling, plastic
a power cut: candle, torch, fuse
[sports]
learning to swim: pool, float, breath
a penalty kick: goalkeeper, net, whistle
running a first marathon: pace, shoes, sweat
the tennis serve: racket, toss, net
skating on ice: balance, blade, rink
a local football club: pitch, coach, match
lifting weights safely: grip, back, spotter
a rowing team: oar, rhythm, boat
training for a long bike ride: helmet, hill, gear
the Olympic Games: medal, torch, athlete
playing table tennis: paddle, bounce, spin
rock climbing: rope, grip, harness
[school]
learning new words by heart: memory, card, repeat
a school trip to a farm: cow, teacher, bus
solving a hard maths problem: formula, step, proof
a good teacher: patience, lesson, chalk
studying for an exam: notes, break, plan
the school library: shelf, quiet, novel
making friends in a new class: smile, lunch, shy
homework: evening, pencil, grade
speaking in front of the class: voice, nerves, slide
the last day before summer: holiday, bell, goodbye
writing a book report: chapter, hero, author
handwriting: pen, slant, ink
[money]
saving for a bicycle: coin, goal, month
a weekly budget: rent, food, spending
shopping at a flea market: bargain, stall, seller
pocket money: coin, parent, week
lending money to a friend: trust, debt, promise
a bank account: interest, card, balance
selling old books: price, buyer, cover
the price of coffee: harvest, shop, cent
comparing two phone plans: data, contract, cost
a shopping list: milk, aisle, basket
starting a lemonade stand: citrus, cup, profit
gift cards: shop, expire, present
[people]
welcoming a new neighbour: cake, door, smile
a long friendship: trust, laugh, years
saying sorry: mistake, honest, regret
grandparents: story, photo, kitchen
writing a thank you note: gift, kind, pen
a surprise birthday party: balloon, cake, guest
remembering names: face, repeat, greeting
good listeners: silence, nod, attention
settling a quarrel between friends: calm, anger, fair
volunteers: charity, help, spare
teaching a child to share: toy, turn, praise
a family reunion: cousin, photo, barbecue
""")

HELD_OUT = read_topics("""
[music]
tuning a guitar: peg, fret, strum
a church choir: soprano, hymn, harmony
practising the piano each day: keyboard, tempo, recital
jazz: trumpet, swing, solo
singing a lullaby: cradle, melody, hum
a street drummer: beat, sticks, crowd
composing a film score: orchestra, violin, scene
old vinyl discs: needle, sleeve, turntable
dancing the waltz: partner, ballroom, twirl
[games]
opening a chess game: pawn, bishop, centre
a set of dominoes: tile, dots, tip
solving a crossword: clue, synonym, grid
jigsaw puzzles: piece, frame, jumble
inventing a board game: dice, token, spinner
hide and seek: cupboard, count, giggle
flying a kite: breeze, spool, meadow
juggling three balls: throw, catch, clown
a treasure hunt: pirate, chest, riddle
[clothes]
knitting a scarf: wool, needles, fringe
a raincoat: hood, sleeve, puddle
ironing a shirt: collar, wrinkle, hanger
blue jeans: denim, rivet, waist
a straw hat: brim, picnic, weave
sewing on a button: cuff, pins, fabric
woollen jumpers: sheep, moth, itchy
polishing leather sandals: buckle, rag, shine
a wedding dress: lace, veil, tailor
[pets]
training a puppy: leash, treat, sit
a lazy cat: whiskers, sofa, purr
feeding goldfish: tank, flakes, pebbles
guinea pigs: hay, cage, squeak
grooming a pony: mane, stable, hoof
an old tortoise: shell, reptile, century
adopting a dog from a shelter: kennel, vet, wag
walking the neighbour's greyhound: collar, park, sprint
a rabbit hutch: straw, burrow, bunny
[city]
crossing a busy street: traffic, pavement, pedestrian
a suspension bridge: steel, span, anchor
feeding pigeons on the plaza: crumbs, fountain, bench
skyscrapers: lift, concrete, skyline
riding the underground: platform, escalator, carriage
the town fire station: hose, siren, alarm
waiting for a late tram: rails, umbrella, schedule
cycling to the office: rack, brakes, commuter
a rooftop cinema: projector, popcorn, sunset
""")
