"""The jobs on pairs of pictures and captions: ``--task clip``."""
