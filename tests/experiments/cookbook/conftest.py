import json

import pytest

from experiments.shared import plots


@pytest.fixture
def ran(tmp_path):
    """Run a program on what is made for it: what it has written, and the scores by their names."""

    def ran(program, *pictures, **options):
        run_dir = tmp_path / "run"
        assert program.run(program.Config(data="made", run_dir=run_dir, **options)) == 0
        for name in pictures:
            assert (run_dir / f"{name}.png").stat().st_size > 3_000
        result = json.loads((run_dir / "result.json").read_text())
        return result, {row["name"]: row["score"] for row in result["rows"]}

    return ran


@pytest.fixture
def pictures(monkeypatch):
    """What a program would draw, by the names of the pictures."""
    found = {}
    for kind in ("curves", "images", "matrix"):
        monkeypatch.setattr(plots, kind, lambda path, of, **_: found.update({path.stem: of}))
    return found
