"""One file per framework, the only files that import it."""
