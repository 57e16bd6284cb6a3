// The book's search: results are sections. `bookSections` and `bookGlossary` come from book/_ext/search.py.

if (typeof bookSections === "undefined" || typeof bookGlossary === "undefined") {
  document.getElementById("search-status").textContent =
    "The list of sections did not arrive, so nothing can be found. Load this page again.";
  throw new Error("_static/search-sections.js is missing");
}

const SHOWN = 25;
const SILENT = new Set(("a an and are as at be by can do does for from how i in is it my of on or out the to what when where " +
  "which why with you").split(" "));
// What one wants to do with a thing finds less than the thing.
const DOING = new Set(["find", "get", "load", "make", "use", "using"]);

const APPENDIX = /^book\/(index|appendix\/(?!setup|glossary|references))/;

/* Words */

// Singular and plural, "resume" and "resuming", "normalize" and "normalisation" are the same word.
function stem(word) {
  const short = word
    .replace(/iz(?=[aei])/, "is")
    .replace(/ies$/, "y")
    .replace(/([^su])s$/, "$1")
    .replace(/(at)?(?:ions?|ing|ed|or|e)$/, (end, at, index) => (index < 3 ? end : at ?? ""))
    .replace(/([bdglmnprt])\1$/, "$1");
  return short.length < 3 ? word : short;
}

// The words of a text without those that say nothing. Of "Grad-CAM" and "channels_last" these are the parts and, for
// who looks for "gradcam", the whole.
function split(text, wholes = false) {
  const chunks = text.toLowerCase().normalize("NFKC").match(/[\p{L}\p{N}]+(?:[-_][\p{L}\p{N}]+)*/gu) ?? [];
  return chunks.flatMap((chunk) => {
    const parts = chunk.match(/\p{L}+|\p{N}+/gu).filter((part) => !SILENT.has(part));
    return wholes && parts.length > 1 ? [...parts, parts.join("")] : parts;
  });
}

// Stems in one line, in which one can look for a phrase.
const line = (words) => ` ${words.map(stem).join(" ")} `;

/* The index, made when the page opens */

const index = bookSections.map(([address, page, heading, text, bold, others]) => {
  const counts = new Map();
  const raw = split(text, true);
  for (const word of raw.map(stem)) counts.set(word, (counts.get(word) ?? 0) + 1);
  return {
    address, page, heading, text, counts,
    length: raw.length,
    // The title of a page is that of its first section.
    title: line(split(heading || page, true)), titles: line(split(page)), bold: line(split(bold)),
    body: line(split(text)), others: new Set(split(others, true).map(stem)),
    exact: { title: new Set(split(heading || page, true)), bold: new Set(split(bold, true)), text: new Set(raw) },
    // Exercises, summaries, the first page and most of the appendix name what others explain.
    weight: /^(Exercise|Summary|What comes next)/.test(heading) || APPENDIX.test(address) ? 0.4 : 1,
  };
});
const glossary = bookGlossary.map(([address, names, same, text, chapter, where]) => ({
  address, names, same, text, chapter, where, forms: names.map((name) => line(split(name))),
}));
const spread = new Map(); // in how many sections a word is
for (const { title, counts, others } of index) {
  for (const word of new Set([...title.trim().split(" "), ...counts.keys(), ...others])) {
    spread.set(word, (spread.get(word) ?? 0) + 1);
  }
}

/* Scores: title > bold > text > code and tables */

function score(section, words, term) {
  let sum = 0, found = 0;
  for (const word of words) {
    const root = stem(word);
    const part = ` ${root} `;
    const count = section.counts.get(root) ?? 0;
    const as = (place) => (section.exact[place].has(word) ? 1 : 0.6); // as it is written, or in another form
    let points = 3 * count / (count + 0.6 + section.length / 250) * as("text");
    if (section.title.includes(part)) points += (section.heading ? 4 : 5) * as("title");
    else if (section.titles.includes(part)) points += 1.5;
    if (section.bold.includes(part)) points += 3 * as("bold");
    if (section.others.has(root)) points += 0.8;
    if (!points) continue;
    found += 1;
    if (term.includes(part)) points *= 1.5;
    sum += points * Math.log(1 + index.length / (spread.get(root) + 0.5));
  }
  if (found < words.length / 2) return 0;
  // All words, or hardly worth it; one behind the other is better.
  sum *= (found / words.length) ** 3 * section.weight;
  const phrase = line(words);
  if (words.length < 2) return sum;
  return sum * (section.title.includes(phrase) || section.bold.includes(phrase) ? 1.6 : section.body.includes(phrase) ? 1.4 : 1);
}

// The entries of the glossary that a query names, the closest first.
function meanings(text, words) {
  const query = line(words);
  const found = glossary.flatMap((entry) => {
    const [form] = entry.forms.filter((each) => query.includes(each)).sort((a, b) => b.length - a.length);
    const exact = entry.names.some((name) => name.toLowerCase() === text.trim().toLowerCase());
    return form ? [{ ...entry, form, whole: form === query, exact }] : [];
  });
  const exact = found.filter((entry) => entry.exact);
  if (exact.length) return exact;
  if (found.length) return found.sort((a, b) => b.form.length - a.form.length);
  // Part of a name: "residual", "normalisation".
  const written = ` ${text.trim().toLowerCase()} `;
  const part = glossary.filter(({ names }) => names.some((name) => ` ${name.toLowerCase()} `.includes(written)));
  return part.slice(0, 1).map((entry) => ({ ...entry, form: query, whole: true }));
}

function search(text) {
  const all = [...new Set(split(text))];
  const things = all.filter((word) => !DOING.has(word));
  const words = (things.length ? things : all).slice(0, 32);
  if (!words.length) return { entries: [], sections: [], stems: new Set() };
  const entries = meanings(text, words);
  const [term] = entries;
  // The query in the glossary's other words: who asks for a skip connection finds residual networks.
  const others = term?.same ? term.forms.filter((form) => form !== term.form) : [];
  const variants = others.map((form) => line(words).replace(term.form, form).trim().split(" "));
  // DenseLayer is a dense layer.
  if (/\p{Ll}\p{Lu}/u.test(text)) variants.push(split(text.replace(/(?<=\p{Ll})(?=\p{Lu})/gu, " ")));
  // A name with underscores is meant as it is.
  const names = (text.match(/\w+_\w+/g) ?? []).flatMap((name) => split(name, true).slice(-1)).map(stem);
  const sections = index
    .map((section) => {
      let points = Math.max(score(section, words, term?.form ?? ""), ...variants.map((variant) => score(section, variant, "")));
      // The chapter that introduces a term explains it.
      if (term && section.address.startsWith(term.chapter)) points *= term.whole ? 1.8 : 1.3;
      if (!names.every((name) => section.counts.has(name) || section.others.has(name))) points *= 0.4;
      if (!term?.whole && names.some((name) => section.title.includes(` ${name} `))) points *= 6;
      return { ...section, points };
    })
    .sort((a, b) => b.points - a.points);
  return {
    entries: entries.filter(({ whole }, at) => whole || (at === 0 && !names.length)).slice(0, 2),
    sections: sections.filter(({ points }) => points > 0 && points > sections[0].points / 8),
    stems: new Set([...words.map(stem), ...variants.flat()]),
  };
}

/* The page */

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// A text with the words of the query marked.
function marked(text, stems) {
  return text.split(/([\p{L}\p{N}]+)/u).map((part, at) =>
    (at % 2 && split(part).some((word) => stems.has(stem(word))) ? element("mark", { textContent: part }) : part));
}

// About two lines of a text, from where most different words of the query are.
function snippet(text, stems) {
  const sentences = text.match(/.+?(?:[.:?!]\s+|$)/gu) ?? [""];
  const worth = (at) => new Set(split(sentences.slice(at, at + 2).join(" ")).map(stem).filter((word) => stems.has(word))).size;
  const best = sentences.reduce((best, _, at) => (worth(at) > worth(best) ? at : best), 0);
  let part = sentences.slice(best).join("");
  if (part.length > 220) part = `${part.slice(0, 220).replace(/\s+\S*$/, "")} …`;
  return marked((best ? "… " : "") + part, stems);
}

function message(query, count) {
  const text = query.trim().length > 80 ? `${query.trim().slice(0, 80)} …` : query.trim();
  if (!text) return "";
  if (!split(text).length) return `“${text}” says nothing that one could look for. Try a name or a term.`;
  if (!count) return `Nothing was found for “${text}”. Try fewer words, or another word for the same thing.`;
  if (count > SHOWN) return `${count} sections found for “${text}”, of which these are the best ${SHOWN}:`;
  return `${count} ${count > 1 ? "sections" : "section"} found for “${text}”:`;
}

function render(text) {
  const { entries, sections, stems } = search(text);
  document.getElementById("search-status").textContent = message(text, sections.length);
  document.getElementById("search-definitions").replaceChildren(...entries.map((entry) =>
    element("p", {}, element("a", { href: entry.address, textContent: entry.names[0] }), `${entry.text} `,
      element("a", { href: entry.chapter, textContent: entry.where }))));
  document.getElementById("search-results").replaceChildren(...sections.slice(0, SHOWN).map((section) => {
    const name = element("b", { textContent: section.heading || section.page });
    const link = element("a", { href: section.address }, section.heading ? `${section.page} › ` : "", name);
    return element("li", {}, link, element("p", {}, ...snippet(section.text, stems)));
  }));
}

const field = document.querySelector(".bd-search-container input[name=q]");
field.value = new URLSearchParams(location.search).get("q") ?? "";
field.addEventListener("input", () => {
  render(field.value);
  // The address is that of these results: to come back to, and to hand on.
  const address = new URL(location.href);
  address.searchParams.set("q", field.value);
  try {
    history.replaceState(null, "", address);
  } catch { /* some browsers forbid it from disk, or when it is done too often */ }
});
field.focus();
field.select();
render(field.value);

// From the field to the results and back with the arrow keys.
document.addEventListener("keydown", (event) => {
  const places = [field, ...document.querySelectorAll("#search-definitions a, #search-results a")];
  const at = places.indexOf(document.activeElement);
  const next = at < 0 ? null : places[at + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] ?? NaN)];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
