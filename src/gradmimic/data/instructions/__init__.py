"""Instructions with responses: Alpaca, chat and prompt–completion data, in one form."""

from gradmimic.data.instructions.sample import ASSISTANT, Instruction, Message

__all__ = ["ASSISTANT", "Instruction", "Message"]
