"""Gradient estimators: from a bound and a model to a loss, and what its gradients are worth."""
