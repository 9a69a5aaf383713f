"""Charts: each a file that states what is counted, and builds a Vega-Lite specification."""
