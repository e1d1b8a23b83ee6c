"""The page of `crnet try` in a browser without a screen: photos are dropped, a mask is painted, masks come back."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import own_study
import pytest
from click.testing import CliRunner
from PIL import Image

import crnet
from crnet.cli import cli
from crnet.errors import CrnetError
from crnet.yours import try_page

SECONDS = 300  # for whatever a busy machine has to do


def has(name: str) -> str:
    return shutil.which(name) or ""


BROWSER = has("chromium") or has("chromium-browser") or has("google-chrome")
DRIVER = has("chromedriver")
in_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with an untrained network."""
    folder = tmp_path_factory.mktemp("try")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return own_study.run(own_study.build(folder), "table3", "full", 1, 0).resolve()


@pytest.fixture(scope="module")
def photos(run, tmp_path_factory) -> Path:
    """Photos of 60 x 40 px and a mask."""
    folder, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    for name in ("support", "other", "query"):
        Image.fromarray(chance.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


class Served:
    """The page of a run, in a process of its own whose temporary files go to ``temporary``."""

    def __init__(self, run: Path, folder: Path):
        self.temporary, self.home = folder / "tmp", folder / "home"
        self.temporary.mkdir()
        self.home.mkdir()
        environment = os.environ | {"TMPDIR": str(self.temporary), "HOME": str(self.home), "GRADIO_SHARE": "True"}
        command = [sys.executable, "-m", "crnet", "try", "--run", str(run), "--no-browser", "--threads", "1"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + self.process.stdout.read()
        self.address = found[0]

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def served(run, tmp_path_factory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="Gradio is an extra: pip install 'crnet[try]'")
    page = Served(run, tmp_path_factory.mktemp("served"))
    yield page
    page.process.kill()
    page.process.wait()


@pytest.fixture(scope="module")
def driver(served, tmp_path_factory):
    pytest.importorskip("selenium", reason="pip install selenium drives the browser")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1500"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = Chrome(options=options, service=Service(DRIVER))
    browser.set_page_load_timeout(SECONDS)
    browser.set_script_timeout(SECONDS)
    yield browser
    browser.quit()


class Page:
    """What a person does on it."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)
        self.find("#segment")

    def find(self, selector: str, ready=lambda element: True):
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        def look(driver):
            element = driver.find_element(By.CSS_SELECTOR, selector)
            return element if ready(element) else None

        passed_over = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, SECONDS, ignored_exceptions=passed_over).until(look, selector)

    def drop(self, where: str, *files: Path) -> None:
        self.find(f"#{where} input[type=file]").send_keys("\n".join(map(str, files)))

    def paint(self, support: int) -> None:
        """A stroke across the middle of the support's photo."""
        from selenium.webdriver import ActionChains

        canvas = self.find(f"#support-{support} canvas")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        time.sleep(1)  # until the photo is laid out on it
        stroke = ActionChains(self.driver).move_to_element_with_offset(canvas, -40, 0).click_and_hold()
        for _ in range(8):
            stroke.move_by_offset(10, 0)
        stroke.release().perform()

    def segment(self) -> str:
        """Press the button; what the page says then, or how it refuses."""
        before = self.find("#said").text
        button = self.find("#segment")
        self.driver.execute_script("arguments[0].click()", button)
        said = self.find("#said p, .toast-body.error", lambda element: element.text and element.text != before)
        return said.text

    def picture(self, gallery: str) -> Image.Image:
        """The first picture of a gallery, as the page got it."""
        source = self.find(f"#{gallery} img").get_attribute("src")
        return Image.open(io.BytesIO(urllib.request.urlopen(source, timeout=SECONDS).read()))


@in_browser
def test_an_uploaded_mask_gives_the_masks_of_crnet_segment(run, photos, served, driver):
    page = Page(driver, served.address)
    page.drop("support-1", photos / "support.png")
    page.find("#support-1 canvas")
    page.drop("mask-1", photos / "mask.png")
    page.drop("queries", photos / "query.png")
    page.find("#queries", lambda element: "query" in element.text)
    page.find("#mask-1", lambda element: "mask" in element.text)
    assert re.fullmatch(r"1 photo, 1 support, 2 refinements: \d+\.\d s", page.segment())
    pair = (photos / "support.png", photos / "mask.png")
    [expected] = crnet.load(run).segment([pair], [photos / "query.png"])
    mask = np.asarray(page.picture("masks").convert("L"))
    assert mask.shape == (40, 60)
    assert set(np.unique(mask)) <= {0, 255}
    # The browser hands the support on as a WebP, whose pixels may differ a little.
    assert (mask.astype(bool) != expected).mean() < 0.05
    assert page.picture("overlays").size == (60, 40)


@in_browser
def test_a_painted_mask_is_what_lies_under_the_brush(photos, served, driver):
    page = Page(driver, served.address)
    page.drop("support-1", photos / "support.png")
    page.drop("queries", photos / "query.png")
    page.find("#queries", lambda element: "query" in element.text)
    page.paint(1)
    assert page.segment().startswith("1 photo, 1 support, ")
    assert page.picture("masks").size == (60, 40)


@in_browser
def test_what_is_missing_is_said_on_the_page(photos, served, driver):
    page = Page(driver, served.address)
    assert "Support 1: has no photo; drop one." in page.segment()


@in_browser
def test_the_browser_is_sent_nowhere_else(served, driver):
    import json

    Page(driver, served.address)
    asked = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    own = ("chrome:", "chrome-untrusted:", "data:", "blob:")  # of the browser itself
    outside = [url for url in urls if not url.startswith((served.address, *own))]
    assert len(urls) > 5
    assert not outside


def test_it_listens_on_the_loopback_alone_and_takes_no_large_file(served):
    ports = Path("/proc/net/tcp").read_text(encoding="utf-8")
    port = int(served.address.rsplit(":", 1)[1])
    listening = [line.split()[1] for line in ports.splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(21 << 20)
    request = urllib.request.Request(
        f"{served.address}/gradio_api/upload",
        body + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=SECONDS)
    assert refused.value.code == 413
    assert not list(served.home.rglob("*"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_its_folder_is_removed_at_the_end(run, tmp_path, how):
    pytest.importorskip("gradio", reason="Gradio is an extra: pip install 'crnet[try]'")
    page = Served(run, tmp_path)
    try:
        assert [path.name[:10] for path in page.temporary.iterdir()] == ["crnet-try-"]
        assert page.stop(how) == (143 if how == signal.SIGTERM else 0)
    finally:
        page.process.kill()
    assert not list(page.temporary.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "tmp"]


def test_what_is_painted_on_any_layer_is_the_mask():
    one, other = (np.zeros((4, 6, 4), np.uint8) for _ in range(2))
    one[1, 2], other[3, 5] = (255, 120, 0, 255), (0, 0, 0, 200)
    one[0, 0, 3] = 50  # the rim of a stroke
    drawn = {"background": None, "layers": [Image.fromarray(one), Image.fromarray(other)]}
    assert np.argwhere(try_page.painted(drawn, 1)).tolist() == [[1, 2], [3, 5]]
    for nothing in ([], [Image.fromarray(np.zeros_like(one))]):
        with pytest.raises(CrnetError, match="Support 2: nothing is painted"):
            try_page.painted({"background": None, "layers": nothing}, 2)


def test_answers_are_those_of_the_network_with_any_number_of_supports_and_refinements(run, photos):
    model = crnet.load(run)
    drawn = [{"background": Image.open(photos / f"{name}.png"), "layers": []} for name in ("support", "other")]
    supports = [(each, str(photos / "mask.png")) for each in drawn]
    overlays, masks, said = try_page.answer(model, supports, [str(photos / "query.png")], 4)
    assert said.startswith("1 photo, 2 supports, 4 refinements: ")
    pairs = [(photos / f"{name}.png", photos / "mask.png") for name in ("support", "other")]
    [expected] = model.segment(pairs, [photos / "query.png"], refinements=4)
    assert np.array_equal(np.asarray(masks[0][0]) == 255, expected)
    assert overlays[0][1] == masks[0][1] == f"query.png: {100 * expected.mean():.1f} % foreground"
    with pytest.raises(CrnetError, match="Queries: are 0"):
        try_page.answer(model, supports, [], 4)
    with pytest.raises(CrnetError, match="refinements: 99 is outside 1 to 50"):
        try_page.answer(model, supports, [str(photos / "query.png")], 99)


def test_without_gradio_one_sentence_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(cli, ["try", "--run", str(run)])
    assert isinstance(done.exception, CrnetError)
    assert str(done.exception).endswith("`pip install 'crnet[try]'` brings it.")
