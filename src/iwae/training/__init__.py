"""From a configuration to a trained model: the step, the optimisers, the trainer."""
