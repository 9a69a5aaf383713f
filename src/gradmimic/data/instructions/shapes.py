"""The shapes that instructions come in, found by the names of their columns.

messages        [{role, content}, …]                         chat
conversations   [{from, value}, …]                           chat, as ShareGPT has it
prompt, completion            texts, or lists of turns
instruction, input, output    Alpaca; or instruction, context, response, as Dolly has it
question, answer
system                        beside any of them: what stands before the first turn
"""

import re
from collections.abc import Mapping
from typing import Any

from gradmimic.data.instructions.reasons import (
    BAD_ROLE,
    BAD_TEXT,
    EMPTY_PROMPT,
    EMPTY_RESPONSE,
    NO_RESPONSE,
    NO_SHAPE,
    NO_TURNS,
)
from gradmimic.data.instructions.sample import ASSISTANT, Instruction, Message

COLUMNS = (
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output",
    "context", "response", "question", "answer", "system",
)  # fmt: skip
SHAPES = (
    "messages (role, content), conversations (from, value), prompt and completion, instruction, "
    "input and output, or question and answer"
)
_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": ASSISTANT, "gpt": ASSISTANT,
    "model": ASSISTANT, "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot


class _Unusable(Exception):  # noqa: N818  it never leaves this file
    """Why a row cannot be used."""


def as_instruction(row: Mapping[str, Any], sample_id: str) -> Instruction | str:
    """Make a sample of a row.

    Args:
        row: its cells by column; those that are None count as missing. Where a row has columns of
            several shapes, the first in the list above is taken.
        sample_id: its id.

    Returns:
        The sample, up to its last response; or why there is none.

    Example:
        >>> as_instruction({"question": "2 + 2?", "answer": "4"}, "0").messages
        (Message(role='user', content='2 + 2?'), Message(role='assistant', content='4'))
        >>> as_instruction({"question": "2 + 2?", "answer": " "}, "0")
        'a response is empty'
    """
    try:
        turns, literal = _turns({name: cell for name, cell in row.items() if cell is not None})
        return Instruction(sample_id, _checked(turns), literal)
    except _Unusable as why:
        return str(why)


def _turns(row: Mapping[str, Any]) -> tuple[list[Message], bool]:
    """Return the turns of a row, and whether they are texts to be put together as they are."""
    before = []
    if row.get("system"):
        before = [Message("system", _text(row["system"]))]
    for column in ("messages", "conversations"):
        if column in row:
            return before + _chat(row[column]), False
    if "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            said = [Message("user", _text(prompt)), Message(ASSISTANT, _text(completion))]
            return before + said, not before
        return before + _chat(prompt) + _chat(completion), False
    for asked, beside, said_in in (
        ("instruction", "input", "output"),
        ("instruction", "context", "response"),
        ("question", "", "answer"),
    ):
        if asked in row and said_in in row:
            parts = [_text(row[asked]), _text(row.get(beside, ""))]
            prompt = "\n\n".join(part for part in parts if part.strip())
            return [
                *before,
                Message("user", prompt),
                Message(ASSISTANT, _text(row[said_in])),
            ], False
    raise _Unusable(NO_SHAPE)


def _chat(turns: object) -> list[Message]:
    """Read a list of turns."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Unusable(NO_TURNS)
    found = []
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise _Unusable(BAD_ROLE)
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        found.append(Message(_ROLES[role.lower()], _text(content)))
    return found


def _text(content: object) -> str:
    """Read a text, or a list of pieces that are all texts."""
    if isinstance(content, list):
        pieces = [piece.get("text") if isinstance(piece, dict) else piece for piece in content]
        if pieces and all(isinstance(piece, str) for piece in pieces):
            content = "".join(str(piece) for piece in pieces)
    if not isinstance(content, str) or _SURROGATE.search(content):
        raise _Unusable(BAD_TEXT)
    return content


def _checked(turns: list[Message]) -> tuple[Message, ...]:
    """Cut what comes behind the last response, which nobody learns; refuse what is empty."""
    last = max((at for at, turn in enumerate(turns) if turn.role == ASSISTANT), default=None)
    if last is None:
        raise _Unusable(NO_RESPONSE)
    first = next(at for at, turn in enumerate(turns) if turn.role == ASSISTANT)
    if not any(turn.content.strip() for turn in turns[:first]):
        raise _Unusable(EMPTY_PROMPT)
    if not all(turn.content.strip() for turn in turns if turn.role == ASSISTANT):
        raise _Unusable(EMPTY_RESPONSE)
    return tuple(turns[: last + 1])
