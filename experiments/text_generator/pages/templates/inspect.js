// Units: which are embedded, and how the text is coloured by one of them.

const LEVELS = 15; // level 7 is zero
const MIDDLE = 7;
const scales = unpack(data.scales, Float32Array);
const whole = { places: new Map(data.whole.units.map((unit, i) => [unit, i])), length: ids.length, bytes: unpack(data.whole.data) };
const excerpt = { length: data.excerpt.length, bytes: unpack(data.excerpt.data) };
const starts = [];
data.groups.reduce((start, group) => (starts.push(start), start + group.size), 0);

// Two levels a byte, the earlier one in the lower half.
const levelIn = (bytes, row, length, t) => (bytes[row * ((length + 1) >> 1) + (t >> 1)] >> (4 * (t & 1))) & 15;

function levelsOf(unit) {
  const row = whole.places.get(unit);
  if (row !== undefined) return { length: ids.length, at: (t) => levelIn(whole.bytes, row, ids.length, t) };
  return { length: excerpt.length, at: (t) => levelIn(excerpt.bytes, unit, excerpt.length, t) };
}

const groupOf = (unit) => starts.findLastIndex((start) => start <= unit);
function unitName(unit) {
  const g = groupOf(unit), group = data.groups[g];
  return `layer ${group.layer + 1}, ${group.kind} ${unit - starts[g] + 1}`;
}
const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(2)).replace("-", "−");
const correlation = (value) => value.toFixed(2).replace("-", "−");

// The controls. The state of the page is which unit is chosen, and by what the text is coloured.
const controls = { colour: byId("colour"), layer: byId("layer"), kind: byId("kind"), unit: byId("unit") };
const layers = [...new Set(data.groups.map((group) => group.layer))];
for (const layer of layers) controls.layer.append(element("option", { value: layer }, String(layer + 1)));
let chosen = data.cards.length ? data.cards[0].unit : 0;

function kindsOf(layer) {
  return data.groups.filter((group) => group.layer === layer).map((group) => group.kind);
}

function showUnit(unit) {
  chosen = unit;
  const g = groupOf(unit), group = data.groups[g];
  controls.layer.value = group.layer;
  controls.kind.replaceChildren(...kindsOf(group.layer).map((kind) => element("option", { value: kind }, kind)));
  controls.kind.value = group.kind;
  controls.unit.max = group.size - 1;
  controls.unit.value = unit - starts[g];
  byId("unit-name").textContent = `${unit - starts[g] + 1} of ${group.size}`;
  controls.unit.setAttribute("aria-valuetext", byId("unit-name").textContent);
  draw();
}

function draw() {
  const bySurprise = controls.colour.value === "surprise";
  byId("controls").dataset.colour = controls.colour.value;
  for (const button of document.querySelectorAll("button[data-unit]")) {
    button.setAttribute("aria-pressed", String(!bySurprise && Number(button.dataset.unit) === chosen));
  }
  if (bySurprise) {
    colourText(surpriseLevel);
    surpriseLegend();
    byId("unit-note").textContent = "Surprise: the bits of each character, given all before it.";
  } else {
    const levels = levelsOf(chosen), most = number(scales[chosen]);
    colourText((t) => (t < levels.length ? "u" + levels.at(t) : "absent"));
    drawLegend(byId("legend"), Array.from({ length: LEVELS }, (_, k) => "u" + k), `−${most} or less`, `+${most} or more`,
      `Colour scale: blue at −${most} or less, no colour at 0, orange at ${most} or more`);
    byId("unit-note").textContent = noteOn(chosen, levels);
  }
  if (cursor >= 0) moveCursor(cursor, false);
}

function noteOn(unit, levels) {
  const [property, , reported] = data.findings[unit] || [];
  const follows = property === undefined
    ? "no property of this text could be measured."
    : `goes best with “${data.properties[property]}”, correlation ${correlation(reported)}.`;
  const part = levels.length < ids.length
    ? ` It is on this page for the first ${levels.length.toLocaleString("en")} characters.` : "";
  return `${unitName(unit).replace(/^l/, "L")}: ${follows}${part}`;
}

const changed = () => {
  const layer = Number(controls.layer.value), kinds = kindsOf(layer);
  const kind = kinds.includes(controls.kind.value) ? controls.kind.value : kinds[0];
  const g = data.groups.findIndex((group) => group.layer === layer && group.kind === kind);
  showUnit(starts[g] + Math.min(Number(controls.unit.value), data.groups[g].size - 1));
};
controls.layer.addEventListener("change", changed);
controls.kind.addEventListener("change", changed);
controls.unit.addEventListener("input", changed);
controls.colour.addEventListener("change", draw);
byId("controls").addEventListener("submit", (event) => event.preventDefault());

textBox.addEventListener("keydown", (event) => {
  const step = { n: 1, p: -1 }[event.key];
  if (!step || event.altKey || event.metaKey || event.ctrlKey) return;
  const g = groupOf(chosen), size = data.groups[g].size;
  controls.colour.value = "unit";
  showUnit(starts[g] + ((chosen - starts[g] + step + size) % size));
  byId("announcement").textContent = `${byId("unit-note").textContent} Here ${byId("value").textContent}.`;
});

// What the model expects behind the cursor.
const expected = unpack(data.expected, data.wide ? Uint16Array : Uint8Array);
const roots = unpack(data.probabilities); // 255 times the square root: fine where it is small
const width = data.width;
const percent = (p) => (p < 0.01 ? "< 1 %" : `${Math.round(100 * p)} %`);

onCursor.push((index) => {
  const rows = [], spoken = ["then expected"], next = ids[index + 1];
  let foreseen = false;
  for (let k = 0; k < width; k++) {
    const symbol = expected[index * width + k], p = (roots[index * width + k] / 255) ** 2;
    const bar = element("div", { class: "bar" });
    bar.style.width = `${100 * p}%`;
    const came = symbol === next;
    foreseen ||= came;
    rows.push(element("tr", came ? { class: "came" } : {}, element("th", { scope: "row" }, named(symbol)),
      element("td", {}, bar), element("td", {}, (came ? "came: " : "") + percent(p))));
    spoken.push(`${named(symbol)} ${percent(p)}`);
  }
  byId("predictions").replaceChildren(...rows);
  byId("came").textContent = next === undefined ? "The text ends here."
    : foreseen ? "" : `What came, ${named(next)}, was not among them.`;
  return spoken;
});
onCursor.push((index) => {
  const levels = levelsOf(chosen);
  const value = index < levels.length ? (levels.at(index) - MIDDLE) / MIDDLE * scales[chosen] : NaN;
  const text = Number.isNaN(value) ? "not on this page" : `about ${number(value)}`;
  byId("value").textContent = text;
  return controls.colour.value === "surprise" ? [] : [`unit ${text}`];
});

// The cards, each with a passage coloured by its unit.
function snippet(unit, from, length) {
  const box = element("span", { class: "snippet", "aria-hidden": "true" });
  const levels = levelsOf(unit);
  for (let t = from; t < Math.min(from + length, levels.length); t++) appendCharacter(box, t, "u" + levels.at(t));
  return box;
}

const cards = byId("cards");
for (const card of data.cards) {
  const [property, chosenBy, reported] = data.findings[card.unit], name = data.properties[property];
  const button = element("button", { type: "button", "data-unit": card.unit,
    "aria-label": `Colour the text by ${unitName(card.unit)}: ${name}, correlation ${correlation(reported)}` },
    element("b", {}, element("span", {}, name), element("span", {}, correlation(reported))),
    element("small", {}, `${unitName(card.unit)} · ${correlation(chosenBy)} where it was chosen`),
    snippet(card.unit, card.from, data.passage));
  cards.append(element("li", {}, button));
}
for (const button of document.querySelectorAll("button[data-unit]")) {
  button.addEventListener("click", () => {
    controls.colour.value = "unit";
    showUnit(Number(button.dataset.unit));
  });
}
cards?.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const buttons = [...cards.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  buttons[(at + step + buttons.length) % buttons.length].focus();
});

// The gates: a mark for each unit, by the share of the time that it is closed and open.
const SVG = "http://www.w3.org/2000/svg";
function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const SHAPES = [
  (x, y, r) => ["circle", { cx: x, cy: y, r }],
  (x, y, r) => ["rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r }],
  (x, y, r) => ["path", { d: `M${x} ${y - 1.3 * r}l${1.2 * r} ${2.2 * r}h${-2.4 * r}z` }],
  (x, y, r) => ["path", { d: `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z` }],
];
function mark(layer, x, y, r) {
  const [name, attributes] = SHAPES[layer % SHAPES.length](x, y, r);
  return svg(name, { ...attributes, class: `layer${layer % SHAPES.length}` });
}
const plots = byId("plots");
for (const gate of data.gates) {
  const side = 200, left = 48, top = 8;
  const picture = svg("svg", { viewBox: `0 0 ${left + side + 12} ${top + side + 36}`, role: "img",
    "aria-label": `Gate ${gate.name}: for each unit the share of the time closed, across, and open, upwards; the table has the numbers` });
  picture.append(svg("rect", { class: "axis", x: left, y: top, width: side, height: side }),
    svg("path", { class: "axis", d: `M${left} ${top}l${side} ${side}`, "stroke-dasharray": "3 3" }));
  for (const share of [0, 0.5, 1]) {
    picture.append(svg("text", { x: left + share * side, y: top + side + 14, "text-anchor": "middle" }, String(share)),
      svg("text", { x: left - 6, y: top + (1 - share) * side + 4, "text-anchor": "end" }, String(share)));
  }
  picture.append(svg("text", { x: left + side / 2, y: top + side + 30, "text-anchor": "middle" }, "share of the time closed"),
    svg("text", { transform: `translate(10 ${top + side / 2}) rotate(-90)`, "text-anchor": "middle" }, "share of the time open"));
  for (const [layer, packed] of gate.layers) {
    const shares = unpack(packed), group = svg("g", { "fill-opacity": 0.6 });
    for (let u = 0; u < shares.length; u += 2) {
      const point = mark(layer, left + shares[u] / 255 * side, top + (1 - shares[u + 1] / 255) * side, 3);
      point.append(svg("title", {}, `layer ${layer + 1}, unit ${u / 2 + 1}`));
      group.append(point);
    }
    picture.append(group);
  }
  plots.append(element("figure", {}, element("figcaption", {}, gate.title), picture));
}
for (const item of document.querySelectorAll("[data-mark]")) {
  item.prepend(svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, mark(Number(item.dataset.mark), 8, 8, 4)), " ");
}

showUnit(chosen);
moveCursor(0, false);
