"""``python -m fairseq_star.cli``."""

from fairseq_star.cli import main

main()
