"""No test hangs on time, or on what the machine is: the words that would make one do so are in no test."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WORDS = {
    r"time\.sleep|asyncio\.sleep\((?!0\))": "wait for an event, or with tests.waiting.wait_until",
    r"perf_counter|monotonic|process_time|time\.time\(": "give the code a clock, tests.waiting.GivenClock",
    r"OPTIMIZATION_CAPABILITIES": "give OpenVINO a CPU with the fixture give_openvino",
    r"cpu_count|sched_getaffinity": "give the code a number of cores",
    r"\.is_available\(|find_gpu\(\) is": "mark the test gpu; it is run with --gpu only",
}
ALLOWED = {  # file or folder: why it may
    "waiting.py": "the one loop that waits for what sets no event, and the clock that stands in for others",
    "test_suite.py": "names the words",
    "fuzz/": "a search that runs for as long as it is given, and a bound on the CPU time of one input",
    "export/test_benchmark.py": "pins this process to one of its cores and lets it go again",
    "backends/test_openvino_backend.py": "the name of what is asked of OpenVINO, on a stand-in",
    "backends/test_gpu.py": "drivers that are stand-ins",
}


def offences(text: str) -> list[str]:
    """Each line with one of the words, with what to do instead."""
    return [
        f"line {number}: {line.strip()!r}; {instead}"
        for number, line in enumerate(text.splitlines(), start=1)
        for word, instead in WORDS.items()
        if re.search(word, line)
    ]


def allowance(name: str) -> str | None:
    """The entry of `ALLOWED` that covers a file."""
    return next((entry for entry in ALLOWED if name == entry or entry.endswith("/") and name.startswith(entry)), None)


def test_no_test_measures_time_sleeps_or_asks_the_machine_what_it_can() -> None:
    unused = set(ALLOWED)
    for file in sorted(TESTS.rglob("*.py")):
        name, found = file.relative_to(TESTS).as_posix(), offences(file.read_text(encoding="utf-8"))
        if found:
            entry = allowance(name)
            assert entry is not None, f"tests/{name}, " + "\n".join(found)
            unused.discard(entry)
    assert not unused, "no longer needed"


@pytest.mark.parametrize(
    "line",
    [
        "time.sleep(0.1)",
        "await asyncio.sleep(0.1)",
        "assert time.perf_counter() - started < 1",
        "deadline = time.monotonic() + 5",
        'core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")',
        "threads = os.cpu_count()",
        "@pytest.mark.skipif(not torch.cuda.is_available())",
    ],
)
def test_such_a_line_is_found(line: str) -> None:
    assert len(offences(f"# a line before\n{line}\n")) == 1


def test_letting_the_event_loop_turn_once_is_no_sleep() -> None:
    assert offences("await asyncio.sleep(0)") == []
