"""``python -m pathgen``, which torchrun and schedulers need."""

from pathgen.cli import main

if __name__ == "__main__":
    main()
