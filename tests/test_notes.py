"""What the command line says of a file it reads in part: one line, without our source."""

import subprocess
import sys

from PIL import Image


def test_a_note_is_one_line(tmp_path):
    frames = [Image.new("RGB", (64, 64), c) for c in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    code = (
        "import sys; sys.argv = ['offprint', '--version']\n"
        "from offprint.cli.main import main\n"
        "from offprint.data.reading import read_picture\n"
        "try: main()\nexcept SystemExit: pass\n"
        "read_picture('a.gif')\n"
        "import warnings; warnings.warn('of others', UserWarning)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    ).stderr
    assert "note: a.gif: only the first of its 2 frames or pages is read\n" in shown
    assert "reading.py" not in shown and "UserWarning: of others" in shown
