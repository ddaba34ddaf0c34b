"""Take the pictures of the page for README and docs/view.md, of the shipped model: python docs/screenshots.py

It records the built-in texts in twelve languages, finds the experts that go with Russian, switches them off, and looks
at every view in Chromium. The same model and texts give the same pictures, but for the machine's fonts.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from helpers.servers import in_thread
from moeworks.address import Address
from moeworks.find import find
from moeworks.plan import Demote, empty_plan
from moeworks.serve import open_model
from moeworks.view import Sources, build_page
from moeworks.view.expert_map import expert_map
from moeworks.view.first_look import first_texts

IMAGES = Path(__file__).resolve().parent / "images"
SIZES = {"experts": (1280, 700), "tokens": (1280, 640), "layers": (1280, 760), "compare": (1280, 860)}
MOST = 150_000  # bytes of a picture
PROMPT = "Нажмите кнопку"


def make_sources(folder: Path) -> tuple[Sources, str, str]:
    """Return what the page shows, the chosen experts' addresses, and the strongest one's."""
    engine: Any = open_model("lab")
    texts = first_texts()
    trace = engine.record(texts, folder / "languages", logits=True)
    find(trace, contrast="lang=ru", against="lang=en", permutations=1000, bootstrap=200).save(folder / "russian.arrow")
    table = expert_map(trace, by="specialisation", label="lang", value="ru").to_pylist()
    passing = [row for row in table if row["passes"] and not row["protected"]]
    chosen = [Address(row["layer"], row["expert"]) for row in sorted(passing, key=lambda row: -row["value"])[:8]]
    plan = empty_plan(engine.identity).model_copy(update={"operations": (Demote(experts=tuple(sorted(chosen))),)})
    few = [text for text in texts if text.labels["lang"] in ("en", "ru", "uk", "fr")][::2]
    engine.record(few, folder / "plain", logits=True)
    engine.record(few, folder / "without-russian", logits=True, plan=plan)
    names = ("languages", "plain", "without-russian", "russian.arrow")
    os.chdir(folder)  # so that the commands on the page name files and no folders of this machine
    return Sources(names, engine=engine), ",".join(map(str, sorted(chosen))), str(chosen[0])


def views(sources: Sources, picked: str, strongest: str) -> dict[str, tuple[str, str]]:
    """Return of each picture the page's address and what stands there once it is drawn."""
    layer = strongest[1:].split(".")[0]
    requests = sources.trace("languages").request_table().labels["lang"].tolist()
    request = requests.index("ru")
    row = int((sources.trace("languages").rows().request == request).nonzero()[0][0]) + 21
    of_russian = {"by": "specialisation", "label": "lang", "value": "ru", "expert": strongest, "picked": picked}
    given = {
        "experts": ({"trace": "languages", **of_russian}, ".contexts"),
        "tokens": ({"trace": "languages", "request": request, "row": row, "layer": layer}, ".route-row"),
        "layers": ({"trace": "languages", "what": "divergence", "label": "lang", "base": "en"}, "main canvas"),
        "compare": ({"a": "plain", "b": "without-russian"}, ".figures"),
        "steer": ({"trace": "languages", "demote": picked, "prompt": PROMPT, "tokens": 40}, ".steer-prompt"),
    }  # fmt: skip
    return {name: (f"#/{name}?{urlencode(params)}", ready) for name, (params, ready) in given.items()}


def ready(page: Page, name: str, selector: str) -> None:
    """Wait until a view is drawn; let the model write where it has to."""
    page.wait_for_selector(selector, timeout=120_000)
    if name == "steer":
        page.locator(".steer-prompt button.primary").click()
        page.wait_for_selector(".steer-routes", timeout=240_000)
    page.wait_for_timeout(1500)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)


def save(picture: bytes, path: Path) -> None:
    """Write a picture, small enough for a page."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > MOST:  # much text: its edges need few colours
        image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size <= MOST, f"{path.name} has {size:,} bytes, at most {MOST:,} are meant"
    print(f"{path}: {size / 1000:.0f} kB")


def main() -> None:
    """Take all pictures, or those that are named."""
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        sources, picked, strongest = make_sources(Path(folder))
        path = os.environ.get("CHROMIUM") or ("/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None)
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with in_thread(build_page(sources)) as url:
            for name, (address, selector) in views(sources, picked, strongest).items():
                for theme in ("light", "dark") if name == "experts" else ("light",):
                    target = "page-dark" if theme == "dark" else "page-light" if name == "experts" else f"view-{name}"
                    if only and target not in only:
                        continue
                    width, height = SIZES.get(name, (1280, 800))
                    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
                    page = context.new_page()
                    page.add_init_script("localStorage.setItem('moeworks-hint', 'shut')")
                    page.goto(f"{url}/view/{address}")
                    ready(page, name, selector)
                    save(page.screenshot(), IMAGES / f"{target}.png")
                    context.close()
        browser.close()


if __name__ == "__main__":
    main()
