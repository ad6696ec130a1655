"""What readers leave out, counted within bounds."""

from pathlib import Path

from convmae_deploy.data.findings import MAX_EXAMPLES, MAX_KINDS, OTHER_KINDS, Findings


def test_a_kind_has_a_count_and_its_first_examples() -> None:
    findings = Findings()
    for number in range(MAX_EXAMPLES + 5):
        findings.pass_over("files", number)
    finding = findings.passed_over["files"]
    assert finding.count == MAX_EXAMPLES + 5 and len(finding.examples) == MAX_EXAMPLES
    assert str(finding) == "105, the first 0"


def test_a_folder_of_a_file_of_every_ending_takes_bounded_memory(tmp_path: Path) -> None:
    findings = Findings()
    for number in range(500):
        findings.leave_out_file(tmp_path / f"a.{number}", tmp_path, frozenset((".png",)))
    assert len(findings.passed_over) == MAX_KINDS + 1
    assert findings.passed_over[OTHER_KINDS].count == 500 - MAX_KINDS


def test_names_that_drive_the_terminal_are_escaped(tmp_path: Path) -> None:
    findings = Findings()
    findings.leave_out_file(tmp_path / "a.\x1b[2J", tmp_path, frozenset())
    ((kind, finding),) = findings.passed_over.items()
    assert kind.isprintable() and finding.examples[0].isprintable()


def test_hidden_files_count_where_they_would_have_been_taken(tmp_path: Path) -> None:
    findings = Findings()
    for name in (".DS_Store", "._a.png", ".cache/b.png"):
        findings.leave_out_file(tmp_path / name, tmp_path, frozenset((".png",)))
    assert {kind: finding.count for kind, finding in findings.passed_over.items()} == {"hidden files": 2}


def test_what_several_readers_left_out_is_added_up() -> None:
    findings, other = Findings(), Findings()
    findings.pass_over("files", "first")
    for number in range(MAX_EXAMPLES + 5):
        other.pass_over("files", number)
    findings.pass_over_also(other)
    finding = findings.passed_over["files"]
    assert finding.count == MAX_EXAMPLES + 6 and finding.examples[:2] == ["first", "0"]
    assert len(finding.examples) == MAX_EXAMPLES
