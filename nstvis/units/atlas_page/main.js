// Addresses, the keyboard, the tools, and the start.
"use strict";

// Addresses: #conv4 and #conv4/17.
function asked() {
  const find = (name) => atlas.layers.findIndex((layer) => layer.name === name);
  const plain = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
  const wanted = location.hash.slice(1), [, name, unit] = wanted.match(/^(.*?)(?:\/(\d+))?$/s).map((x) => x && plain(x));
  if (!wanted) return { layer: 0, unit: null };
  if (find(name) < 0) return { layer: 0, unit: null, complaint: `There is no “${plain(wanted)}” in this atlas; showing ${atlas.layers[0].name}.` };
  const layer = find(name), { units } = atlas.layers[layer];
  if (!unit || +unit < units) return { layer, unit: unit ? +unit : null };
  return { layer, unit: null, complaint: `There is no unit ${unit} in ${name}: there are 0 to ${units - 1}.` };
}
async function route() {
  const { layer: i, unit, complaint } = asked(), hash = location.hash, was = { ...here };
  let missing;
  const findings = unit === null ? [] : loadFindings(i).catch((error) => { missing = error.message; });
  try { await Promise.all([loadLayer(i), findings]); } catch (error) { return say(error.message); }
  if (location.hash !== hash) return;
  if (was.unit === null) was.scroll = here.scroll = scrollY;
  Object.assign(here, { layer: i, unit });
  const walking = $("layers").contains(document.activeElement);
  const tab = $("layers").children[i].firstChild;
  $("layers").querySelector("[aria-current]")?.removeAttribute("aria-current");
  tab.setAttribute("aria-current", "true");
  tab.scrollIntoView({ block: "nearest", inline: "center" });
  if (walking) tab.focus();
  $("hover").hidden = true;
  $("layer").hidden = unit !== null;
  $("unit").hidden = unit === null;
  if (here.grid !== i) sprites.clear(), listUnits();
  unit === null ? showLayer() : showUnit();
  document.title = `${layer().name}${unit === null ? "" : `/${unit}`} · ${$("model").textContent}`;
  report(complaint ?? missing);
  if (was.grid === null) return;
  const card = was.layer === i && unit === null && [...$("units").children].find((item) => item.unit.number === was.unit);
  scrollTo(0, card ? was.scroll : 0);
  if (card) focus(card.firstChild);
  else if (unit !== null && !walking) $("title").focus({ preventScroll: true });
}
function report(complaint) {
  const { units, dead, content } = layer(), place = here.listed.indexOf(content.units[here.unit]) + 1;
  const some = query() ? `${here.listed.length} of ${count(units, "unit")} matching “${query()}”` : count(units, "unit");
  const all = dead && !query() ? `${some}, ${dead} dead` : some;
  say(complaint ?? (here.unit === null ? all : place ? `${place} of ${some}` : `Not among ${some}`));
}
function refresh() {
  listUnits();
  here.unit === null ? showLayer() : showUnit();
  report();
}

// The keyboard.
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key], row = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const links = [...$("units").querySelectorAll("a")], focused = links.indexOf(document.activeElement);
  // The page that was asked for last: keys may come faster than pages.
  const { layer: i, unit } = asked();
  if (event.key === "Escape") {
    $("hover").hidden = true;
    if (unit !== null) location.hash = address(null, i);
  } else if (event.key === "/") $("query").focus(), $("query").select();
  else if (side && (event.shiftKey || $("layers").contains(event.target))) {
    const next = atlas.layers[i + side];
    if (next) location.hash = address(unit === null ? null : Math.min(unit, next.units - 1), i + side);
  } else if (side && unit !== null) {
    const next = i === here.layer && neighbours(layer().content.units[unit])[(side + 1) / 2];
    if (next) location.replace(address(next.number));  // so that Back leads to the list
  } else if (side && links.length) {
    focus(links[focused + side] ?? links[focused] ?? $("units").querySelector("[tabindex='0']"));
  } else if (row && focused >= 0) {
    const columns = links.findIndex((link) => link.offsetTop > links[0].offsetTop);
    focus(links[focused + row * (columns < 0 ? links.length : columns)] ?? links[focused]);
  } else return;
  event.preventDefault();
});

// The tools. A browser may forbid a page opened from disk to store settings.
const system = matchMedia("(prefers-color-scheme: dark)");
const settings = { size: 3, pixelated: false, maps: true, open: [] };
try { Object.assign(settings, JSON.parse(localStorage.getItem("nstvis-atlas"))); } catch { /* the defaults */ }
function remember(change) {
  Object.assign(settings, change);
  try { localStorage.setItem("nstvis-atlas", JSON.stringify(settings)); } catch { /* not stored */ }
}
function apply(change) {
  remember(change);
  const dark = settings.dark ?? system.matches, root = document.documentElement;
  root.style.colorScheme = dark ? "dark" : "light";
  root.classList.toggle("pixelated", settings.pixelated);
  $("dark").setAttribute("aria-pressed", dark);
  $("pixelated").setAttribute("aria-pressed", settings.pixelated);
  $("smaller").disabled = settings.size === 0;
  $("larger").disabled = settings.size === SIZES.length - 1;
  const first = [...$("units").children].find((item) => item.getBoundingClientRect().top > 0);
  const top = first?.getBoundingClientRect().top;
  root.style.setProperty("--cell", `${SIZES[settings.size]}px`);
  if (first && scrollY) scrollBy(0, first.getBoundingClientRect().top - top);
  observe($("units"));
  if (here.unit !== null) showUnit();
}
system.addEventListener("change", () => apply());
$("dark").onclick = () => apply({ dark: !(settings.dark ?? system.matches) });
$("pixelated").onclick = () => apply({ pixelated: !settings.pixelated });
$("smaller").onclick = () => apply({ size: settings.size - 1 });
$("larger").onclick = () => apply({ size: settings.size + 1 });
$("sort").onchange = $("shown").onchange = refresh;
$("skip").onclick = () => (here.unit === null ? $("units").querySelector("[tabindex='0']") : $("title"))?.focus();

if (window.atlas) {
  const { model, ...others } = Object.fromEntries(atlas.about);
  let first = 0;
  for (const layer of atlas.layers) {
    Object.assign(layer, { first, findings: {} });
    first += layer.units;
  }
  atlas.panels ??= [];
  atlas.findings ??= [];
  $("model").textContent = model ?? "Units";
  $("about").textContent = [...Object.values(others), `${count(atlas.images, "image")} of ${atlas.size} × ${atlas.size} px`].join(" · ");
  $("layers").append(...atlas.layers.map(({ name }, i) => html("li", {}, html("a", { href: address(null, i) }, name, html("small")))));
  const panels = atlas.panels.filter(({ title }) => !ELSEWHERE.includes(title));
  $("shown").append(...["patches", ...panels.map(({ title }) => title)].map((title) => html("option", { value: title }, title)));
  $("kinds").hidden = !panels.length;
  $("sort").append(...["number", ...atlas.statistics.map(({ name }) => name)].map((name) => html("option", { value: name }, name)));
  apply();
  addEventListener("hashchange", route);
  route();
} else say("atlas/table.js is missing or damaged: the folder “atlas” must be beside this page.");
