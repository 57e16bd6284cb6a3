// "Step through a block": a button, which loads the rest.
(() => {
  "use strict";
  const here = document.currentScript.src.replace(/start\.js.*/, "");
  const load = (tag, values) => new Promise((done, failed) => {
    document.head.append(Object.assign(document.createElement(tag), values, { onload: done, onerror: failed }));
  });
  const all = () => [
    load("link", { rel: "stylesheet", href: `${here}step.css` }),
    ...["network", "data", "step"].map(name => load("script", { src: `${here}${name}.js`, async: false })),
  ];
  const style = document.createElement("style");
  style.textContent = `@media screen { .step-through:has(.step-start) > .step-without { display: none; } }
    @media print { .step-through > :not(.step-without) { display: none !important; } }
    .step-start button { font: inherit; font-weight: 700; min-height: 44px; padding: 0 1.2rem; margin-right: .75rem;
      border: 0; border-radius: .4rem; color: #fff; background: #0b57b8; cursor: pointer; }`;
  document.head.append(style);
  for (const place of document.querySelectorAll(".step-through")) {
    const start = document.createElement("p");
    start.className = "step-start";
    start.innerHTML = '<button type="button"></button><span role="status">It loads 65 KB.</span>';
    const [button, status] = start.children;
    button.textContent = place.dataset.part === "layer" ? "Step through the layer" : "Step through the block";
    button.addEventListener("click", async () => {
      if (button.hasAttribute("aria-disabled")) return;
      button.setAttribute("aria-disabled", "true");
      status.textContent = "Loading …";
      try {
        await Promise.all(all());
        start.hidden = true;
        DenseNetStep.open(place);
      } catch (error) {
        button.removeAttribute("aria-disabled");
        status.textContent = "It could not be loaded. Try again.";
        throw error;
      }
    });
    place.append(start);
  }
})();
