"""Encoder, reparameterized mask samplers and the InfoMask classifier."""
