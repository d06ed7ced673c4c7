"""The words that skills and stories draw from. Lists only; their order is part of the seed."""


def words(text: str) -> list[str]:
    return text.split()


NAMES = words("""
Ada Alan Alice Amir Anna Anton Aria Ben Bella Boris Bruno Carla Carlos Cleo Clara Daan Dana David Diego Dora Edgar
Ella Elias Emma Erik Eva Felix Finn Flora Frida Gino Greta Hana Hannah Hugo Ida Igor Ines Iris Ivan Jack James Jana
Jonas Julia Kai Karim Kenji Kira Lara Lars Laura Lena Leo Liam Lina Louis Lucy Luis Maja Marco Maria Marie Mark Marta
Max Mei Mia Milo Mina Mira Mona Nadia Nina Noah Nora Oliver Olga Omar Oscar Otto Paula Pedro Peter Petra Pia Quinn
Ravi Rita Robin Rosa Ruby Ruth Sam Sara Selma Simon Sofia Stella Sven Tara Theo Tim Tom Uma Vera Victor Wanda Willy
Xenia Yara Yuki Zara Zoe
""")

ANIMALS = words("""
ant badger bat bear beaver bee bird butterfly cat chicken cow crab crow deer dog dolphin donkey dove duck eagle elephant
falcon fish fox frog giraffe goat goose hamster hare hawk hedgehog horse kitten koala lamb lion lizard llama mole monkey
moose mouse octopus otter owl panda parrot penguin pig pony puppy rabbit raccoon rat raven robin seal shark sheep snail
snake sparrow spider squirrel swan tiger toad turtle whale wolf worm zebra
""")

THINGS = words("""
acorn anchor apple arrow bag ball balloon banana basket bell bench bicycle blanket boat book boot bottle bowl box bread
bridge broom brush bucket button cake camera candle cap car card carpet castle chair cheese cherry clock cloud coat coin
comb cookie cup curtain desk diamond dish door drum egg engine envelope fan feather fence flag flower flute fork
fountain garden gate glass glove guitar hammer hat house island jacket jar kettle key kite knife ladder lake lamp leaf
lemon letter map mirror moon mountain mushroom needle nest note ocean onion orange oven paper pear pebble pen pencil
penny piano picture pillow pipe plane plate pocket potato puzzle radio rain ring river road robot rock rocket roof rope
rose sail sand scarf seed shell ship shirt shoe shovel sock soup spoon stamp star stone storm stove street sugar sun
sweater table tent thread ticket tomato tower toy train tree trumpet tunnel umbrella vase violin wagon wall wallet watch
water wheel whistle wind window wire
""")

ADJECTIVES = words("""
ancient angry big bitter black blue bold brave bright broken brown busy calm careful cheap clean clever cold cool crazy
curious dark deep dirty dry dusty early easy empty fair famous fast fat fine flat fresh friendly full funny gentle giant
glad golden good gray great green happy hard heavy high honest hot huge hungry kind large late lazy light little lonely
long loud lovely low lucky magic modern narrow neat new nice noisy odd old orange pale pink plain polite poor pretty
proud purple quick quiet rare red rich rough round sad safe salty sharp shiny short shy silent silly silver simple slow
small smart smooth soft sour special square steep strange strong sunny sweet tall tender thick thin tidy tiny tired warm
weak wet white wide wild wise wooden yellow young
""")

VERBS = words("""
answer ask bake bring build buy call carry catch choose clean climb close collect cook count cover cut dance dig draw
drink drive eat explain fill find fix fly fold follow get give grow hear help hide hold hunt jump keep kick know learn
leave lift like listen look love make measure meet mend mix move need open order paint plant play pull push put reach
read ride ring run save say see sell send share show sing sit sleep smell solve speak stand start stop study swim take
talk taste teach tell think throw touch train travel try turn use visit wait walk want wash watch wear win write
""")

TOPICS = words("""
algebra architecture art astronomy baking ballet banking baseball biology boxing chemistry chess climate coding
computers cooking cricket databases democracy diving drawing ecology economics electricity energy engineering
evolution farming fashion finance fishing football gardening genetics geography geology geometry grammar gravity
history insurance internet jazz justice knitting language law literature logic magnets marketing mathematics
medicine memory mining money museums music networks nutrition opera painting philosophy photography physics poetry
politics pottery programming psychology railways recycling religion robotics sailing science sculpture skiing
sleep sociology software space sports statistics surfing taxes tennis theatre time trade traffic travel vaccines
volcanoes weather weaving yoga
""")

NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
