"""Why a row of instructions is left out, in the words that a person reads at the end of a run."""

MAX_LINE = 64_000_000  # bytes of a line of JSON

NO_OBJECT = "its line holds no JSON object"
LONG_LINE = f"its line has more than {MAX_LINE:,} bytes"
NO_SHAPE = "its columns are of no shape that is known"
NO_TURNS = "its turns are no list of turns"
BAD_ROLE = "a turn is of an unknown role"
BAD_TEXT = "a text is missing, or is none"
NO_RESPONSE = "there is no turn of the assistant"
EMPTY_RESPONSE = "a response is empty"
EMPTY_PROMPT = "the prompt is empty"
NO_ID = "no id"
REPEATED = "its id stands in an earlier row"
BAD_TEMPLATE = "the chat template cannot show its turns"
ALL_CUT = "no token of a response is within max_length"

DAMAGED = "is cut short or damaged"
