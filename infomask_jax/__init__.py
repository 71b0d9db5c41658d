"""InfoMask in JAX: localize chest disease from image-level labels with a masked variational latent representation."""

__version__ = "0.2.0"
