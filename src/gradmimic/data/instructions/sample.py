"""One sample of supervised fine-tuning: a conversation whose assistant turns are to be learned."""

from dataclasses import dataclass
from typing import NamedTuple

ASSISTANT = "assistant"


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str


@dataclass(frozen=True)
class Instruction:
    """A sample: what is asked, and the responses that a model is to learn.

    Args:
        sample_id: unique in its data set.
        messages: the turns in order, with at least one of the assistant.
        literal: whether the two messages are a plain prompt and completion, which are put one
            behind the other as they are, without any template.

    Example:
        >>> one = Instruction("0", (Message("user", "2 + 2?"), Message("assistant", "4")))
        >>> one.prompt, one.response
        ('2 + 2?', '4')
    """

    sample_id: str
    messages: tuple[Message, ...]
    literal: bool = False

    @property
    def prompt(self) -> str:
        """Return what comes before the last response, for a person to read."""
        *before, _ = self.messages
        if len(before) == 1:
            return before[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in before)

    @property
    def response(self) -> str:
        """Return the last response."""
        return self.messages[-1].content
