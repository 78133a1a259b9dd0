"""How many bits a model needs: the variational bound and its report, and the exact likelihood."""
