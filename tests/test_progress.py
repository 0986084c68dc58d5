import sys

import pytest

from l2rm.progress import track


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), total=3, what="counting", every=0)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["counting: 1/3", "counting: 2/3"]
    assert all(line.endswith("s left") for line in lines)


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(track("ab", total=2, what="counting")) == ["a", "b"]
    assert "counting: 100%" in capsys.readouterr().err


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("ab", total=2, what="counting", enabled=False, every=0)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
