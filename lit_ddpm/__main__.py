"""``python -m lit_ddpm``, the same as ``lit-ddpm``."""

from lit_ddpm.cli import main

if __name__ == "__main__":
    main()
