"""Instructions with responses: Alpaca, chat and prompt–completion data, in one form."""

from gradmimic.data.instructions.open import open_instructions
from gradmimic.data.instructions.sample import ASSISTANT, Instruction, Message
from gradmimic.data.instructions.shapes import as_instruction
from gradmimic.data.instructions.source import InstructionSource

__all__ = [
    "ASSISTANT",
    "Instruction",
    "InstructionSource",
    "Message",
    "as_instruction",
    "open_instructions",
]
