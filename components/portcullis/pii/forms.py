"""What dates, ages, post codes and street addresses look like as a whole cell: patterns for Arrow, which runs RE2.

Each matches a cell that was trimmed and folded. They are wide where only the column's name makes them count.
"""

_MONTH = (
    "jan(?:uary|uar|vier|uari)?|janner|jänner|ene(?:ro)?|gen(?:naio)?|janeiro|feb(?:ruary|ruar|ruari|rero|braio)?"
    "|f[eé]v(?:rier|ereiro)?|mar(?:ch|s|zo|ço)?|m[aä]r(?:z)?|maart|mrt|apr(?:il|ile)?|abr(?:il)?|avr(?:il)?|ma[iyj]o?"
    "|mei|mag(?:gio)?|june?|juni|juin|junio|junho|giu(?:gno)?|july?|juli|juil(?:let)?|julio|julho|lug(?:lio)?"
    "|aug(?:ust|ustus)?|ao[uû]t|ago(?:sto)?|sept?(?:ember|embre|iembre)?|set(?:tembre|embro)?|o[ck]t(?:ober|obre)?"
    "|ott(?:obre)?|out(?:ubro)?|nov(?:ember|embre|iembre|embro)?|de[czs](?:ember|embre|embro)?|dic(?:embre|iembre)?"
    "|d[eé]c(?:embre)?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_NUMBER = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:1[89]|20)\d\d"
_SHORT_YEAR = rf"(?:{_YEAR}|'?\d\d)"
_CLOCK = r"\d{1,2}[:.]\d\d(?:[:.]\d\d(?:[.,]\d{1,9})?)?(?: ?[AaPp][Mm])?"
_TIME = rf"(?:[T ,]{{1,2}}{_CLOCK}(?: ?(?:Z|UTC|[+-]\d\d(?::?\d\d)?))?)?"
# A bare number is one only in a column that is called a date, or among others.
_COMPACT = r"(?:1[89]|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_NUMERIC = "|".join(
    order
    for mark in ("-", "/", r"\.", " ")
    for order in (
        rf"{_YEAR}{mark}{_NUMBER}{mark}{_DAY}",
        rf"{_DAY}{mark}{_NUMBER}{mark}{_SHORT_YEAR}",
        rf"{_NUMBER}{mark}{_DAY}{mark}{_SHORT_YEAR}",
    )
)

# ISO 8601; year, day or month first; with a month's name; a month and a year.
DATE = (
    rf"^(?:{_NUMERIC}|{_COMPACT}"
    rf"|{_DAY}(?:\.|st|nd|rd|th)?[- ](?:de |of )?(?i:{_MONTH})\.?,?[- ](?:de )?{_SHORT_YEAR}"
    rf"|(?i:{_MONTH})\.?[- ]{_DAY}(?:st|nd|rd|th)?,?[- ]{_SHORT_YEAR}"
    rf"|{_YEAR}[- ](?i:{_MONTH})[- ]{_DAY}"
    rf"|(?i:{_MONTH})\.?,?[- /]{_YEAR}|{_NUMBER}[/.-]{_YEAR}|{_YEAR}-(?:0[1-9]|1[0-2])){_TIME}$"
)
COMPACT_DATE = rf"^{_COMPACT}$"

_YEARS = "years?|yrs?|y|y/?o|y\\.o\\.|jahre?|ans|años|anni|anos|jaar|lat"
AGE = rf"^(?:\d|[1-9]\d|1[01]\d|120)(?:\.0)?(?i:[ -]?(?:{_YEARS})(?:[ -]old)?)?$"

_STATES = (
    "A[KLRZ]|C[AOT]|D[CE]|FL|G[AU]|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AIT]"
    "|W[AIVY]"
)
STATE = rf"^(?:{_STATES})$"
# Of the United Kingdom, Canada and the Netherlands, ZIP+4, and ZIP after its state.
POSTCODE = (
    r"^(?:(?i:[A-PR-UWYZ][A-HK-Y]?\d[\dA-HJKPSTUW]? ?\d[ABD-HJLNP-UW-Z]{2})|(?i:[ABCEGHJ-NPRSTVXY]\d[A-Z] ?\d[A-Z]\d)"
    rf"|[1-9]\d{{3}} [A-Z]{{2}}|\d{{5}}-\d{{4}}|(?:{_STATES}) \d{{5}}(?:-\d{{4}})?)$"
)
ZIP = r"^\d{5}(?:-\d{4})?$"
# What may be one in a column that is called so.
ANY_POSTCODE = rf"{POSTCODE}|^(?:[A-Za-z]{{1,3}}[- ]?)?\d{{2,6}}(?:[- ]\d{{2,4}})?$"

_STREET_WORDS = (
    "street|st|road|rd|avenue|ave?|boulevard|blvd|lane|ln|drive|dr|court|ct|square|sq|place|pl|terrace|way|highway|hwy"
    "|parkway|pkwy|circle|cir|crescent|close|grove|alley|row|mews|trail|turnpike|rue|chemin|chaussee|chaussée|allée"
    "|allee|impasse|quai|route|cours|calle|avenida|avda|plaza|paseo|carrer|camino|carretera|rua|travessa|praça|largo"
    "|via|viale|vicolo|piazza|piazzale|corso|strada|contrada|ulica|ul|aleja|al|plac|osiedle|os|ulice|namesti|náměstí"
    "|utca|u|út|tér|körút|köz|krt|sokak|caddesi|cad|mahallesi|улица|ул|проспект|переулок|пр|jalan|jl|platz|weg|ring"
    "|ufer|damm|straat|laan|plein|gade|gate|gata|vei|veien|vej|väg|vägen|tie|katu|strasse|straße|str|ulitsa|οδος|οδός"
    "|apt|apartment|suite|unit|floor|building|bldg|flat|etage|stiege"
)
_STREET_ENDINGS = (
    "stra(?:ss|ß)e|str|gasse|allee|platz|weg|ring|damm|ufer|straat|laan|plein|gracht|kade|dijk|singel|steeg|dreef|gade"
    "|vej|vejen|stræde|gata|gaten|gate|vei|veien|väg|vägen|gränd|katu|kuja|polku|tie|puisto|street|road|lane"
)
_HOUSE_NUMBER = r"\d{1,6} ?[A-Za-z]?(?:[-/]\d{1,5}[A-Za-z]?)?"
# A word for a street beside a house number; a post office box.
STREET_ADDRESS = (
    rf"(?is)^(?:.*\b)?(?:\d.*(?:^|[^\pL])(?:{_STREET_WORDS})(?:[^\pL]|$)|(?:{_STREET_WORDS})[^\pL].*\d"
    rf"|\pL+(?:{_STREET_ENDINGS})[. ,]+{_HOUSE_NUMBER}(?:[^\pL\d]|$)"
    rf"|{_HOUSE_NUMBER},? \pL+(?:{_STREET_ENDINGS})(?:[^\pL]|$)"
    r"|p\.? ?o\.? ?box \d|postfach \d|bp \d|apartado \d|(?:psc|unit) \d{1,5},? box \d)"
)
# What may be one in a column that is called so: words and a number.
ANY_STREET_ADDRESS = r"(?s)^(?:.*\pL{2}.*\d|.*\d.*\pL{2}).*$"
LONGEST_ADDRESS = 200
