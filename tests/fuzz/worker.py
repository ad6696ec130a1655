"""One stretch of a search, in a process that libFuzzer may end: python -m tests.fuzz.worker TARGET FINDS ARGUMENTS...

It is started by `python -m tests.fuzz`. An exception is noted and the search goes on; a crash, a hang or too much
memory ends the process, and libFuzzer leaves the input where -artifact_prefix says.
"""

import logging
import random
import resource
import sys
from pathlib import Path

import atheris

from tests.fuzz.finds import add_find
from tests.fuzz.outcomes import observe
from tests.fuzz.target import without_warnings

WATCHED = ["convmae_deploy", "serving", "PIL", "python_multipart"]  # packages whose branches guide the search

MAX_MIB = 1024  # that a search may take besides, its corpus included


def main() -> None:
    """Searches until -max_total_time, one of `arguments`, is over."""
    name, finds, *arguments = sys.argv[1:]
    logging.getLogger("convmae_deploy").setLevel(logging.ERROR)  # it warns about bundles that were never verified
    with atheris.instrument_imports(include=WATCHED):  # what is imported before is not watched
        from tests.fuzz.targets import TARGETS

        target = TARGETS[name]
        check = without_warnings(target.prepare())

    def run(data: bytes) -> None:
        broken = observe(check, data)
        if broken is not None:
            add_find(Path(finds), data, broken)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        assert target.mutate is not None
        return target.mutate(data, most, random.Random(seed), atheris.Mutate)

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MiB, by the libraries that are imported
    options = {} if target.mutate is None else {"custom_mutator": mutate}
    atheris.Setup([sys.argv[0], *arguments, f"-rss_limit_mb={held + MAX_MIB}"], run, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
