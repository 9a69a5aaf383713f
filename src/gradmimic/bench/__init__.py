"""What every engine costs on this machine, and how near it comes to the oracle."""
