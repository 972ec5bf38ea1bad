// What all views share: elements, numbers, and the atlas's files.
"use strict";
const $ = (id) => document.getElementById(id);

// Names from the data set become text and attributes, never markup.
const maker = (space) => (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const html = maker("http://www.w3.org/1999/xhtml"), svg = maker("http://www.w3.org/2000/svg");
// Isolates names, so that right-to-left ones do not reorder the text around them.
const named = (text, kind = "name") => html("bdi", { class: kind }, text);
const number = (x) => x === null ? "?" : String(+x.toPrecision(3)).replace("-", "−");
const percent = (x) => x === null ? "?" : `${number(100 * x)} %`;
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const className = (label) => atlas.classes[label] ?? "";
const square = (k) => Math.ceil(Math.sqrt(k));
const say = (text) => { $("status").textContent = text; };

// What is shown; `grid` is the layer whose units are listed, `listed` those units, and
// `drawn` whether there are cards of them.
const here = { layer: 0, unit: null, grid: null, listed: [], drawn: false, scroll: 0 };
const layer = () => atlas.layers[here.layer];
// The class whose logit a unit is; the network's own if they are known.
const logit = ({ layer: i, number }) => {
  const names = atlas.logits?.length ? atlas.logits : atlas.classes;
  return i === atlas.layers.length - 1 && atlas.layers[i].units === names.length ? names[number] : "";
};
const address = (unit, i = here.layer) =>
  `#${encodeURIComponent(atlas.layers[i].name)}${unit === null ? "" : `/${unit}`}`;

// A page opened from disk may load only scripts and pictures.
const scripts = new Map(), sprites = new Map();
function load(stem, found) {
  if (!scripts.has(stem)) scripts.set(stem, new Promise((resolve, reject) => {
    const script = html("script", { src: `atlas/${stem}.js` });
    script.onload = script.onerror = () => {
      const content = found();
      content ? resolve(content) : reject(Error(`atlas/${stem}.js is missing or damaged`));
    };
    document.head.append(script);
  }));
  return scripts.get(stem);
}
const loadLayer = (i) => load(i, () => {
  const { content } = atlas.layers[i];
  content?.units.forEach((unit, n) => Object.assign(unit, { layer: i, number: n }));
  return content;
});
const loadFinding = (title, i) => load(`${title}-${i}`, () => atlas.layers[i].findings[title]);
const loadFindings = (i) => Promise.all(
  atlas.findings.filter(({ layers }) => layers.includes(i)).map(({ title }) => loadFinding(title, i)));
const finding = (title, { layer: i, number }) => atlas.layers[i].findings[title]?.[number];

// How a layer's pictures, of a panel or the patches, lie in their files.
const pictures = (panel, i = here.layer) => panel ? panel.layers[i] : atlas.layers[i];
const has = (panel, { layer: i, number }) => !panel || panel.layers[i]?.units.includes(number);
const panelOf = (title) => atlas.panels.find((panel) => panel.title === title);
const file = (panel, { layer: i, number }) =>
  `atlas/${panel ? `${panel.title}-` : ""}${i}-${Math.floor(number / pictures(panel, i).rows)}.webp`;
function sprite(unit, panel) {
  const source = file(panel, unit);
  if (!sprites.has(source)) {
    const image = new Image();
    image.src = source;
    sprites.set(source, image.decode().then(() => image, () => say(`${source} is missing or damaged`)));
  }
  return sprites.get(source);
}

// Draws pictures of a unit in rows, with a gap where an image is missing.
async function draw(canvas, unit, slots, columns, gap, panel) {
  const { side, pitch, rows } = pictures(panel, unit.layer), image = await sprite(unit, panel);
  if (!image || !canvas.clientWidth) return;
  canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
  canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
  const context = canvas.getContext("2d"), step = (canvas.width + gap) / columns;
  // Scaled straight from the sprite, a patch would pick up its neighbours' colours.
  const cell = new OffscreenCanvas(side, side), patch = cell.getContext("2d");
  context.imageSmoothingEnabled = !settings.pixelated && panel?.title !== "kernels";
  context.imageSmoothingQuality = "high";
  slots.forEach((slot, place) => {
    const left = Math.round(place % columns * step), top = Math.round(Math.floor(place / columns) * step);
    const size = Math.round((place % columns + 1) * step) - gap - left;
    if (!panel && unit.top && !unit.top[slot]) return;
    patch.drawImage(image, -slot * pitch, -(unit.number % rows) * pitch);
    context.drawImage(cell, left, top, size, size);
  });
}
// Pictures are drawn as they come into sight.
const watcher = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
  if (isIntersecting) target.paint();
  else if (target.drawn) target.width = 0;  // thousands would not fit into a phone's memory
  target.drawn = isIntersecting;
}), { rootMargin: "300px" });
const observe = (section) => section.querySelectorAll("canvas").forEach((canvas) => {
  watcher.unobserve(canvas);
  watcher.observe(canvas);
});
function picture(unit, slots, columns = 1, panel = undefined) {
  const canvas = html("canvas"), gap = columns > 1 ? Math.round(2 * devicePixelRatio) : 0;
  canvas.paint = () => has(panel, unit) && draw(canvas, unit, slots, columns, gap, panel);
  return canvas;
}
// Where a layer is linear in the image, all attributions of a unit are one picture.
const ATTRIBUTIONS = ["deconvnet", "guided", "gradient"];
const linear = (i) => i in (panelOf("kernels")?.layers ?? {})
  && !atlas.findings.some(({ title, layers }) => title === "inputs" && layers.includes(i));
function slots(unit, panel) {
  const { k } = pictures(panel, unit.layer);
  if (!ATTRIBUTIONS.includes(panel?.title) || !linear(unit.layer)) return [...Array(k).keys()];
  const within = unit.top.findIndex((patch) => patch && Math.min(...patch.slice(2)) >= 0 && Math.max(...patch.slice(2)) <= atlas.size);
  return [Math.max(0, within)];
}
function allPictures(unit, panel) {
  const all = slots(unit, panel);
  return picture(unit, all, square(all.length), panel);
}

// A whole image and the receptive field; grey where that extends past the border.
function whole([score, index, top, left, bottom, right], overlay = "", tool = "") {
  const [id, label, file] = layer().content.images[index] ?? [`image ${index}`, -1, null], size = atlas.size;
  const x = Math.min(0, left), y = Math.min(0, top);
  const width = Math.max(size, right) - x, height = Math.max(size, bottom) - y;
  const edge = Math.max(width, height) / 150, outline = `M${left} ${top}H${right}V${bottom}H${left}z`;
  const drawing = svg("svg", {
    viewBox: [x - edge, y - edge, width + 2 * edge, height + 2 * edge].join(" "), role: "img",
    "aria-label": `Image ${id}; receptive field: rows ${top} to ${bottom} and columns ${left} to ${right} of ${size}`,
  }, svg("rect", { x, y, width, height, fill: "#7f7f7f" }));
  if (file) drawing.append(svg("image", { href: `atlas/pictures/${file}`, width: size, height: size, preserveAspectRatio: "none" }));
  drawing.append(overlay || svg("path", { d: `M${x} ${y}h${width}v${height}h${-width}z${outline}`, "fill-rule": "evenodd", fill: "#0006" }),
    svg("path", { class: "field", d: outline, fill: "none", stroke: "#000", "stroke-width": 2 * edge }),
    svg("path", { d: outline, fill: "none", stroke: "#fff", "stroke-width": edge }));
  return html("figure", {}, drawing, html("figcaption", {},
    html("strong", {}, number(score)), named(className(label)), named(id, "id"), file ? "" : "image not stored", tool));
}
