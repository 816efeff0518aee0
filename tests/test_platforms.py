"""Windows: a word on what to do in place of a traceback; the licence and the citation file."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from spatialfeat import __version__

ROOT = Path(__file__).parent.parent


def test_on_windows_it_says_to_use_wsl() -> None:
    # In a fresh interpreter, so that nothing which Windows lacks is imported before the message.
    code = (
        "import sys\n"
        "from spatialfeat.__main__ import main\n"
        "sys.platform = 'win32'\n"
        "try:\n    main()\n"
        "finally:\n    print(*(name for name in sys.modules if name.startswith('spatialfeat')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith("error: spatialfeat runs on Linux and macOS")
    assert "WSL" in run.stderr
    assert "wsl --install" in run.stderr
    assert "Traceback" not in run.stderr
    assert set(run.stdout.split()) == {"spatialfeat", "spatialfeat.__main__"}


def test_the_command_starts_where_windows_is_caught() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'spatialfeat = "spatialfeat.__main__:main"' in project


def test_the_licence_is_the_standard_text() -> None:
    # Of https://www.apache.org/licenses/LICENSE-2.0.txt, byte for byte.
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_citation_file_fits_the_package() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([a-z-]+): *(.*)$", text, flags=re.MULTILINE))
    assert fields["cff-version"] == "1.2.0"
    assert fields["version"] == __version__
    assert fields["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= set(fields)
    # The project, as an entity: no person's names.
    assert re.findall(r"authors:\n((?:  .*\n)+)", text) == ['  - name: "The spatialfeat project"\n']
