"use strict";
// The text, the cursor in it, and the colouring by surprise: what both pages have.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Arrays are little-endian bytes in base64.
function unpack(text, Type = Uint8Array) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Type(bytes.buffer);
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const symbols = data.symbols;
const ids = unpack(data.ids, data.wide ? Uint16Array : Uint8Array);
const surprise = unpack(data.surprise, Uint16Array); // thousandths of a bit
const UNKNOWN = 65535, MOST = 65534;
const SURPRISES = 8;

function appendCharacter(box, index, level) {
  const [shown, , kind] = symbols[ids[index]];
  const span = document.createElement("span");
  span.textContent = shown;
  span.className = classOf(index, level);
  box.append(span);
  if (kind === "break") box.append("\n"); // outside, or the span would be two lines high
  return span;
}

function classOf(index, level) {
  const kind = symbols[ids[index]][2];
  return (kind === "plain" || kind === "space" ? "" : kind + " ") + level;
}

const surpriseLevel = (index) =>
  surprise[index] === UNKNOWN ? "absent" : "s" + Math.min(SURPRISES - 1, Math.floor(surprise[index] / 1000));

const textBox = byId("text");
const spans = [];
{
  const fragment = document.createDocumentFragment();
  for (let i = 0; i < ids.length; i++) {
    const span = appendCharacter(fragment, i, "absent");
    span.place = i;
    spans.push(span);
  }
  textBox.append(fragment);
}

function colourText(level) {
  for (let i = 0; i < spans.length; i++) spans[i].className = classOf(i, level(i));
}

function drawLegend(legend, levels, left, right, label) {
  const swatches = element("span", { class: "swatches" });
  for (const level of levels) swatches.append(element("i", { class: level }));
  legend.replaceChildren(element("span", {}, left), swatches, element("span", {}, right));
  legend.setAttribute("aria-label", label);
}

function surpriseLegend() {
  const levels = Array.from({ length: SURPRISES }, (_, k) => "s" + k);
  drawLegend(byId("legend"), levels, "0 bits: foreseen", `${SURPRISES - 1} bits or more: a surprise`,
    `Colour scale: from no colour at 0 bits to red at ${SURPRISES - 1} bits or more`);
}

// The cursor, which the pointer and the keys move alike. A page adds what else it shows there.
let cursor = -1;
const onCursor = [];

const named = (symbol) => (symbols[symbol][2] === "plain" ? symbols[symbol][0] : symbols[symbol][1]);
function bitsAt(index) {
  if (surprise[index] === UNKNOWN) return "the first: not predicted";
  return (surprise[index] / 1000).toFixed(2) + (surprise[index] === MOST ? " bits or more" : " bits");
}

function moveCursor(index, aloud) {
  index = Math.max(0, Math.min(spans.length - 1, index));
  if (cursor >= 0) spans[cursor].removeAttribute("aria-current");
  cursor = index;
  spans[index].setAttribute("aria-current", "true");
  byId("character").textContent = named(ids[index]);
  byId("position").textContent = `${(index + 1).toLocaleString("en")} of ${ids.length.toLocaleString("en")}`;
  byId("bits").textContent = bitsAt(index);
  const spoken = [named(ids[index]), bitsAt(index)];
  for (const show of onCursor) spoken.push(...show(index));
  if (!aloud) return;
  byId("announcement").textContent = spoken.join(", ");
  const box = textBox.getBoundingClientRect(), at = spans[index].getBoundingClientRect();
  if (at.top < box.top + 8) textBox.scrollTop -= box.top + 8 - at.top;
  if (at.bottom > box.bottom - 8) textBox.scrollTop += at.bottom - box.bottom + 8;
}

// Lines as they are broken on the screen, so that up and down go where the eye expects.
const lineOf = (span) => span.offsetTop + span.offsetHeight / 2;
const sameLine = (a, b) => Math.abs(lineOf(a) - lineOf(b)) < a.offsetHeight / 2;

function endOfLine(index, step) {
  while (spans[index + step] && sameLine(spans[index + step], spans[index])) index += step;
  return index;
}

function otherLine(index, step, times) {
  const left = spans[index].offsetLeft;
  for (; times > 0; times--) {
    const next = endOfLine(index, step) + step;
    if (!spans[next]) return step > 0 ? spans.length - 1 : 0;
    index = next;
  }
  let best = index;
  for (let i = index; spans[i] && sameLine(spans[i], spans[index]); i += step) {
    if (Math.abs(spans[i].offsetLeft - left) < Math.abs(spans[best].offsetLeft - left)) best = i;
  }
  return best;
}

const MOVES = {
  ArrowRight: (i) => i + 1,
  ArrowLeft: (i) => i - 1,
  ArrowDown: (i) => otherLine(i, 1, 1),
  ArrowUp: (i) => otherLine(i, -1, 1),
  PageDown: (i) => otherLine(i, 1, 10),
  PageUp: (i) => otherLine(i, -1, 10),
  Home: (i) => endOfLine(i, -1),
  End: (i) => endOfLine(i, 1),
};

textBox.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move || event.altKey || event.metaKey || event.ctrlKey) return;
  event.preventDefault();
  moveCursor(move(Math.max(0, cursor)), true);
});
for (const kind of ["pointerover", "click"]) {
  textBox.addEventListener(kind, (event) => {
    if (event.target.place !== undefined) moveCursor(event.target.place, false);
  });
}

const THEMES = [["", "system"], ["light", "light"], ["dark", "dark"]];
let theme = 0;
byId("theme").addEventListener("click", () => {
  theme = (theme + 1) % THEMES.length;
  const [value, name] = THEMES[theme];
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = "Theme: " + name;
  byId("theme").setAttribute("aria-label", "Colours of the page: " + (value || "as the system"));
});
