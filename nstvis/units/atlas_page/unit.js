// One unit: what was measured of it.
"use strict";
function histogram({ histogram: bins }) {
  const edges = atlas.edges, filled = bins.flatMap((n, i) => n ? [i] : []);
  if (!filled.length) return "No images.";
  const first = filled[0], last = filled.at(-1), middle = Math.round((first + last + 1) / 2);
  // Most images activate few units: beside the bar at 0, no other could be seen.
  const zero = (i) => edges[i] <= 0 && edges[i + 1] > 0, rest = filled.filter((i) => !zero(i));
  const most = Math.max(1, ...rest.map((i) => bins[i]));
  const drawing = svg("svg", {
    class: "histogram", viewBox: `0 0 ${last + 1 - first} 100`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Histogram of the activations, from ${number(edges[first])} to ${number(edges[last + 1])}`,
  });
  for (const i of filled) {
    const height = Math.min(100, Math.max(1, 100 * bins[i] / most)), kind = zero(i) ? "zero" : "bar";
    drawing.append(svg("rect", { class: kind, x: i - first + 0.08, y: 100 - height, width: 0.84, height },
      svg("title", {}, `${number(edges[i])} to ${number(edges[i + 1])}: ${count(bins[i], "image")}`)));
  }
  return html("div", {}, drawing, html("p", { class: "axis" },
    ...[first, ...(last - first > 1 ? [middle] : []), last + 1].map((i) => html("span", {}, zero(i) ? "0" : number(edges[i])))));
}
const kind = (text) => html("small", { class: "kind" }, text);
const part = (title, ...children) => html("section", {}, html("h3", {}, title), ...children);
// What is secondary stays folded, in all units, until one opens it.
function fold(title, ...children) {
  const details = html("details", {}, html("summary", {}, html("h3", {}, title), kind("measured")), ...children);
  details.open = settings.open.includes(title);
  details.ontoggle = () => {
    const others = settings.open.filter((other) => other !== title);
    remember({ open: details.open ? [...others, title] : others });
  };
  return html("section", {}, details);
}

function neighbours(unit) {
  // From a unit that the search leaves out, the arrows lead through all of them.
  const all = here.listed.includes(unit) ? here.listed : layer().content.units, place = all.indexOf(unit);
  return [all[place - 1], all[place + 1]];
}

// The unit's activation at every position of the map, over the whole image.
function heat(unit, slot) {
  const panel = panelOf("maps"), box = finding("maps", unit)?.box;
  if (!settings.maps || !box || !has(panel, unit)) return "";
  const [y, x, bottom, right] = box, { side, pitch, rows } = pictures(panel, unit.layer);
  const place = { x, y, width: right - x, height: bottom - y };
  const values = "0 0 0 0 1  0 0 0 0 0.25  0 0 0 0 0  0.8 0 0 0 0";
  return svg("g", {},
    svg("filter", { id: "heat", filterUnits: "userSpaceOnUse", "color-interpolation-filters": "sRGB", ...place },
      svg("feColorMatrix", { values })),
    svg("g", { filter: "url(#heat)" }, svg("svg", {
      ...place, class: "map", preserveAspectRatio: "none",
      viewBox: [slot * pitch, unit.number % rows * pitch, side, side].join(" "),
    }, svg("image", { href: file(panel, unit) }))));
}
function mapButton(unit, slot) {
  if (!finding("maps", unit)?.box || !has(panelOf("maps"), unit)) return "";
  const button = html("button", { "aria-pressed": settings.maps }, "Activation map");
  button.onclick = () => {
    remember({ maps: !settings.maps });
    choose(unit, unit.top[slot], slot);
    $("unit").querySelector(".whole button").focus();
  };
  return button;
}

// Shows a patch's whole image, and marks all that belongs to the patch.
function choose(unit, patch, slot) {
  for (const chosen of $("unit").querySelectorAll(".chosen")) chosen.classList.remove("chosen");
  for (const button of $("unit").querySelectorAll(`[data-slot="${slot}"]`)) button.classList.add("chosen");
  const ranked = unit.top[slot] === patch;
  $("unit").querySelector(".whole").replaceChildren(whole(patch, ...ranked ? [heat(unit, slot), mapButton(unit, slot)] : []));
}
function chooser(unit, patch, slot, picture, ...captions) {
  const button = html("button", { "data-slot": slot }, picture, ...captions);
  for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => choose(unit, patch, slot));
  return button;
}
function captions([score, index]) {
  const [id, label] = layer().content.images[index] ?? [`image ${index}`, -1];
  return [html("span", {}, number(score)), named(className(label)), named(id, "id")];
}
const strip = (label, cells) => html("ol", { class: "strip", "aria-label": label },
  ...cells.map((cell) => html("li", {}, cell ?? html("div", { class: "none" }, "no image"))));
function wholeImage([, index]) {
  const file = layer().content.images[index]?.[2];
  return html("img", file ? { src: `atlas/pictures/${file}`, alt: "" } : { alt: "" });
}

// What a panel shows; its cells choose patches where they belong to them.
function cells(unit, panel) {
  const places = slots(unit, panel), each = ATTRIBUTIONS.includes(panel.title) && pictures(panel).k === layer().k;
  const all = places.map((slot) => {
    const canvas = picture(unit, [slot], 1, panel);
    if (!each || !unit.top[slot]) return canvas;
    const button = chooser(unit, unit.top[slot], slot, canvas);
    button.setAttribute("aria-label", `${panel.title} of patch ${slot + 1}`);
    return button;
  });
  const strip = html("div", { class: "strip" }, ...all);
  strip.style.setProperty("--columns", square(all.length));
  const title = panel.title === "kernels" ? "filter" : panel.title;
  return html("div", { class: "panel" }, html("h3", {}, title), strip, html("p", { class: "keys" }, ...key(panel)));
}
function bar([label, x], most) {
  const length = html("i");
  length.style.width = `${100 * Math.max(0, x) / Math.max(1e-30, most)}%`;
  return html("li", {}, named(className(label)), length, html("span", {}, number(x)));
}
function heading(unit) {
  const [before, after] = neighbours(unit), about = html("p", {});
  const link = (to, text, label) => to ? html("a", { href: address(to.number), "aria-label": label }, text) : "";
  if (logit(unit)) about.append("logit of ", named(logit(unit)), "; ");
  if (unit.dead) about.append("dead unit: 0 for every image");
  else if (unit.favourite >= 0) about.append("favourite class: ", named(className(unit.favourite)));
  return html("div", { class: "title" },
    html("h2", { id: "title", tabindex: -1 }, `${layer().name} / ${unit.number}`), about,
    html("p", { class: "links" }, link(before, `← ${before?.number}`, `Previous: unit ${before?.number}`),
      link(after, `${after?.number} →`, `Next: unit ${after?.number}`),
      html("a", { href: address(null) }, `All of ${layer().name}`)));
}
function activations(unit) {
  const fact = (known) => [
    html("dt", {}, known.name), html("dd", {}, html("b", {}, text(known, unit)), html("small", {}, known.description))];
  const facts = atlas.statistics.filter(({ name }) => unit.statistics[name] !== null).flatMap(fact);
  return part("Activations", histogram(unit), html("dl", {}, ...facts));
}
function showUnit() {
  const { k, content } = layer(), unit = content.units[here.unit];
  const patches = strip("Top-activating patches", unit.top.map((patch, slot) =>
    patch && chooser(unit, patch, slot, picture(unit, [slot]), ...captions(patch))));
  const least = strip("Least-activating images", unit.least.map((image, place) =>
    image && chooser(unit, image, `least-${place}`, wholeImage(image), ...captions(image))));
  const bars = unit.strongest.map((entry) => bar(entry, unit.strongest[0][1]));
  const panels = atlas.panels.filter((panel) => has(panel, unit)
    && (!ELSEWHERE.includes(panel.title) || (panel.title === "kernels" && linear(unit.layer))));
  patches.style.setProperty("--columns", square(k));
  $("unit").classList.toggle("dead", unit.dead);
  $("unit").replaceChildren(heading(unit), ...naming(unit), html("div", { class: "plate" },
    html("div", {},
      html("div", { class: "strongest" }, patches,
        panels.length ? html("div", { class: "panels" }, ...panels.map((panel) => cells(unit, panel))) : "",
        html("div", { class: "about" }, activations(unit),
          bars.length ? part("Top classes by mean activation", html("ol", { class: "bars" }, ...bars)) : "")),
      html("p", {}, receptiveField()), ...explained(unit), part("Least-activating images", least)),
    html("div", { class: "whole" })));
  observe($("unit"));
  patches.querySelector("button")?.click();
}
