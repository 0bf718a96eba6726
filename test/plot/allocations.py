"""Puts what benchstat says of the allocations into docs/PERFORMANCE.md.

benchstat ... | allocations.py PERFORMANCE.md
"""

import sys

from peers import write_parts

if __name__ == "__main__":
    write_parts(sys.argv[1], {"allocations": "```text\n" + sys.stdin.read().strip("\n") + "\n```"})
