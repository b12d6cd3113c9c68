"""Latent-variable models: what one has to say, the autoencoder, and its parts."""
