import json
import subprocess
import sys

from click.testing import CliRunner

from cascade_calib.cli import cli
from cascade_calib.progress import shown

PLAN = ["plan", "--alpha", "0.01", "--coverage", "0.7", "--error", "0.005"]


def run(*arguments):
    code = "from cascade_calib.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_plan_says_how_many_images():
    result = CliRunner().invoke(cli, PLAN)
    assert result.exit_code == 0
    assert result.output.startswith("3,825 labelled calibration images")


def test_plan_as_json():
    plan = json.loads(CliRunner().invoke(cli, [*PLAN, "--json"]).output)
    assert plan["images"] == 3825
    assert plan["least_accepted"] == 299


def test_a_user_error_is_one_line_and_exit_status_one():
    result = run("plan", "--alpha", "1%", "--coverage", ".7", "--error", "0")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: --alpha is '1%'")
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_bundle_is_one_line_naming_it(tmp_path):
    result = run("evaluate", str(tmp_path / "no.cascade"), "--data", str(tmp_path))
    assert result.returncode == 3
    assert result.stderr.startswith("error: ")
    assert "no.cascade" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom cascade_calib.cli import cli\n"
        "try: cli(['evaluate', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'scipy', 'matplotlib', 'rich', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_progress_off_a_terminal_is_plain_lines_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("cascade_calib.progress.LINE_EVERY_S", 0.0)
    with shown() as report:
        for done in range(1, 101):
            report("images", done, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 100
    assert err.splitlines()[-1].startswith("images: 100 of 100")


def test_progress_off_a_terminal_says_nothing_about_quick_work(capsys):
    with shown() as report:
        for done in range(1, 101):
            report("images", done, 100)
    assert capsys.readouterr().err == ""
