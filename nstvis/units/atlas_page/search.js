// Search: by LAYER:NUMBER, name, class, and file of an image.
"use strict";
const RESULTS = 60;  // listed, at most
// For the units of all layers in a row: why each one is found, 0 if it is not.
const found = { why: new Uint8Array(), image: new Int32Array(), results: [], active: -1 };
const query = () => $("query").value.trim();
const place = ({ layer: i, number }) => atlas.layers[i].first + number;
const matches = (unit) => !query() || found.why[place(unit)] > 0;
const [ADDRESS, NAME, CLASS, IMAGE] = [1, 2, 3, 4];

async function prepare() {
  const names = atlas.findings.find(({ title }) => title === "name")?.layers ?? [];
  await Promise.all([load("search", () => atlas.search), ...names.map((i) => loadFinding("name", i))]);
}
// Units in the order in which they are found: of one kind, by layer and number.
function search() {
  const wanted = query().toLowerCase(), has = (text) => text.toLowerCase().includes(wanted);
  const total = atlas.layers.at(-1).first + atlas.layers.at(-1).units;
  Object.assign(found, { why: new Uint8Array(total), image: new Int32Array(total), results: [], active: -1 });
  const add = (unit, why) => { if (!found.why[unit]) found.why[unit] = why; };
  const [, name, digits] = wanted.match(/^(?:(.+)[:/ ])?(\d+)$/) ?? [];
  const classes = new Set(atlas.classes.flatMap((name, i) => has(name) ? [i] : []));
  if (!wanted) return;
  atlas.layers.forEach(({ name: known, units, first }, i) => {
    if (digits && +digits < units && (!name || known.toLowerCase() === name.trim())) add(first + +digits, ADDRESS);
    atlas.findings.some(({ title }) => title === "name") && atlas.layers[i].findings.name?.forEach((row, n) => {
      if (row.tested && has(row.concept)) add(first + n, NAME);
    });
    atlas.search.favourites[i].forEach((label, n) => {
      if (classes.has(label) || has(logit({ layer: i, number: n }) || "\0")) add(first + n, CLASS);
    });
  });
  atlas.search.images.forEach(([id, label, ...units], image) => {
    if (classes.has(label) || has(id)) for (const unit of units) if (!found.why[unit]) add(unit, IMAGE), found.image[unit] = image;
  });
  for (const why of [ADDRESS, NAME, CLASS, IMAGE])
    for (let unit = found.why.indexOf(why); unit >= 0 && found.results.length < RESULTS; unit = found.why.indexOf(why, unit + 1))
      found.results.push(unit);
  found.active = found.why[found.results[0]] === ADDRESS && name ? 0 : -1;
}
function unitAt(unit) {
  const i = atlas.layers.findLastIndex(({ first }) => first <= unit);
  return { layer: i, number: unit - atlas.layers[i].first };
}
function reason(unit) {
  const { layer: i, number } = unitAt(unit), [id, label] = atlas.search.images[found.image[unit]] ?? [];
  const favourite = logit({ layer: i, number }) || className(atlas.search.favourites[i][number]);
  if (found.why[unit] === IMAGE) return [named(id, "id"), named(className(label))];
  const name = finding("name", { layer: i, number });
  return [name?.tested && found.why[unit] !== CLASS ? named(name.concept, "guessed") : named(favourite)];
}
function listResults(open) {
  const items = found.results.map((unit, n) => {
    const { layer: i, number } = unitAt(unit);
    const item = html("li", { role: "option", id: `result-${n}`, "aria-selected": n === found.active },
      html("a", { href: address(number, i), tabindex: -1 }, html("b", {}, `${atlas.layers[i].name}:${number}`), ...reason(unit)));
    item.onclick = closeResults;
    return item;
  });
  $("results").replaceChildren(...items);
  $("results").hidden = !(open && items.length);
  $("query").setAttribute("aria-expanded", !$("results").hidden);
  activate(found.active);
}
function activate(n) {
  $("results").querySelector("[aria-selected='true']")?.setAttribute("aria-selected", false);
  found.active = n;
  const item = $(`result-${n}`);
  item?.setAttribute("aria-selected", true);
  item?.scrollIntoView({ block: "nearest" });
  item ? $("query").setAttribute("aria-activedescendant", item.id) : $("query").removeAttribute("aria-activedescendant");
}
function closeResults() {
  $("results").hidden = true;
  $("query").setAttribute("aria-expanded", false);
}

$("query").oninput = async () => {
  const wanted = query();
  try { await prepare(); } catch (error) { return say(error.message); }
  if (query() !== wanted) return;
  search();
  listResults(Boolean(wanted));
  atlas.layers.forEach(({ first, units }, i) => {
    const hits = found.why.subarray(first, first + units).reduce((sum, why) => sum + (why > 0), 0);
    $("layers").children[i].querySelector("small").textContent = wanted ? hits : "";
  });
  refresh();
};
$("query").onkeydown = (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], { results, active } = found;
  if (step && results.length) {
    if ($("results").hidden) listResults(true);
    activate((active + step + results.length + (active < 0 && step < 0)) % results.length);
  } else if (event.key === "Enter" && active >= 0 && !$("results").hidden) {
    location.hash = $(`result-${active}`).firstChild.hash;
    closeResults();
  } else if (event.key === "Enter" || (event.key === "Escape" && !$("results").hidden)) {
    closeResults();
    if (event.key === "Enter" && here.unit === null) $("units").querySelector("[tabindex='0']")?.focus();
  } else return;
  event.preventDefault();
};
$("find").addEventListener("focusout", ({ relatedTarget }) => {
  if (!$("find").contains(relatedTarget)) closeResults();
});
$("query").onfocus = () => { prepare().catch((error) => say(error.message)); };
