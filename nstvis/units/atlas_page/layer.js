// The units of a layer.
"use strict";
const SIZES = [16, 24, 32, 44, 64, 96, 128];
// Panels that a unit's page shows elsewhere than beside its patches.
const ELSEWHERE = ["kernels", "samples", "maps"];

// By number, or the highest of a statistic first; of equal ones, the dead first.
const byNumber = (a, b) => a.number - b.number;
const statistic = () => atlas.statistics.find(({ name }) => name === $("sort").value);
const text = ({ name, percent: share }, unit) => (share ? percent : number)(unit.statistics[name]);
const compare = (a, b) => (a ?? -Infinity) - (b ?? -Infinity) || 0;  // NaN where both are missing
const order = (known) => known
  ? (a, b) => compare(b.statistics[known.name], a.statistics[known.name]) || b.dead - a.dead || byNumber(a, b)
  : byNumber;
const shown = () => atlas.panels.find(({ title, layers }) => title === $("shown").value && here.layer in layers);

function card(unit, panel, sort) {
  const about = logit(unit) || className(unit.favourite), value = sort ? text(sort, unit) : "";
  const label = [`Unit ${unit.number}`, unit.dead && "dead", about, value].filter(Boolean).join(", ");
  const item = html("li", { class: unit.dead ? "dead" : "alive" },
    html("a", { href: address(unit.number), tabindex: -1, "aria-label": label }, allPictures(unit, panel),
      html("span", { class: "caption" }, html("b", {}, unit.number), named(unit.dead ? "dead" : about), value)));
  item.unit = unit;
  return item;
}
function receptiveField() {
  const [height, width, stride] = layer().field;
  return stride
    ? `Receptive field: ${height} × ${width} px, stride ${stride} px; the patches of all layers are drawn at one size.`
    : "Receptive field: the whole image.";
}
// What the greys of attributions mean.
function key(panel) {
  if (!ATTRIBUTIONS.includes(panel?.title)) return [];
  return [html("span", { class: "key" }, html("i", { class: "neutral" }), "0"),
    html("span", { class: "key" }, html("i", { class: "outside" }), "outside the image or the field"),
    "one scale for all of a unit"];
}
function listUnits() {
  here.grid = here.layer;
  here.listed = layer().content.units.filter(matches).toSorted(order(statistic()));
  here.drawn = false;
}
function showLayer() {
  if (here.drawn) return;
  const panel = shown(), k = slots(layer().content.units[0], panel).length, focused = $("units").contains(document.activeElement), sort = statistic();
  here.drawn = true;
  $("name").textContent = layer().name;
  $("field").textContent = receptiveField();
  const patches = layer().k > 1 ? `The ${layer().k} top-activating patches` : "The top-activating patch";
  $("legend").replaceChildren(`${patches} of each unit${panel ? `: ${panel.title}` : ""}. `, ...key(panel));
  $("units").style.setProperty("--columns", square(k));
  $("units").style.setProperty("--rows", Math.ceil(k / square(k)));
  $("units").replaceChildren(...here.listed.map((unit) => card(unit, panel, sort)));
  $("units").querySelector("a")?.setAttribute("tabindex", 0);
  if (focused) $("units").querySelector("a")?.focus();
  observe($("units"));
}
function focus(link) {
  $("units").querySelector("[tabindex='0']").setAttribute("tabindex", -1);
  link.setAttribute("tabindex", 0);
  link.focus();
}

// The mouse: the whole image beside each patch.
$("units").addEventListener("pointermove", ({ target, pointerType, clientX, clientY }) => {
  const hover = $("hover"), unit = target.closest("li")?.unit, panel = shown();
  const edges = target.getBoundingClientRect(), all = unit ? slots(unit, panel) : [], cell = edges.width / square(all.length);
  const slot = all[Math.floor((clientX - edges.left) / cell) + square(all.length) * Math.floor((clientY - edges.top) / cell)];
  const patch = pointerType === "mouse" && target.matches("canvas") && pictures(panel).k === layer().k && unit.top[slot];
  hover.hidden = !patch;
  if (!patch) return;
  if (hover.patch !== patch) hover.replaceChildren(whole(hover.patch = patch));
  const right = clientX + 24, fits = right + hover.offsetWidth < innerWidth;
  hover.style.left = `${fits ? right : Math.max(0, clientX - 24 - hover.offsetWidth)}px`;
  hover.style.top = `${Math.max(8, Math.min(clientY - hover.offsetHeight / 2, innerHeight - hover.offsetHeight - 8))}px`;
});
for (const [target, event] of [[$("units"), "pointerleave"], [document, "scroll"]])
  target.addEventListener(event, () => { $("hover").hidden = true; });
