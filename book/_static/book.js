// What scrolls sideways has to be within reach of the keyboard. The theme sees to code and tables when the page has
// loaded and when the window changes its size.

// What a reader unfolds counts as well.
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true);

// So do formulas. One that is wider than its paragraph gets a line of its own (see book.css), on which it can scroll.
function fitFormulas() {
  for (const formula of document.querySelectorAll("article mjx-container")) {
    formula.classList.remove("wide");
    const block = formula.closest("p, li, dd, td, th, h1, h2, h3, summary, blockquote, details, section");
    const wide = formula.firstElementChild.offsetWidth > block.clientWidth;
    formula.classList.toggle("wide", wide);
    if (wide) formula.setAttribute("tabindex", "0");
    else formula.removeAttribute("tabindex");
  }
}
window.addEventListener("resize", fitFormulas);
window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(fitFormulas));
