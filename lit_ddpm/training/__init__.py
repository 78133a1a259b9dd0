"""The Lightning layer: `DDPM` and the parts that it is composed of."""
