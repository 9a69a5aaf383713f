"""The paper's tables and what else we claim, each rerun by one command."""
