r"""From a conversation to tokens, and which of them a model is to learn: the assistant's.

with a chat template       as it renders the turns; {% generation %} marks, where it has them, say
                           what counts, else each response with the end of its turn
without one                turn \n turn \n response <eos>
prompt and completion      the two texts as they are, then <eos>, whatever the template

The text is tokenised as a whole, and a token counts if a character of it lies in a response.
"""

import re
from typing import Any, NamedTuple

from gradmimic.data.instructions import ASSISTANT, Instruction
from gradmimic.data.instructions.reasons import ALL_CUT, BAD_TEMPLATE
from gradmimic.errors import ConfigError

Spans = list[tuple[int, int]]  # of characters, from and to

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # the library's own sign of a template's marks


class Tokens(NamedTuple):
    """A sample as a model reads it."""

    ids: list[int]  # [t]
    counted: list[bool]  # [t], those whose prediction is judged; never the first
    cut: bool  # at max_length


class Encoder:
    """Makes tokens of samples.

    Args:
        tokenizer: of the ``transformers`` library, a fast one.
        max_length: how many tokens are kept.

    Attributes:
        missed: whether turns had to be put together without a template.

    Raises:
        ConfigError: the tokenizer cannot tell which characters its tokens are of.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"The tokenizer {type(tokenizer).__name__} is a slow one, which does not tell the "
                "characters of its tokens. Give --tokenizer, one with a tokenizer.json."
            )
        self._tokenizer, self._max_length = tokenizer, max_length
        self._eos = tokenizer.eos_token or ""
        self._templated = tokenizer.chat_template is not None
        self.missed = False
        self._marked = self._templated and bool(_MARKED.search(tokenizer.get_chat_template()))

    def __call__(self, sample: Instruction) -> Tokens | str:
        """Return the tokens of a sample, or why there are none."""
        self.missed |= not self._templated and not sample.literal
        try:
            if sample.literal or not self._templated:
                ids, counted = self._of_text(*self._plain(sample), special=True)
            else:
                found = self._by_turns(sample)  # those of a template with marks are found as well
                if found is None:
                    return BAD_TEMPLATE
                if self._marked:
                    ids, counted = self._marked_by_template(sample)
                else:
                    ids, counted = self._of_text(*found, special=False)
        except Exception:  # a template may refuse anything, in words of its own
            if sample.literal or not self._templated:
                raise
            return BAD_TEMPLATE
        cut = len(ids) > self._max_length
        if cut:
            ids, counted = ids[: self._max_length], counted[: self._max_length]
        counted[:1] = [False] * len(counted[:1])  # nothing predicts the first token
        return Tokens(ids, counted, cut) if any(counted) else ALL_CUT

    def _plain(self, sample: Instruction) -> tuple[str, Spans]:
        """Put the turns one behind the other."""
        text, spans = "", []
        for place, turn in enumerate(sample.messages):
            if place and not sample.literal:
                text += "\n"
            start, text = len(text), text + turn.content
            if turn.role == ASSISTANT:
                text += self._eos
                spans.append((start, len(text)))
        return text, spans

    def _by_turns(self, sample: Instruction) -> tuple[str, Spans] | None:
        """Render a conversation, and find its responses again; None where they are not there."""
        turns = [{"role": turn.role, "content": turn.content} for turn in sample.messages]
        text = self._rendered(turns)
        last = turns[-1]["content"].strip()
        end = text[text.rindex(last) + len(last) :].rstrip()  # what ends the last turn
        ends = end, *end.split()[:1]  # and others, which an end of the text may not follow
        spans: Spans = []
        for place, turn in enumerate(turns):
            if turn["role"] != ASSISTANT:
                continue
            before = self._rendered(turns[:place], add_generation_prompt=True) if place else ""
            shared = _shared(before, text)
            content = turn["content"].strip()
            at = text.find(content, shared)
            if at < 0:
                return None
            stop = at + len(content)
            stop += next((len(own) for own in ends if text.startswith(own, stop)), 0)
            spans.append((shared if shared == len(before) else at, stop))
        return text, spans

    def _rendered(self, turns: list[dict[str, str]], **how: Any) -> str:
        text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, **how)
        return text

    def _marked_by_template(self, sample: Instruction) -> tuple[list[int], list[bool]]:
        """Let the template say which tokens are the assistant's."""
        turns = [{"role": turn.role, "content": turn.content} for turn in sample.messages]
        found = self._tokenizer.apply_chat_template(
            turns, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), [bool(own) for own in found["assistant_masks"]]

    def _of_text(self, text: str, spans: Spans, *, special: bool) -> tuple[list[int], list[bool]]:
        """Tokenise a text; say which tokens lie in spans."""
        found = self._tokenizer(
            text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
        counted = []
        at = 0
        for start, stop in found["offset_mapping"]:
            while at < len(spans) and spans[at][1] <= start:
                at += 1
            counted.append(at < len(spans) and start < stop and stop > spans[at][0])
        return list(found["input_ids"]), counted


def _shared(first: str, second: str) -> int:
    """Return how many characters two texts share at their beginning."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
