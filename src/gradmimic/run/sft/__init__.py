"""The job on instructions and their responses: ``--task sft``."""
