// What scrolls sideways has to be within reach of the keyboard. The theme sees to code and tables when the page has
// loaded and when the window changes its size.

// What a reader unfolds counts as well.
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true);

// So do formulas.
function fitFormulas() {
  for (const formula of document.querySelectorAll("article .math")) {
    if (formula.scrollWidth > formula.clientWidth + 1) formula.setAttribute("tabindex", "0");
    else formula.removeAttribute("tabindex");
  }
}
window.addEventListener("resize", fitFormulas);
window.addEventListener("load", () => document.fonts.ready.then(fitFormulas));

// Who copies a formula gets it as LaTeX, and all of it.
document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (!selection.rangeCount) return;
  const range = selection.getRangeAt(0).cloneRange();
  const formulaAt = (node) => (node.closest ? node : node.parentElement)?.closest("math");
  const [first, last] = [formulaAt(range.startContainer), formulaAt(range.endContainer)];
  if (first) range.setStartBefore(first);
  if (last) range.setEndAfter(last);
  const [rich, plain] = [document.createElement("div"), range.cloneContents()];
  const formulas = plain.querySelectorAll("math");
  if (!formulas.length) return;
  rich.append(range.cloneContents());
  event.clipboardData.setData("text/html", rich.innerHTML);
  for (const formula of formulas) {
    const sign = formula.getAttribute("display") === "block" ? "$$" : "$";
    formula.replaceWith(sign + formula.getAttribute("alttext") + sign);
  }
  event.clipboardData.setData("text/plain", plain.textContent);
  event.preventDefault();
});

// On a phone a tap shows a figure as large as it was drawn; it scrolls sideways then. Another tap puts it back.
const phone = matchMedia("(max-width: 600px)"); // as in book.css
function enlarge(figure, large) {
  figure.classList.toggle("large", large);
  if (large) figure.parentElement.tabIndex = 0; // the keyboard can scroll it
  else figure.parentElement.removeAttribute("tabindex");
}
document.addEventListener("click", ({ target: figure }) => {
  if (!phone.matches || !figure.matches(".bd-article :is(.cell_output img, img.again)")) return;
  const large = figure.classList.contains("large");
  if (large || figure.clientWidth < 0.85 * figure.naturalWidth) enlarge(figure, !large);
});
phone.addEventListener("change", () => document.querySelectorAll("img.large").forEach((figure) => enlarge(figure, false)));

// Paper is white, in a dark room too.
for (const [event, paper] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => {
    const { dataset } = document.documentElement;
    if (paper) dataset.onScreen = dataset.theme;
    dataset.theme = paper ? "light" : dataset.onScreen;
  });
}
