"""The main job: train a reference, train plain and re-weighted, find the bad samples, report."""
