"""Say at the end of a run that there was no broker."""

import pytest

#: How a skip for want of a broker begins; a report takes it from a worker to the end of the run.
NO_BROKER = "no broker: "


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip for want of a broker is not one dot among many."""
    skipped = terminalreporter.getreports("skipped")
    texts = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    reasons = {text.partition(NO_BROKER)[2] for text in texts if NO_BROKER in text}
    if reasons:
        terminalreporter.write_sep("!", "NOTHING WAS TESTED AGAINST KAFKA", red=True, bold=True)
    for reason in sorted(reasons):
        terminalreporter.write_line(reason)
