"""English word lists by which phrases are found (`phrases`): what a word may be where no tagger says it."""


def _forms(bases: str) -> frozenset[str]:
    """Verbs with their third person."""
    forms = set()
    for base in bases.split():
        ending = "es" if base.endswith(("s", "sh", "ch", "x", "o")) else "s"
        forms |= {base, base[:-1] + "ies" if base[-1] == "y" and base[-2] not in "aeou" else base + ending}
    return frozenset(forms)


DETERMINERS = frozenset(
    """
a an the this these those his her its their my your our some any several many few another other each every both all most
various multiple numerous more different two three four five six seven eight nine ten eleven twelve dozen dozens hundreds
""".split()
)

PRONOUNS = frozenset(
    """
i you he she it we they me him us them who whom what which that there here let one everyone someone somebody anyone
everybody nobody everything something nothing anything himself herself itself themselves others
""".split()
)

STOP = PRONOUNS | frozenset(
    """
about above across after against ago along alongside also although am among amid and apart are around as at atop away
back be because been before behind being below beneath beside besides between beyond but by can cannot could despite did do
does done down due during either else etc even ever for forth from further had has have having how however if in inside
instead into is just least less like likely may maybe might more much must near nearby neither no none nor not now of off
often on once only onto or out outside over own per perhaps quite rather same seem seems seemed shall should since so still
such than then though through throughout thus to today together too toward towards under underneath unlike until up upon
upward versus very via was well were when where whereas whether while whose why will with within without would yes yet zero
first second third fourth last next left right front ahead aside overall almost already always never indeed far farther close closer
sometimes somewhat meanwhile while including based according despite forward backward downward apart long-term later soon
ones earlier afterwards past throughout plus minus aboard beyond
""".split()
)

QUANTITIES = frozenset(
    """
group groups pair pairs bunch set sets variety number row rows series couple lot lots piece pieces collection array range
mix kind kinds type types sort side part top bottom middle center centre edge corner rest majority assortment sense touch
""".split()
)

VERBS = _forms("""
accompany add allow appear approach arrange attach balance be become begin belong blow bring build capture carry cast catch
chase chat clap climb come complement consist contain contribute convey cook create cross crouch cut dangle decorate depict
describe display dominate drink drive eat emphasize enhance enjoy evoke examine extend fall feature feed fill find float
fly focus follow gather gaze get give go graze greet grow hang have help highlight hit hold illuminate imply include indicate
involve jump keep kick kneel lay lead lean leap let lie line listen live look lounge make move occupy offer open operate
overlook paddle pass perch perform pet place play point portray pose prepare present produce provide pull push put raise reach
read relax represent resemble rest reveal ride rise roll run say see seem sell serve share show sit sleep smile splash spread
stand stare start stay stop stretch suggest support surround swim take talk tell throw toss touch travel try turn use
wait walk watch wear work
""") | frozenset(
    """
has is are was were ate began blew brought came caught drew drove fell flew found gave got grew held kept knelt laid led left
let lay made ran rode rose said sat saw sold stood swam took threw wore went done
""".split()
)

PARTICIPLES = frozenset(
    """
worn seen shown held taken made set drawn hung grown thrown driven given built lit spread known written broken frozen drunk
""".split()
)

ING_ED_NOUNS = frozenset(
    """
building ceiling clothing painting railing awning swing string wing earring icing topping crossing dressing wedding bedding
evening morning king ring thing being lightning herring pudding dumpling duckling stuffing frosting seasoning ping lighting
parking living dining cutting baking washing swimming frying shopping rocking landing sewing vending boxing bowling opening
buildings paintings railings wings rings earrings toppings dumplings strings red bed shed sled seed weed reed moped bobsled
seabed flowerbed shred tweed steed hundred
""".split()
)

LY_NOUNS = frozenset(
    "fly butterfly dragonfly lily jelly belly family assembly bully doily trolley ally curly friendly".split()
)

ADJECTIVES = frozenset(
    """
red blue green yellow orange purple pink brown black white grey gray golden silver beige tan teal maroon turquoise navy dark
bright pale vivid colorful colourful big large small tiny little huge tall short long wide narrow thick thin high low
deep old young new elderly modern vintage ancient rustic antique adult male female wooden metallic plastic brick
stone steel glassy grassy sandy snowy rocky muddy dusty rainy sunny cloudy foggy misty overcast dirty clean wet dry fresh ripe
raw hot cold warm cool icy soft hard smooth rough fluffy furry hairy shiny glossy wooly empty full open closed busy quiet calm
peaceful cozy comfortable lively happy sad joyful angry playful curious serious nice good great fine beautiful pretty lovely
elegant stylish simple plain ornate fancy clear blurry visible alone alive asleep awake available present similar same unique
single double main major minor whole entire round square rectangular circular oval flat curved straight sharp pointed upright
outdoor indoor outside inside urban rural natural wild domestic electric professional casual formal heavy lush dense bare
barefoot upper lower front rear back left right central distant nearby close ready able possible certain likely real actual
various different other several large-scale black-and-white well-lit in-flight overhead underwater dramatic stainless
""".split()
) - {"back", "brick", "stone", "steel", "plastic", "square"}

ADJECTIVE_ENDINGS = ("ful", "ous", "ible", "able", "less", "ive", "ish", "some", "ical", "ic", "ial", "ient", "est")
ABSTRACT_ENDINGS = (
    "ness",
    "tion",
    "sion",
    "ity",
    "ism",
    "ment",
    "ance",
    "ence",
    "ship",
    "phere",
    "hood",
    "ology",
    "ing",
)
SUFFIX_NOUNS = ING_ED_NOUNS | frozenset(
    """
vegetable cable table constable timetable turntable olive beehive drive locomotive native detective starfish goldfish dish
radish fish satellite picnic fabric plastic traffic mosaic garlic mechanic ceramic music comic forest chest nest vest harvest
guest priest station television cushion decoration carnation city pavement apartment monument ornament instrument garment
equipment fence entrance appliance ambulance audience conveyance battleship spaceship steamship warship robe blanket
vegetables tables neckpiece motorcycle reflection fortification university cement pigment parchment relic aquatic
""".split()
)

NOT_THINGS = frozenset(
    """
image picture photo photograph photography scene view background foreground setting atmosphere ambience ambiance mood feel
feeling sense vibe impression moment time day night morning evening afternoon season weather space area place location spot
position way direction distance middle center centre top bottom side edge corner end part rest left right front surrounding
environment landscape scenery composition focus subject detail element aspect feature addition variety number color colour
style look appearance design pattern shape size type kind sort example importance fact reason purpose result effect contrast
depth balance beauty charm comfort peace calm nature life world fun joy happiness love interest attention care activity event
task job work play game sport party celebration trip journey vacation travel conversation information departure arrival step
kitchen room bathroom bedroom office park city town village market airport zoo restaurant house home indoors outdoors camera
question answer caption description text content context presence lack order touch glow warmth energy experience opportunity
possibility chance idea theme story culture tradition history bond year hour minute week month base level state condition
use case tennis soccer golf hockey chess trade business daytime nighttime weekend summer winter spring autumn
detail focal mealtime lifestyle relationship friend friendship skill talent style strategy group pair bunch set row series couple lot piece arrangement collection array total none other interaction
movement motion action speed lighting brightness shade tone
""".split()
)

PLURAL_ONLY = frozenset(
    "glasses sunglasses shorts scissors pants jeans trousers goggles clothes binoculars headphones lens".split()
)

IRREGULAR = dict(
    pair.split(":")
    for pair in """
    men:man women:woman children:child people:person feet:foot teeth:tooth geese:goose mice:mouse knives:knife wolves:wolf
    leaves:leaf shelves:shelf loaves:loaf calves:calf halves:half scarves:scarf hooves:hoof wives:wife bookshelves:bookshelf
    firemen:fireman policemen:policeman fishermen:fisherman snowmen:snowman buses:bus gases:gas oxen:ox cookies:cookie
    movies:movie ties:tie pies:pie zombies:zombie selfies:selfie hoodies:hoodie horses:horse houses:house vases:vase
    shoes:shoe axes:axe toes:toe canoes:canoe
    """.split()
)
