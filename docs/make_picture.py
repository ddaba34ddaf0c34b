"""Draw the README's picture of a proof from a real study: python docs/make_picture.py STUDY [PROBE].

STUDY is the folder that `moeworks study` wrote, or its study.json; PROBE is language/fr unless named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moeworks.report.picture import save_picture
from moeworks.study import load_study

PICTURE = Path(__file__).parent / "images" / "first.png"

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(save_picture(load_study(sys.argv[1]), PICTURE, probe=sys.argv[2] if len(sys.argv) == 3 else "language/fr"))
