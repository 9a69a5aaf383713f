"""Find wrong labels, given features and labels alone.

    score_i = ℓ_i(0) − ℓ_i(θ_ref) = ln K + ln p_ref(y_i | x_i)

θ_ref is a linear probe that never saw sample i, and K the number of classes. It is the sum of the
mimic scores of a model that walks from zero straight to its reference:

    ℓ_i(0) − ℓ_i(θ_ref) = ‖θ_ref‖ ∫₀¹ m_i(t) dt      m_i(t): the mimic score at θ = t θ_ref

A model that trains on the noisy labels instead leaves that path, and its scores know less. What
wrong labels become, and how many there are, is told by laws of labels and by canaries (``judge``).
"""

from gradmimic.label_issues.find import LabelIssues, find_label_issues, inspect_labels

__all__ = ["LabelIssues", "find_label_issues", "inspect_labels"]
