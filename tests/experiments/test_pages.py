"""The pages: what they hold, how large they are, and what a browser makes of them."""

import base64
import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.text_tools.embedded import halves, quantized
from experiments.text_tools.pages import (
    EVALUATED,
    LIMIT,
    About,
    evaluation_page,
    fill,
    inspection_page,
    write,
)
from experiments.text_tools.properties import characters_of, properties, score
from experiments.text_tools.recording import Gate, Group, Recording
from experiments.text_tools.sections import histogram
from experiments.text_tools.symbols import symbol, symbol_of
from rnnjax import InvalidInputError
from rnnjax.text import ByteVocabulary, Vocabulary

ABOUT = About("A <model> & its text", "It read </script> “a file”.")


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
    return inspection_page(ABOUT, recording, scores, values, characters, vocabulary, **options)


def embedded(page):
    """The data of a page, found by a parser of HTML as a browser would find it."""

    class Finder(html.parser.HTMLParser):
        found = None
        inside = False

        def handle_starttag(self, tag, attributes):
            self.inside = dict(attributes).get("id") == "data"

        def handle_data(self, data):
            if self.inside:
                self.found = json.loads(data)

        def handle_endtag(self, tag):
            self.inside = False

    finder = Finder()
    finder.feed(page)
    return finder.found


def numbers(text, dtype=np.uint8):
    return np.frombuffer(base64.b64decode(text), dtype)


def prose(length, seed=0):
    rng = np.random.default_rng(seed)
    letters = list('etaoin shrdlu,.\n"(A)B')
    return "".join(rng.choice(letters, length))


@pytest.mark.parametrize(
    ("length", "size", "limit"),  # odd, so that the last half of a byte is empty
    [pytest.param(20_001, 128, LIMIT, marks=pytest.mark.slow), (5_001, 40, 400_000)],
)
def test_hidden_and_cell_units_over_many_characters_fit_in_the_limit(length, size, limit):
    units = 6 * size
    recording, vocabulary = recording_of(prose(length), size=size)
    page = page_of(recording, vocabulary, limit=limit)
    assert limit - 10_000 < len(page.encode()) <= limit <= LIMIT < 3_000_000
    data = embedded(page)
    assert len(data["whole"]["units"]) == 40
    kept = data["excerpt"]["length"]
    assert 0.15 * length < kept < length
    assert f"all of them for the first {kept:,} characters" in page
    assert len(numbers(data["excerpt"]["data"])) == units * ((kept + 1) // 2)
    assert len(numbers(data["whole"]["data"])) == 40 * ((length + 1) // 2)
    # What is kept is what was there, to a level.
    levels, scales = quantized(recording.states)
    np.testing.assert_array_equal(numbers(data["scales"], "<f4"), scales)
    for unit in (0, 4 * size - 12, units - 1):
        row = numbers(data["excerpt"]["data"]).reshape(units, -1)[unit]
        unpacked = np.stack([row & 15, row >> 4], axis=1).ravel()[:kept]
        np.testing.assert_array_equal(unpacked, levels[:kept, unit])
    row = numbers(data["whole"]["data"]).reshape(40, -1)[7]
    unpacked = np.stack([row & 15, row >> 4], axis=1).ravel()[:length]
    np.testing.assert_array_equal(unpacked, levels[:, data["whole"]["units"][7]])


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


@pytest.mark.slow
@settings(derandomize=True, deadline=None, database=None, max_examples=1000)
@given(st.text(st.characters() | st.sampled_from("<>&\"'/!-{}\n\t"), min_size=2, max_size=80),
       st.booleans())  # fmt: skip
def test_drawn_texts_come_back_from_the_page(text, bytewise):
    recording, vocabulary = recording_of(
        text, layers=1, size=2, gates="", vocabulary=ByteVocabulary() if bytewise else None
    )
    page = page_of(recording, vocabulary)
    assert page.count("</script>") == 2
    data = embedded(page)
    ids = numbers(data["ids"], "<u2" if data["wide"] else np.uint8)
    assert [tuple(data["symbols"][i]) for i in ids] == [
        tuple(symbol_of(int(i), vocabulary)) for i in recording.ids
    ]


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.characters())
def test_every_character_can_be_seen(character):
    shown, name, kind = symbol(character)
    assert shown.strip() or character == " "
    assert name.strip()
    assert shown.isprintable()
    assert kind in {"plain", "space", "break", "code"}
    shown.encode("utf-8")


def test_a_page_asks_the_network_for_nothing():
    page = page_of(*recording_of(prose(300), layers=1, size=3))
    assert "default-src 'none'" in page
    assert not re.search(r"(?i)\b(src|href)=[\"'](?!#)", page)
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}


def test_the_page_of_an_evaluation():
    text = prose(EVALUATED + 1000)
    vocabulary = Vocabulary.learned(text)
    ids = vocabulary.encode(text)
    bits = np.random.default_rng(0).exponential(2.5, len(ids) - 1)
    page = evaluation_page(ABOUT, ids, bits, vocabulary)
    assert f"<strong>{bits.mean():.3f}</strong>" in page
    assert "the first 20,000 of 21,000 characters" in page
    data = embedded(page)
    assert len(numbers(data["ids"])) == EVALUATED
    stored = numbers(data["surprise"], "<u2")
    np.testing.assert_allclose(stored[1:] / 1000, bits[: EVALUATED - 1], atol=6e-4)
    assert "bits per character, on average" in page
    short = evaluation_page(ABOUT, ids[:50], bits[:49], ByteVocabulary())
    assert "This is the whole text." in short
    assert "bits per byte, on average" in short


def test_a_histogram_counts_whole_bits():
    picture = histogram(np.array([0.0, 0.5, 1.5, 30.0]), "character")
    assert "0 to 1 bits: 50.0 %" in picture
    assert "1 to 2 bits: 25.0 %" in picture
    assert "12 bits or more: 25.0 %" in picture


def test_parts_are_not_searched_for_names(tmp_path):
    filled = fill("evaluate.html", bits="{{shown}}", unit="", histogram="", shown="x", reader="")
    assert "<strong>{{shown}}</strong>" in filled
    with pytest.raises(KeyError):
        fill("evaluate.html", bits="")
    assert halves(np.array([[1, 4], [2, 5], [3, 6]], np.uint8)).tolist() == [[33, 3], [84, 6]]
    with pytest.raises(InvalidInputError, match="but writing failed"):
        write(tmp_path / "none" / "page.html", "")


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


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """Open a page from a file."""

    def open_page(page):
        path = tmp_path_factory.mktemp("pages") / "page.html"
        write(path, page)
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    return open_page


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


def background(driver, place):
    return driver.execute_script("return getComputedStyle(spans[arguments[0]]).backgroundColor",
                                 place)  # fmt: skip


@needs_browser
def test_the_keys_change_the_unit_and_the_colours(opened, inspected):
    from selenium.webdriver.common.keys import Keys

    page, recording, _ = inspected
    driver = opened(page)
    assert text_of(driver, "#unit-note").startswith("Layer 1, cell 6: goes best with “position in")
    levels, _ = quantized(recording.states)
    assert classes(driver) == [f"u{level}" for level in levels[:, 13]]
    low, high = int(levels[:, 13].argmin()), int(levels[:, 13].argmax())
    assert background(driver, low) != background(driver, high)
    # The whole way by the keyboard: from the top of the page by Tab to the slider of the units.
    body = driver.find_element("css selector", "body")
    reached = []
    for _ in range(12):
        body.send_keys(Keys.TAB) if not reached else driver.switch_to.active_element.send_keys(
            Keys.TAB
        )
        reached.append(driver.execute_script("return document.activeElement.id"))
    ids = [name for name in reached if name]
    assert ids == ["theme", "colour", "layer", "kind", "unit", "text"]
    slider = driver.find_element("id", "unit")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert classes(driver) == [f"u{level}" for level in levels[:, 14]]
    assert text_of(driver, "#unit-name") == "7 of 8"
    outline = driver.execute_script(
        "arguments[0].focus(); return getComputedStyle(arguments[0]).outlineStyle", slider
    )
    assert outline == "solid"
    text = driver.find_element("id", "text")
    text.send_keys("n")
    assert classes(driver) == [f"u{level}" for level in levels[:, 15]]
    text.send_keys("n")  # round to the first of the same group
    assert classes(driver) == [f"u{level}" for level in levels[:, 8]]
    driver.find_element("id", "layer").send_keys("2")
    assert classes(driver) == [f"u{level}" for level in levels[:, 24]]
    driver.find_element("id", "kind").send_keys("h")
    assert classes(driver) == [f"u{level}" for level in levels[:, 16]]
    driver.find_element("id", "colour").send_keys("s")
    bits = np.minimum(np.floor(recording.surprise[1:] + 5e-4), 7).astype(int)
    assert classes(driver)[0] == "absent"
    differ = np.array(classes(driver)[1:]) != np.array([f"s{b}" for b in bits])
    assert differ.mean() < 0.01  # those within rounding of a whole bit
    card = driver.find_elements("css selector", "#cards button")[1]
    card.send_keys(Keys.ENTER)
    assert card.get_attribute("aria-pressed") == "true"
    assert "correlation" in card.get_attribute("aria-label")
    unit = int(card.get_attribute("data-unit"))
    assert unit == 20
    assert classes(driver) == [f"u{level}" for level in levels[:, unit]]
    card.send_keys(Keys.ARROW_RIGHT)
    assert driver.execute_script("return document.activeElement.dataset.unit") != str(unit)
    assert driver.get_log("browser") == []


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
    for place in (3, 17):
        ActionChains(driver).move_to_element(span(driver, place)).perform()
        check(place)
    text = driver.find_element("id", "text")
    text.send_keys(Keys.ARROW_RIGHT)
    check(18)
    said = driver.execute_script("return document.getElementById('announcement').textContent")
    assert said.startswith(text_of(driver, "#character") + ", " + text_of(driver, "#bits"))
    assert "then expected" in said
    assert said.endswith("unit " + text_of(driver, "#value"))
    text.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    check(16)
    text.send_keys(Keys.END)
    check(42)
    text.send_keys(Keys.HOME)
    check(0)
    text.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    check(44)
    text.send_keys(Keys.ARROW_UP)
    check(43)
    for _ in range(4):
        text.send_keys(Keys.PAGE_DOWN)
    place = driver.execute_script("return cursor")
    check(place)
    box, at = (driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", e)
               for e in (text, span(driver, place)))  # fmt: skip
    assert box["top"] <= at["top"]
    assert at["bottom"] <= box["bottom"]
    assert driver.get_log("browser") == []


@needs_browser
def test_dark_light_and_narrow(opened, inspected):
    page, *_ = inspected
    driver = opened(page)

    def scheme(name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def contrasts():
        """The least contrast of the text with the colours of all levels and of the page."""
        return driver.execute_script("""
            const canvas = document.createElement("canvas").getContext(
              "2d", { willReadFrequently: true });
            function light(colour) {
              canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
              const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
                .map((c) => c / 255)
                .map((c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4));
              return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
            }
            const ink = light(getComputedStyle(document.body).color);
            const probe = document.body.appendChild(document.createElement("i"));
            const names = [...Array(15).keys()].map((k) => "u" + k)
              .concat([...Array(8).keys()].map((k) => "s" + k).filter((k) => k !== "s0"));
            const all = names.map((name) => {
              probe.className = name;
              const other = light(getComputedStyle(probe).backgroundColor);
              return (Math.max(ink, other) + .05) / (Math.min(ink, other) + .05);
            });
            probe.remove();
            return [light(getComputedStyle(document.body).backgroundColor), Math.min(...all)];
        """)

    try:
        scheme("light")
        page_light, contrast = contrasts()
        assert page_light > 0.8
        assert contrast > 4.5
        scheme("dark")
        page_dark, contrast = contrasts()
        assert page_dark < 0.05
        assert contrast > 4.5
        toggle = driver.find_element("id", "theme")
        seen = []
        for _ in range(3):
            toggle.click()
            seen.append((toggle.text, contrasts()[0] > 0.5))
        assert seen == [("Theme: light", True), ("Theme: dark", False), ("Theme: system", False)]
        for width in (320, 420, 800):
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert driver.get_log("browser") == []


@needs_browser
def test_where_a_unit_is_not_on_the_page_there_is_no_colour(opened):
    recording, vocabulary = recording_of(prose(2000), layers=2, size=64)
    page = page_of(recording, vocabulary, limit=150_000)
    data = embedded(page)
    kept = data["excerpt"]["length"]
    unit = min(set(range(256)) - set(data["whole"]["units"]))
    assert 10 < kept < 1000
    driver = opened(page)
    driver.execute_script("showUnit(arguments[0])", unit)
    levels, _ = quantized(recording.states)
    assert classes(driver) == [f"u{x}" for x in levels[:kept, unit]] + ["absent"] * (2000 - kept)
    assert f"for the first {kept:,} characters" in text_of(driver, "#unit-note")
    driver.execute_script("moveCursor(arguments[0])", kept)
    assert text_of(driver, "#value") == "not on this page"
    driver.execute_script("moveCursor(arguments[0])", kept - 1)
    assert text_of(driver, "#value").startswith("about")
    whole = data["whole"]["units"][3]
    driver.execute_script("showUnit(arguments[0])", whole)
    assert classes(driver) == [f"u{x}" for x in levels[:, whole]]
    assert driver.get_log("browser") == []


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
    assert driver.get_log("browser") == []
    driver = opened(page_of(*recording_of("ab", layers=1, size=2)))
    assert text_of(driver, "#unit-note").endswith("no property of this text could be measured.")
    assert driver.get_log("browser") == []


@needs_browser
def test_the_page_of_an_evaluation_in_a_browser(opened):
    vocabulary = Vocabulary.learned(HOSTILE)
    ids = vocabulary.encode(HOSTILE)
    bits = np.random.default_rng(0).exponential(2.5, len(ids) - 1)
    bits[1] = 1e9
    driver = opened(evaluation_page(ABOUT, ids, bits, vocabulary))
    found = classes(driver)
    assert found[0] == "absent"
    rounded = np.minimum(np.floor(np.rint(1000 * bits) / 1000), 7).astype(int)
    assert found[1:] == [f"s{b}" for b in rounded]
    driver.find_element("id", "text").send_keys("\ue014")  # the right arrow
    said = float(text_of(driver, "#bits").removesuffix(" bits"))
    assert said == pytest.approx(bits[0], abs=0.0061)
    driver.find_element("id", "text").send_keys("\ue014")
    assert text_of(driver, "#bits") == "65.53 bits or more"
    assert driver.get_log("browser") == []
