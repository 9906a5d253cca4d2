"""The vocabulary of the made-up documents: word lists, syllables, and the words made of them.

Knows words only; refuses to know fields, values or questions.

Try it: `python -c "import random; from zopilot_gpu.demo import words; print(words.made_up(random.Random(1)))"`.
"""

import random


def listed(text: str, separator: str = " ") -> list[str]:
    """The entries of a list that is written as one text."""
    return text.split(separator)


FIRST_NAMES = listed(
    "Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Karin Liam Maria Nils Olga Pavel Rosa Samir Tina Ursula "
    "Viktor Wendy Xavier Yara Zoe Amir Bianca Chen Diego Emma Fatima Georg Hana Ivan Julia Kofi Lena Marco Nadia Oscar "
    "Priya Ravi Sofia Tomas Uma Vera Walter Yusuf Zelda Agnes Björn Chloé Jürgen Söhnke Łukasz Øyvind Núria Zoë Ana João"
)

LAST_NAMES = listed(
    "Smith Keller Novak Rossi Tanaka Silva Weber Johnson Fischer Moreau Kowalski Hansen Okafor Patel Nguyen Garcia Brown "
    "Schmidt Dubois Larsen Ivanov Costa Meyer Walker Young Baker Stone Hill Wood Reed Price Cole Hunt Lane Marsh Frost "
    "Winter Sommer Berg Stein Holm Lund Vogel Wolf Adler König Müller Peña Sørensen Björk Gómez Straße Łoś Dvořák Gül"
)

SUFFIXES = listed(
    "Ltd|Ltd.|GmbH|Inc.|LLC|AG|S.A.|B.V.|SARL|Group|Holding|& Sons|& Co.|Partners|Supplies|Logistics|Trading|Services|"
    "Systems|Foods|Motors|Studio|Labs|Consulting|Industries|Works|Media|Energy|Office|Bank|Hotel|Clinic|Market|Paper",
    "|",
)

CITIES = listed(
    "Berlin|Paris|London|Madrid|Vienna|Zürich|Oslo|Porto|Lyon|Turin|Leeds|Austin|Boston|Denver|New York|San Diego|"
    "Hong Kong|Kyoto|Lima|Cairo|Mumbai|Tallinn|Riga|Malmö|Köln|Graz|Basel|Ghent|Cork|Bath|Łódź|Århus",
    "|",
)

COUNTRIES = listed(
    "Germany|France|United Kingdom|Spain|Austria|Switzerland|Norway|Portugal|Italy|United States|Japan|Peru|Egypt|India|"
    "Estonia|Latvia|Sweden|Belgium|Ireland|Poland|Denmark|Canada|Brazil|Kenya|DE|FR|GB|ES|AT|CH|NO|PT|IT|US|JP|IN|SE",
    "|",
)

STREETS = listed("Main High Park Oak Mill Church Station River Lake Garden Market Bridge King Queen School North Hill Castle")

MONTHS = listed("January February March April May June July August September October November December")

CURRENCIES = listed("EUR USD GBP CHF SEK NOK DKK PLN CZK JPY CAD AUD INR BRL")

STATUSES = listed("open paid pending overdue draft approved rejected shipped delivered cancelled closed partial active expired")

UNITS = listed("pcs kg m hours days boxes litres km sets units pallets licences")

GOODS = listed(
    "paper toner desk chair lamp cable laptop monitor keyboard printer coffee tea water sugar flour bread cheese apples "
    "bolts screws paint brush pipe valve pump motor filter battery sensor camera phone tablet router switch server rack "
    "consulting training cleaning repair transport storage hosting support design printing catering translation rent "
    "taxi flight train hotel parking fuel lunch dinner breakfast tickets books gloves boots helmets uniforms"
)

# Words for keys that no document kind knows, and for free text.
COMMON = listed(
    "able account action age air alarm alpha amber angle animal answer apple area arm arrow art atlas autumn award axis badge "
    "ball band bar barn base basin batch beam bean bear bell belt bench beta bike bill bird blade block blue board boat body "
    "bond bone bonus book boot border bottle bowl box branch brand brass breed brick bridge bright brown brush bucket budget "
    "build bulk bundle bus button cabin cable cake call camp canal candle canvas cap card cargo carpet case cash castle cat "
    "cave cedar cell center chain chair chalk chance change channel chart check chest chief child choice circle city claim "
    "class clay clear clerk clock cloud club coach coal coast coat code coin cold color column comet comment common copper "
    "copy coral core corn corner cotton count course court cover craft crane cream credit crew crop cross crown cube cup "
    "current curve cycle daily dance data dawn day deal deck deep deer degree delta depth desert detail device dial diamond "
    "dinner dish dock dog dollar door double draft dragon draw dream dress drift drink drive drop drum dry duck dust duty "
    "eagle early earth east echo edge effort egg elbow engine entry equal error event exact exit extra eye fabric face factor "
    "fair fall family farm fast feather feed fence fever fiber field figure file film final finger fire first fish flag flame "
    "flat fleet flight floor flow flower foam focus fog folder food foot forest fork form fort forward fox frame free fresh "
    "frog front fruit full fund game gap garage garden gas gate gear gift glass globe goal gold grade grain grand grape "
    "grass gravel green grid ground group growth guard guest guide gulf habit hall hammer hand harbor hat head health heart "
    "heat height herb hero hill hold hole home honey hook horn horse hour house human ice icon idea image inch index ink "
    "inner input iron island issue ivory jacket jar jet jewel job joint journal juice jump junior key kind kit kitchen "
    "knee knife knot label lake lamp land large laser last layer leader leaf leather left legal lemon length lesson letter "
    "level light limit line linen lion list little load loan local lock log long loop lot lower lucky lunar machine magic "
    "mail main major map margin mark mask mast match material meal measure medal medium memory menu metal meter middle mile "
    "milk mill mind mine minor mint minute mirror mode model moon motor mount mouse mouth music nail name narrow nest net "
    "night noise noon north nose note novel nurse oak ocean offer office oil olive onion open option orange orbit organ "
    "other outer output oven owner oxygen pack page paint pair palace palm panel paper parcel park part party path pattern "
    "peak pearl pen pencil people pepper phase phone photo piano picture pilot pine pipe pitch place plan planet plant plate "
    "pocket point pole pond pool port post pot powder power press prime print prize proof public pulse pump pupil purple "
    "quality quarter queen quick quiet rabbit race radar radio rail rain range rank rapid rate ratio raw reach ready reason "
    "record red reef region rest result ribbon rice right ring river road robot rock roll roof room root rope rose rough "
    "round route royal rubber rule salad salt sample sand scale scene school score screen sea seal seat second seed senior "
    "shade shape share sharp sheet shelf shell shift ship shirt shoe shop short side sign signal silk silver single site "
    "size skill skin sky slice small smoke smooth snow soap soft soil solar solid song sound source south space spare spark "
    "speed spice spot spring square staff stage stair stamp star start state station steam steel step stick stock stone "
    "storm story strip strong studio style sugar suite summer sun surface swan sweet system table tail tank target task "
    "team temple tent term test text thick thread ticket tide tiger timber time tin title token tone tool top torch total "
    "touch tower town track trade trail train tray tree trial tribe trip truck trust tube tunnel turn twin type under union "
    "unit upper valley value vault vector velvet vessel view village violet voice volume wagon wall warm watch water wave "
    "wax weather week weight west wheel white wide wild window wing winter wire wolf wood wool word work world yard year "
    "yellow young zebra zero zone"
)

_ONSETS = listed("b br c ch cl d dr f fl g gr h j k kl l m n p pl pr qu r s sh sk sl st str t th tr v w x y z zw")
_VOWELS = listed("a e i o u ai au ea ee ei ie oa oo ou y")
_CODAS = ["", "", "", *listed("b ck d g k l ll m n nd ng nt p r rd rk rn s sk st t th x z")]


def made_up(rng: random.Random) -> str:
    """A lower-case word of one to three syllables that no list holds."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 3))))


def any_word(rng: random.Random) -> str:
    """A lower-case word: a common one, one of trade, or a made-up one."""
    roll = rng.random()
    if roll < 0.45:
        return rng.choice(COMMON)
    return rng.choice(GOODS) if roll < 0.55 else made_up(rng)


# Code points outside ASCII that values hold: most are spelt in bytes by the tokenizer.
_ALPHABETS = (
    (0x3B1, 0x3C9), (0x391, 0x3A1), (0x430, 0x44F), (0x410, 0x42F), (0x4E00, 0x9FA5), (0x3041, 0x3090), (0x30A1, 0x30F0),
    (0xAC00, 0xD7A0), (0x5D0, 0x5EA), (0x627, 0x63A), (0x905, 0x939), (0xE01, 0xE2E), (0xC0, 0xFF), (0x100, 0x17F),
    (0x1F300, 0x1F64F), (0x1F680, 0x1F6C0), (0x2190, 0x2193), (0x20A0, 0x20BF), (0xA1, 0xBF), (0x2013, 0x201E),
)  # fmt: skip


def foreign(rng: random.Random) -> str:
    """A word in another alphabet, with rare accents, or of signs."""
    first, last = rng.choice(_ALPHABETS)
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))
