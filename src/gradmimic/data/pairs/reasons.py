"""Why a sample is left out, in the words that a person reads at the end of a run."""

MAX_BYTES = 64_000_000  # of a picture's file; what a camera writes has a tenth of it
MAX_TEXT = 1_000_000  # bytes of a .txt or a .json
MAX_CAPTION = 10_000  # characters; CLIP reads 77 tokens, so this long it is a page, no caption
MAX_NAME = 1_000  # characters of a name in an archive, or of a sample id
MAX_RATIO = 100  # scaled to 224 pixels on the short side, a picture this long has 5 million

NO_PICTURE = "no picture"
NO_CAPTION = "no caption"
NO_ID = "no id"
SEVERAL = "several files of one name and kind"
UNSAFE_NAME = "an unsafe name in the archive"
NOT_A_FILE = "a link or a device in place of a file"
TOO_LARGE = "one of its files is too large"
CUT = "the shard ends within it"
BAD_JSON = "its .json holds no JSON object"
BAD_TEXT = "the caption is not UTF-8"
EMPTY_CAPTION = "the caption is empty"
LONG_CAPTION = f"the caption has more than {MAX_CAPTION:,} characters"
UNDECODABLE = "the picture cannot be decoded"
TOO_MANY_PIXELS = "the picture has too many pixels"
TOO_NARROW = f"the picture is more than {MAX_RATIO} times as long as it is wide"
UNPREPARED = "the model's transform fails on the picture"
REPEATED = "its id stands in its shard already"
ELSEWHERE = "its id stands in an earlier shard"
OUTSIDE = "the picture's path leads out of the data's folder"
NO_FILE = "no file where the picture should be"
NOT_ASKED = "not asked for"

NOT_OPENED = "cannot be opened"
NO_ARCHIVE = "is no tar archive"
DAMAGED = "is cut short or damaged"
