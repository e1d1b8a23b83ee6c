"""``python -m crnet``: the same as the command ``crnet``, through the process that holds torch where there is one."""

import sys

from crnet.warm import hand_over

if __name__ == "__main__":
    status = hand_over(sys.argv[1:])
    if status is None:
        from crnet.cli import main

        main()
    sys.exit(status)
