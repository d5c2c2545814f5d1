"""The pages: what they hold, how large they are, and what a browser makes of them."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.text_generator import pages
from experiments.text_generator.pages.embedded import quantized
from experiments.text_generator.pages.properties import characters_of, properties, score
from experiments.text_generator.pages.recording import Gate, Group, Recording
from experiments.text_generator.pages.symbols import symbol
from rnnjax import InvalidInputError
from rnnjax.text import ByteVocabulary, Vocabulary

ABOUT = pages.About("A <model> & its text", "It read </script> “a file”.")


def recording_of(text, *, layers=3, size=128, kinds=("hidden", "cell"), gates="ifo", seed=0,
                 vocabulary=None):  # fmt: skip
    """What a model might have done while it read the text: numbers at random."""
    vocabulary = vocabulary or Vocabulary.learned(text)
    ids = vocabulary.encode(text)
    rng = np.random.default_rng(seed)
    groups = tuple(Group(layer, kind, size) for layer in range(layers) for kind in kinds)
    width = min(5, len(vocabulary))
    expected = np.argsort(rng.random((len(ids), len(vocabulary))), axis=1)[:, :width]
    probabilities = -np.sort(-rng.dirichlet(np.ones(width + 1), len(ids))[:, :width], axis=1)
    recording = Recording(
        ids=ids,
        groups=groups,
        states=rng.normal(size=(len(ids), len(groups) * size)).astype(np.float32),
        gates=tuple(
            Gate(layer, name, rng.random((len(ids), size)).astype(np.float16))
            for layer in range(layers)
            for name in gates
        ),
        expected=expected,
        probabilities=probabilities.astype(np.float32),
        surprise=np.concatenate([[np.nan], 12 * rng.random(len(ids) - 1)]).astype(np.float32),
    )
    return recording, vocabulary


def page_of(recording, vocabulary, **options):
    characters = characters_of(recording.ids, vocabulary)
    values = properties(characters)
    scores = score(recording.states, values)
    return pages.inspection_page(
        ABOUT, recording, scores, values, characters, vocabulary, **options
    )


def embedded(page):
    """The data of a page, as a browser would find it."""
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def numbers(text, dtype=np.uint8):
    return np.frombuffer(base64.b64decode(text), dtype)


def prose(length, seed=0):
    rng = np.random.default_rng(seed)
    letters = list('etaoin shrdlu,.\n"(A)B')
    return "".join(rng.choice(letters, length))


def unpacked(text, rows, length):
    """Levels of units, two to a byte."""
    packed = numbers(text).reshape(rows, -1)
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(rows, -1)[:, :length]


def test_hidden_and_cell_units_over_many_characters_fit_in_the_limit():
    length, limit = 5001, 400_000  # odd, so that the last half of a byte is empty
    recording, vocabulary = recording_of(prose(length), size=40)
    page = page_of(recording, vocabulary, limit=limit)
    assert limit - 10_000 < len(page.encode()) <= limit <= pages.LIMIT < 3_000_000
    data = embedded(page)
    units, kept = data["whole"]["units"], data["excerpt"]["length"]
    assert len(units) == 40
    assert 0.15 * length < kept < length
    assert f"all of them for the first {kept:,} characters" in page
    # What is kept is what was there, to a level.
    levels, scales = quantized(recording.states)
    np.testing.assert_array_equal(numbers(data["scales"], "<f4"), scales)
    first = unpacked(data["excerpt"]["data"], 240, kept)
    np.testing.assert_array_equal(first, levels[:kept].T)
    whole = unpacked(data["whole"]["data"], 40, length)
    np.testing.assert_array_equal(whole, levels[:, units].T)


def test_a_small_recording_is_there_as_a_whole():
    recording, vocabulary = recording_of(prose(900), layers=2, size=5)
    data = embedded(page := page_of(recording, vocabulary))
    assert sorted(data["whole"]["units"]) == list(range(20))
    assert data["excerpt"] == {"length": 0, "data": ""}
    assert "All 20 units are here for all 900 characters." in page
    used = [name for _, name, _ in data["symbols"]]
    decoded = "".join(used[i] for i in numbers(data["ids"]))
    assert decoded.replace("space", " ").replace("line break", "\n") == prose(900)
    bits = numbers(data["surprise"], "<u2")
    assert bits[0] == 65535
    np.testing.assert_allclose(bits[1:] / 1000, recording.surprise[1:], atol=6e-4)
    shares = (numbers(data["probabilities"]).reshape(-1, 5) / 255) ** 2
    np.testing.assert_allclose(shares, recording.probabilities, atol=5e-3)


@settings(derandomize=True, deadline=None, database=None, max_examples=25)
@given(st.data())
def test_the_page_is_never_larger_than_its_limit(data):
    length = data.draw(st.integers(2, 3000))
    recording, vocabulary = recording_of(
        prose(length), layers=data.draw(st.integers(1, 3)), size=data.draw(st.integers(1, 40)),
        kinds=data.draw(st.sampled_from([("hidden",), ("hidden", "cell")])),
        gates=data.draw(st.sampled_from(["", "rz"])),
    )  # fmt: skip
    limit = data.draw(st.integers(65_000, 200_000))
    refusal, page = "", ""
    try:
        page = page_of(recording, vocabulary, limit=limit)
    except InvalidInputError as error:
        refusal = str(error)
    if refusal:  # as it may, but not of a short text
        assert "set a smaller --characters" in refusal
        assert length > 500
    else:
        assert len(page.encode()) <= limit
        assert embedded(page)["whole"]["units"]


def test_a_page_says_what_a_cell_does_not_have():
    recording, vocabulary = recording_of(prose(900), layers=1, size=4, kinds=("hidden",), gates="")
    page = page_of(recording, vocabulary)
    assert "The cells of this model have no gates" in page
    assert "no separate cell state" in page
    full = page_of(*recording_of(prose(900), layers=1, size=4))
    assert "The cells of this model have no gates" not in full
    assert "no separate cell state" not in full
    assert "No unit follows any of the properties: no correlation reaches 0.2" in full
    assert embedded(full)["cards"] == []
    # A unit is a measure of nothing where no property changes.
    short = page_of(*recording_of("ab", layers=1, size=4))
    assert "No property changes in both halves of this text" in short


HOSTILE = (
    "</script><script>alert(1)</script> &amp; <b onclick='x'>{{style}} <!-- --> \\u003c \"'`"
    "\ud800 \udfff \x00\x07\x1b\x7f\x85\u2028\u2029\u202e\u200b\ufeff\u00a0\tא ב שלום مرحبا "
    "e\u0301 👩\u200d👩\u200d👧 🏳\ufe0f 漢字 \U0010ffff\r\n\n"
) * 12


@pytest.mark.parametrize("vocabulary", [None, ByteVocabulary()])
def test_hostile_texts_stay_data(vocabulary):
    recording, vocabulary = recording_of(HOSTILE, layers=1, size=3, vocabulary=vocabulary)
    page = page_of(recording, vocabulary)
    page.encode("utf-8")  # no lone surrogate is left
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "alert(1)" not in page
    assert "<" not in page.split('id="data">')[1].split("</script>")[0]
    assert "A &lt;model&gt; &amp; its text" in page
    assert "It read &lt;/script&gt;" in page
    shown = [shown for shown, _, _ in embedded(page)["symbols"]]
    for text in shown:
        assert text == " " or text.strip()
        assert not re.search(r"[\x00-\x1f\x7f-\xa0\u200b-\u200f\u2028-\u202f\ud800-\udfff]", text)


def test_a_page_asks_the_network_for_nothing():
    page = page_of(*recording_of(prose(300), layers=1, size=3))
    assert "default-src 'none'" in page
    assert not re.search(r"(?i)\b(src|href)=[\"'](?!#)", page)
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}


def test_letters_can_be_read_on_every_colour():
    """In a light page and a dark one; what is mixed of these colours lies between them."""
    page = page_of(*recording_of(prose(300), layers=1, size=3))
    colours = dict(re.findall(r"--(\w+): light-dark\(#(\w{6}, #\w{6})\)", page))

    def light(name):
        parts = [[*bytes.fromhex(one)] for one in colours[name].split(", #")]
        parts = np.array(parts) / 255
        parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return parts @ [0.2126, 0.7152, 0.0722] + 0.05

    for name in ("page", "low", "high", "much"):
        assert np.exp(np.abs(np.log(light("ink") / light(name)))).min() > 4.5, name


def test_the_page_of_an_evaluation():
    text = prose(pages.EVALUATED + 1000)
    vocabulary = Vocabulary.learned(text)
    ids = vocabulary.encode(text)
    bits = np.random.default_rng(0).exponential(2.5, len(ids) - 1)
    page = pages.evaluation_page(ABOUT, ids, bits, vocabulary)
    assert f"<strong>{bits.mean():.3f}</strong>" in page
    assert "the first 20,000 of 21,000 characters" in page
    data = embedded(page)
    assert len(numbers(data["ids"])) == pages.EVALUATED
    stored = numbers(data["surprise"], "<u2")
    np.testing.assert_allclose(stored[1:] / 1000, bits[: pages.EVALUATED - 1], atol=6e-4)
    assert "bits per character, on average" in page
    shares = [100 * np.mean((bits >= k) & (bits < k + 1)) for k in range(12)]
    assert all(f"{k} to {k + 1} bits: {share:.1f} %" in page for k, share in enumerate(shares))
    assert f"12 bits or more: {100 * np.mean(bits >= 12):.1f} %" in page
    bar = r'y="([\d.]+)" width="30" height="([\d.]+)">.*?</rect><text x="[\d.]+" y="([-\d.]+)"'
    tops, heights, said = np.array(re.findall(bar, page), float).T
    np.testing.assert_allclose(tops + heights, [136] * 13, atol=0.11)  # they stand on one line
    np.testing.assert_allclose(said, tops - 4, atol=0.11)  # each share is over its bar
    short = pages.evaluation_page(ABOUT, ids[:50], bits[:49], ByteVocabulary())
    assert "This is the whole text." in short
    assert "bits per byte, on average" in short


# In a browser.

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver, which are not installed"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--window-size=1200,900",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page from a file; nothing is to be complained of."""

    def open_page(page):
        pages.write(tmp_path / "page.html", page)
        browser.get((tmp_path / "page.html").as_uri())
        return browser

    browser.get_log("browser")
    yield open_page
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def inspected():
    """A page on 3 layers of which one unit follows the position in the line, and is first."""
    lines = ["To be, or not to be: that is the question.\n", "\n", "HAMLET:\n", "Aye.\n"] * 60
    recording, vocabulary = recording_of("".join(lines), layers=2, size=8)
    values = properties(characters_of(recording.ids, vocabulary))
    noise = np.random.default_rng(1).normal(size=len(recording.ids))
    recording.states[:, 13] = values["position in the line"] / 10 - 2
    recording.states[:, 20] = values["space"] + 0.3 * noise
    recording.states[:, 2] = values["capital letter"] - noise
    return page_of(recording, vocabulary), recording, vocabulary


def text_of(driver, selector):
    return driver.find_element("css selector", selector).text


def span(driver, place):
    return driver.find_element("css selector", f"#text span:nth-child({place + 1})")


def classes(driver):
    return driver.execute_script("return spans.map((s) => s.className.split(' ').pop())")


@needs_browser
def test_the_keys_change_the_unit_and_the_colours(opened, inspected):
    from selenium.webdriver.common.keys import Keys

    page, recording, _ = inspected
    driver = opened(page)
    levels, _ = quantized(recording.states)

    def shows(unit):
        return classes(driver) == [f"u{level}" for level in levels[:, unit]]

    assert text_of(driver, "#unit-note").startswith("Layer 1, cell 6: goes best with “position in")
    assert shows(13)
    backgrounds = driver.execute_script(
        "return arguments[0].map((place) => getComputedStyle(spans[place]).backgroundColor)",
        [int(levels[:, 13].argmin()), int(levels[:, 13].argmax())],
    )
    assert backgrounds[0] != backgrounds[1]
    # The whole way by the keyboard: from the top of the page by Tab to the slider of the units.
    reached = []
    driver.find_element("css selector", "body").send_keys(Keys.TAB)
    for _ in range(12):
        reached.append(driver.execute_script("return document.activeElement.id"))
        driver.switch_to.active_element.send_keys(Keys.TAB)
    assert [*filter(None, reached)] == ["theme", "colour", "layer", "kind", "unit", "text"]
    # Each of these keys in turn; n goes round to the first of the same group.
    for control, key, unit in (
        ("unit", Keys.ARROW_RIGHT, 14), ("text", "n", 15), ("text", "n", 8), ("layer", "2", 24),
        ("kind", "h", 16),
    ):  # fmt: skip
        driver.find_element("id", control).send_keys(key)
        assert shows(unit)
    assert text_of(driver, "#unit-name") == "1 of 8"
    driver.find_element("id", "colour").send_keys("s")
    bits = np.minimum(np.floor(recording.surprise[1:] + 5e-4), 7).astype(int)
    assert classes(driver)[0] == "absent"
    differ = np.array(classes(driver)[1:]) != np.array([f"s{b}" for b in bits])
    assert differ.mean() < 0.01  # those within rounding of a whole bit
    card = driver.find_elements("css selector", "#cards button")[1]
    card.send_keys(Keys.ENTER)
    assert card.get_attribute("aria-pressed") == "true"
    assert "correlation" in card.get_attribute("aria-label")
    assert card.get_attribute("data-unit") == "20"
    assert shows(20)
    card.send_keys(Keys.ARROW_RIGHT)
    assert driver.execute_script("return document.activeElement.dataset.unit") != "20"


@needs_browser
def test_pointing_and_the_arrow_keys_show_what_is_expected_next(opened, inspected):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page, recording, vocabulary = inspected
    driver = opened(page)

    def check(place):
        current = driver.execute_script(
            "return [...document.querySelectorAll('#text [aria-current]')].map((s) => s.place)"
        )
        assert current == [place]
        rows = driver.find_elements("css selector", "#predictions tr")
        got = [row.find_element("css selector", "th").text for row in rows]
        names = [symbol(c).name for c in vocabulary.decode(recording.expected[place])]
        assert got == names
        shares = [int(re.search(r"(\d+) %", row.text)[1]) for row in rows]
        np.testing.assert_allclose(shares, 100 * recording.probabilities[place], atol=1.1)
        following = recording.ids[place + 1]
        came = [row.get_attribute("class") == "came" for row in rows]
        assert came == [index == following for index in recording.expected[place]]
        assert any(came) == ("was not among them" not in text_of(driver, "#came"))
        if place:
            said = float(text_of(driver, "#bits").removesuffix(" bits"))
            assert said == pytest.approx(recording.surprise[place], abs=0.0061)

    check(0)
    ActionChains(driver).move_to_element(span(driver, 17)).perform()
    check(17)
    text = driver.find_element("id", "text")
    text.send_keys(Keys.ARROW_RIGHT)
    check(18)
    said = driver.execute_script("return document.getElementById('announcement').textContent")
    assert said.startswith(text_of(driver, "#character") + ", " + text_of(driver, "#bits"))
    assert "then expected" in said
    assert said.endswith("unit " + text_of(driver, "#value"))
    for keys, place in (
        ([Keys.ARROW_LEFT] * 2, 16), ([Keys.END], 42), ([Keys.HOME], 0),
        ([Keys.ARROW_DOWN] * 2, 44), ([Keys.ARROW_UP], 43),
    ):  # fmt: skip
        text.send_keys(*keys)
        check(place)
    text.send_keys(*[Keys.PAGE_DOWN] * 4)
    place = driver.execute_script("return cursor")
    check(place)
    box, at = (driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", e)
               for e in (text, span(driver, place)))  # fmt: skip
    assert box["top"] <= at["top"]
    assert at["bottom"] <= box["bottom"]


@needs_browser
def test_dark_light_and_narrow(opened, inspected):
    driver = opened(inspected[0])
    light = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128"
    toggle = driver.find_element("id", "theme")
    seen = []
    for _ in range(3):
        toggle.click()
        seen.append((toggle.text, driver.execute_script(light)))
    assert seen[:2] == [("Theme: light", True), ("Theme: dark", False)]
    metrics = {"width": 320, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 320
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_where_a_unit_is_not_on_the_page_there_is_no_colour(opened):
    recording, vocabulary = recording_of(prose(2000), layers=2, size=64)
    page = page_of(recording, vocabulary, limit=150_000)
    data = embedded(page)
    kept = data["excerpt"]["length"]
    unit = min(set(range(256)) - set(data["whole"]["units"]))
    driver = opened(page)
    driver.execute_script("showUnit(arguments[0])", unit)
    levels, _ = quantized(recording.states)
    assert classes(driver) == [f"u{x}" for x in levels[:kept, unit]] + ["absent"] * (2000 - kept)
    assert f"for the first {kept:,} characters" in text_of(driver, "#unit-note")
    driver.execute_script("moveCursor(arguments[0])", kept)
    assert text_of(driver, "#value") == "not on this page"
    driver.execute_script("moveCursor(arguments[0])", kept - 1)
    assert text_of(driver, "#value").startswith("about")


@needs_browser
def test_hostile_texts_and_cells_without_gates_open_in_a_browser(opened):
    recording, vocabulary = recording_of(HOSTILE, layers=1, size=3, kinds=("hidden",), gates="")
    driver = opened(page_of(recording, vocabulary))
    shown = driver.execute_script("return spans.map((s) => s.textContent)")
    kinds = [symbol(c) for c in vocabulary.decode(recording.ids)]
    assert shown == [s.shown for s in kinds]
    assert driver.find_element("id", "text").get_property("textContent") == "".join(
        s.shown + "\n" * (s.kind == "break") for s in kinds
    )
    driver = opened(page_of(*recording_of("ab", layers=1, size=2)))
    assert text_of(driver, "#unit-note").endswith("no property of this text could be measured.")
