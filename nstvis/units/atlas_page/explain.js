// What explains a unit: its name, connections, neighbours, samples, and scores.
"use strict";
const FIRST = 6;  // connections and neighbours that are not folded

const signed = (x, text = number) => `${x > 0 ? "+" : ""}${text(x)}`;
// The rows of a finding that are there, each with its place among all of them.
const rows = (finding, there) =>
  Object.keys(Object.values(finding)[0]).map((slot) => ({
    slot: +slot, ...Object.fromEntries(Object.entries(finding).map(([field, values]) => [field, values?.[slot]])),
  })).filter(there);

// A name is a guess, with its score on images that were not used to make it.
function naming(unit) {
  const known = finding("name", unit);
  if (!known) return [];
  const { concept, auroc, q, tested } = known;
  const others = Object.entries(known).filter(([field]) => field.startsWith("constant")).map(([, x]) => x);
  const constant = others.length ? ["; one name for all units: ", ...others.flatMap((x) => [typeof x === "string" ? named(x) : number(x), " "])] : [];
  const score = html("span", {}, `AUROC ${number(auroc)} on images kept apart, q ${q < 0.001 ? "< 0.001" : `= ${number(q)}`}`, ...constant);
  return [tested
    ? html("p", { class: "guess" }, named(concept, "concept"), kind("a guess"), score)
    : html("p", { class: "guess" }, html("bdi", { class: "concept" }, "no name"), kind("none is significant"), score)];
}

// Another unit, with its patches and a link to it where it is in the atlas.
function linked(name, number, ...captions) {
  const i = atlas.layers.findIndex((layer) => layer.name === name), unit = { layer: i, number };
  const title = html("b", {}, `${name}:${number}`);
  if (!(number < atlas.layers[i]?.units)) return html("span", { class: "linked" }, title, ...captions);
  return html("a", { class: "linked", href: address(number, i) }, allPictures(unit), title,
    logit(unit) ? named(logit(unit)) : "", ...captions);
}
function list(label, items) {
  const entries = (some) => html("ol", { class: "strip links-to", "aria-label": label }, ...some.map((item) => html("li", {}, item)));
  if (items.length <= FIRST) return [entries(items)];
  const more = html("details", {}, html("summary", {}, `${items.length - FIRST} more`), entries(items.slice(FIRST)));
  return [entries(items.slice(0, FIRST)), more];
}
function connection(unit, row, kernels) {
  const drop = row.ablation === undefined ? [] : [html("span", {}, row.ablation === null ? "?" : signed(-row.ablation, percent))];
  const item = linked(row.layer, row.unit, html("span", {}, signed(row.contribution)), ...drop);
  if (has(kernels, unit) && kernels) item.querySelector("b").before(picture(unit, [row.slot], 1, kernels));
  return item;
}
function connections(unit, title, kernels) {
  const known = finding(title, unit);
  if (!known) return [];
  const all = rows(known, (row) => row.unit >= 0 && row.layer);
  return [["excitatory", 1], ["inhibitory", -1]].flatMap(([name, sign]) => {
    const some = all.filter(({ contribution }) => sign * contribution > 0);
    return some.length ? [html("h4", {}, name), ...list(`${name} ${title}`, some.map((row) => connection(unit, row, kernels)))] : [];
  });
}
const CONTRIBUTION = "Contribution to the unit's sum before its nonlinearity, weight × activation over its own patches";

const sections = {
  inputs(unit) {
    const kernels = panelOf("kernels"), all = connections(unit, "inputs", kernels);
    if (!all.length) return [];
    const drawn = kernels && has(kernels, unit) ? "; with the kernel, red where it excites and blue where it inhibits" : "";
    const { strongest, random } = finding("inputs", unit), told = (x) => signed(-x, percent);
    const both = typeof strongest === "number" && typeof random === "number"
      ? ` Without all excitatory ones of these ${told(strongest)}, without as many random inputs ${told(random)}.` : "";
    return [part("Inputs", kind("measured"), html("p", {}, `${CONTRIBUTION}${drawn}. Below it, how the activation changes, on other patches, without that input.${both}`), ...all)];
  },
  outputs(unit) {
    const all = connections(unit, "outputs");
    return all.length ? [fold("Outputs", html("p", {}, `${CONTRIBUTION}, of the units that this one is an input of.`), ...all)] : [];
  },
  neighbours(unit) {
    const all = rows(finding("neighbours", unit), (row) => row.unit >= 0 && row.layer);
    const items = all.map(({ layer: name, unit: other, similarity }) => linked(name, other, html("span", {}, number(similarity))));
    return items.length ? [fold("Similar units", ...list("Similar units", items))] : [];
  },
  samples(unit) {
    const panel = panelOf("samples"), all = rows(finding("samples", unit), (row) => row.image >= 0);
    const items = all.map(({ slot, quantile, score, image, box }) => {
      const patch = [score, image, ...box], shown = panel && has(panel, unit) ? picture(unit, [slot], 1, panel) : wholeImage(patch);
      return chooser(unit, patch, `sample-${slot}`, shown, html("span", {}, `${percent(quantile)}: ${number(score)}`));
    });
    const told = html("p", {}, "Images at fixed quantiles of the activation, the lowest first.");
    return items.length ? [fold("The whole range", told, strip("Samples", items))] : [];
  },
  scores(unit) {
    const { pairs = null, ...shares } = finding("scores", unit);
    const share = (x) => Array.isArray(x) ? x.map(percent).join(" to ") : percent(x);
    const facts = Object.entries(shares).filter(([, x]) => x !== null).flatMap(([name, x]) =>
      [html("dt", {}, name.replaceAll("_", " ")), html("dd", {}, html("b", {}, share(x)))]);
    const told = "Shown such pictures of the unit, a machine tells which of two other patches activates it more:"
      + ` in so many of ${pairs === null ? "all pairs" : count(pairs, "pair")}. Chance is 50 %; random patches and another unit's (others) are controls.`;
    return facts.length ? [fold("How well pictures explain it", html("p", {}, told), html("dl", {}, ...facts))] : [];
  },
};
// A finding that this page does not know is shown as it is.
function plain(title, unit) {
  const told = (x) => Array.isArray(x) ? x.map(told).join(", ") : typeof x === "number" || x === null ? number(x) : String(x);
  const facts = Object.entries(finding(title, unit)).flatMap(([field, value]) =>
    [html("dt", {}, field.replaceAll("_", " ")), html("dd", {}, html("b", {}, named(told(value))))]);
  return [fold(title, html("dl", {}, ...facts))];
}
function explained(unit) {
  const titles = atlas.findings.map(({ title }) => title).filter((title) => finding(title, unit) && !["name", "maps", "class"].includes(title));
  const known = Object.keys(sections).filter((title) => titles.includes(title)), others = titles.filter((title) => !(title in sections));
  return [...known.flatMap((title) => sections[title](unit)), ...others.flatMap((title) => plain(title, unit))];
}
