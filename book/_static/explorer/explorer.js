// The explorer's controls, its address, and the layer in focus. One page has one full explorer, `<div class="explorer-full">`, and
// any page any number of small ones, `<div class="explorer-small" data-state="…">`. A state is what stands behind the #
// of an address, such as `model=densenet121&growth-rate=24&layer=2.5&wiring=residual`.
"use strict";

(function (explorer) {
  const { MODES, NAMED, FIELDS, describe, sources, compareWirings, crossing, read, grouped, shown } = explorer;
  const HERE = document.currentScript?.src ?? location.href;  // …/_static/explorer/explorer.js
  const FULL_PAGE = new URL("../../book/explorer.html", HERE).href;
  const NARROWEST = 160;  // pixels; windows are narrower only for a moment
  const WIRINGS = ["dense", "residual", "plain"];

  const id = (field) => field.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const title = (name) => (name === "small_block" ? "the book's small block" : name);
  const decimal = (number, digits) => number.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const inUnits = (bytes) => (bytes < 2 ** 20 ? `${decimal(bytes / 2 ** 10, 1)} KiB` : `${decimal(bytes / 2 ** 20, 1)} MiB`);
  const plural = (count, word) => `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;

  // ------------------------------------------------------------------------------------------------------- sentences

  /** "8 + 4 + 4", or with many layers "256 + 9 × 32". */
  function sum(terms) {
    if (terms.length <= 8) return terms.map(grouped).join(" + ");
    return `${grouped(terms[0])} + ${terms.length - 1} × ${grouped(terms[1])}`;
  }

  function sentence(block, number, wiring) {
    const layer = block.layers[number - 1], name = `Block ${block.number}, layer ${number}`;
    if (wiring === "plain") {
      const from = number === 1 ? "the block's input" : `layer ${number - 1}`;
      return `${name} reads ${grouped(block.output)} channels, all from ${from}, and makes ${grouped(block.output)} that replace them.`;
    }
    if (wiring === "residual") {
      const of = number === 1 ? "the block's input" : `the sum of the input and ${number === 2 ? "layer 1" : number === 3 ? "layers 1 and 2" : `layers 1 to ${number - 1}`}`;
      return `${name} reads ${grouped(block.output)} channels, ${of}, and makes ${grouped(block.output)} that are added to them.`;
    }
    const terms = sources(block, number);
    return `${name} reads ${grouped(layer.reads)}${number > 1 ? ` = ${sum(terms)}` : ""} channels, adds ${grouped(layer.adds)}.`;
  }

  function paths(exponent) {
    if (exponent === 0) return "1";
    const count = 2n ** BigInt(exponent);
    return exponent < 24 ? `2<sup>${exponent}</sup> = ${count.toLocaleString("en-US")}` : `2<sup>${exponent}</sup>`;
  }

  // ----------------------------------------------------------------------------------------------------------- state

  /** The state that an address names, on top of DenseNet-121. */
  function stateFrom(fragment) {
    const given = new URLSearchParams(fragment);
    const model = Object.hasOwn(NAMED, given.get("model")) ? given.get("model") : "densenet121";
    const named = NAMED[model];
    const texts = { batchSize: "1" };
    for (const [field, value] of Object.entries(named)) texts[field] = shown(value);
    for (const field of Object.keys(FIELDS)) if (given.has(id(field))) texts[field] = given.get(id(field)).slice(0, 200);
    const [block, layer] = (given.get("layer") ?? "").split(".").map(Number);
    const choice = (key, values) => (values.includes(given.get(key)) ? given.get(key) : values[0]);
    return {
      texts, model,
      focus: { block: block || 2, layer: layer || 5 },
      wiring: choice("wiring", WIRINGS),
      memory: choice("memory", MODES),
    };
  }

  /** The fields' texts as one would write them: "6,12,24,16" is "6, 12, 24, 16". */
  function tidy(field, text) {
    const value = FIELDS[field].read(text.trim());
    return value === undefined ? text : shown(value);
  }

  /** The named model that the texts describe, or "custom". */
  function nameOf(texts) {
    return Object.keys(NAMED).find((name) =>
      Object.entries(NAMED[name]).every(([field, value]) => tidy(field, texts[field]) === shown(value))) ?? "custom";
  }

  /** A state as the fragment of an address: the model that it began with, and what differs from it. */
  function fragmentOf({ texts, focus, wiring, memory, model }) {
    const name = nameOf(texts) === "custom" ? model : nameOf(texts);
    const base = NAMED[name], pairs = [["model", name]];
    for (const field of Object.keys(FIELDS)) {
      const text = tidy(field, texts[field]).replace(/\s/g, "");
      const usual = field === "batchSize" ? "1" : shown(base[field]).replace(/\s/g, "");
      if (text !== usual) pairs.push([id(field), text]);
    }
    pairs.push(["layer", `${focus.block}.${focus.layer}`]);
    if (wiring !== WIRINGS[0]) pairs.push(["wiring", wiring]);
    if (memory !== MODES[0]) pairs.push(["memory", memory]);
    return pairs.map(([key, value]) => `${key}=${encodeURIComponent(value).replace(/%2C/g, ",")}`).join("&");
  }

  /** The nearest layer that a network has. */
  function within(network, { block, layer }) {
    const clamp = (number, most) => Math.min(Math.max(Math.trunc(number) || 1, 1), most);
    const found = network.blocks[clamp(block, network.blocks.length) - 1];
    return { block: found.number, layer: clamp(layer, found.numLayers) };
  }

  // ------------------------------------------------------------------------------------- a drawing that has a layer in focus

  /** Make `element` show a network, and its layers answer to pointer and keys. `changed(focus, lasting)` is called. */
  function interactiveDrawing(element, options) {
    let network, focus, wiring, drawn, shownFocus;
    element.setAttribute("role", "slider");
    element.setAttribute("tabindex", "0");
    element.setAttribute("aria-label", "Layer in focus");
    element.classList.add("network");

    const all = () => network.blocks.flatMap((block) => block.layers.map((layer) => ({ block: block.number, layer: layer.number })));
    const same = (a, b) => a.block === b.block && a.layer === b.layer;

    function draw(where = focus) {
      if (element.clientWidth < NARROWEST) return;
      shownFocus = where;
      drawn = explorer.drawNetwork(network, { width: element.clientWidth, wiring, focus: where, compact: options.compact });
      element.innerHTML = drawn.markup;
      const layers = all();
      element.setAttribute("aria-valuemin", "1");
      element.setAttribute("aria-valuemax", layers.length);
      element.setAttribute("aria-valuenow", layers.findIndex((each) => same(each, where)) + 1);
      element.setAttribute("aria-valuetext", sentence(network.blocks[where.block - 1], where.layer, wiring));
    }
    function move(to) {
      focus = to;
      draw();
      options.changed(focus, true);
    }
    function step(by) {
      const layers = all();
      const now = layers.findIndex((each) => same(each, focus));
      move(layers[Math.min(Math.max(now + by, 0), layers.length - 1)]);
    }
    function stepBlock(by) {
      move(within(network, { block: Math.min(Math.max(focus.block + by, 1), network.blocks.length), layer: focus.layer }));
    }
    function under(event) {
      const { left, top } = element.firstElementChild.getBoundingClientRect();
      return drawn.layerAt(event.clientX - left, event.clientY - top);
    }

    element.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch" || !drawn) return; // nothing is drawn where it is too narrow
      const where = under(event);
      if (same(where, shownFocus)) return;
      draw(where);
      options.changed(where, false);
    });
    element.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "touch" || !drawn || same(shownFocus, focus)) return;
      draw();
      options.changed(focus, false);
    });
    element.addEventListener("click", (event) => { if (drawn) move(under(event)); });
    element.addEventListener("keydown", (event) => {
      const moves = {
        ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
        PageDown: () => stepBlock(1), PageUp: () => stepBlock(-1), Home: () => step(-Infinity), End: () => step(Infinity),
      };
      if (!moves[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();  // the theme turns pages with arrow keys
      moves[event.key]();
    });
    let width = 0;
    new ResizeObserver(() => {
      if (network && element.clientWidth !== width) {
        width = element.clientWidth;
        draw();
        options.resized?.();
      }
    }).observe(element);

    return {
      show(nextNetwork, nextFocus, nextWiring) {
        [network, wiring] = [nextNetwork, nextWiring];
        focus = within(network, nextFocus);
        draw();
        return focus;
      },
      step,
    };
  }

  // ------------------------------------------------------------------------------------------------ the full explorer

  const LABELS = {
    growthRate: ["Growth rate", "k"],
    blockConfig: ["Layers in each block", "L"],
    numInitFeatures: ["Initial features", "k<sub>0</sub>"],
    bnSize: ["Bottleneck", "× k"],
    compression: ["Compression", "θ"],
    stem: ["Stem", ""],
    numClasses: ["Classes", ""],
    inputSize: ["Image size", "pixels"],
    batchSize: ["Batch", "images"],
  };

  function control(field) {
    const [label, unit] = LABELS[field], name = id(field);
    const input = field === "stem"
      ? `<select id="stem" name="stem" aria-describedby="stem-error"><option>imagenet</option><option>cifar</option></select>`
      : `<input id="${name}" name="${name}" type="text" inputmode="${["blockConfig", "compression", "bnSize", "numInitFeatures"].includes(field) ? "text" : "numeric"}" autocomplete="off" spellcheck="false" aria-describedby="${name}-error">`;
    const slider = field === "growthRate"
      ? `<input id="growth-rate-slider" type="range" min="1" max="64" aria-label="Growth rate, as a slider">` : "";
    return `<div class="field field-${name}"><label for="${name}">${label}${unit ? ` <span class="unit">${unit}</span>` : ""}</label>
      ${slider ? `<div class="with-slider">${input}${slider}</div>` : input}<p id="${name}-error" class="error"></p></div>`;
  }

  const options = (values, words = (value) => value) => values.map((value) => `<option value="${value}">${words(value)}</option>`).join("");

  function markup() {
    return `
<form class="panel controls" aria-label="Network">
  <div class="field field-model"><label for="model">Model</label>
    <select id="model">${options(Object.keys(NAMED), title)}<option value="custom" disabled>one of your own</option></select></div>
  ${Object.keys(LABELS).filter((field) => field !== "batchSize").map(control).join("")}
</form>
<div class="results">
  <div class="panel number"><p class="title" id="parameters-label">Parameters</p><output id="parameters" aria-labelledby="parameters-label"></output><p class="soft" id="parameters-more"></p><div id="parameters-shares"></div></div>
  <div class="panel number"><p class="title" id="multiply-adds-label">Multiply-adds</p><output id="multiply-adds" aria-labelledby="multiply-adds-label"></output><p class="soft">for one image</p><div id="multiply-adds-shares"></div></div>
  <fieldset class="panel number memory"><legend id="activation-memory-label">Activation memory</legend>
    <p class="big"><output id="activation-memory" aria-labelledby="activation-memory-label"></output> <span class="unit">bytes</span></p>
    ${MODES.map((mode) => `<label class="mode"><input type="radio" name="memory" value="${mode}"><span class="mode-name">${mode}</span><span class="bar"><i></i></span><span class="mode-size"></span></label>`).join("")}
    ${control("batchSize")}
    <p class="soft" id="memory-more"></p>
  </fieldset>
</div>
<p class="note" id="stale" hidden>One of the fields needs another value. Everything below, and the numbers above, are of the last network that was complete.</p>
<section class="panel drawing" aria-label="The network, drawn to scale">
  <div class="bar-above"><h2>The network, to scale</h2>
    <fieldset class="segments"><legend>Wiring</legend>${WIRINGS.map((wiring) => `<label><input type="radio" name="wiring" value="${wiring}"><span>${wiring}</span></label>`).join("")}</fieldset>
    <button type="button" id="copy-link">Copy link</button></div>
  <input id="link" class="link" readonly hidden aria-label="Link to this network">
  <p class="soft" id="wiring-words"></p>
  <div id="network"></div>
  <div class="focus">
    <button type="button" id="previous-layer" aria-label="Previous layer">‹</button>
    <p id="focus-sentence"></p>
    <button type="button" id="next-layer" aria-label="Next layer">›</button>
  </div>
  <div id="strip"></div>
  <div id="pipeline"></div>
  <p class="soft" id="pipeline-words"></p>
</section>
<section class="panel">
  <h2 id="parts-title">Part by part</h2>
  <div class="scrolls" tabindex="0" role="region" aria-labelledby="parts-title"><table id="parts"></table></div>
  <p class="soft" id="parts-words"></p>
</section>
<section class="panel">
  <h2 id="wirings-title">The same block, wired in three ways</h2>
  <div class="scrolls" tabindex="0" role="region" aria-labelledby="wirings-title"><table id="wirings"></table></div>
  <p class="soft" id="wirings-words"></p>
</section>
<section class="panel">
  <h2 id="crossing-title"></h2>
  <div id="crossing"></div>
  <p class="soft" id="crossing-words"></p>
</section>
<p class="visually-hidden" role="status" aria-live="polite" id="announcement"></p>`;
  }

  const WIRING_WORDS = {
    dense: "Each layer adds a strip of channels, and reads all strips before it.",
    residual: "Each layer's channels are added to those that it read. Every channel is a sum, and the terms are gone.",
    plain: "Each layer's channels take the place of those that it read.",
  };

  function mount(root) {
    explorer.addHatches();
    root.innerHTML = markup();
    root.classList.add("explorer");
    const $ = (name) => root.querySelector(`#${name}`);
    const inputs = Object.fromEntries(Object.keys(FIELDS).map((field) => [field, $(id(field))]));
    let state, network, speaking, writing;

    const drawing = interactiveDrawing($("network"), {
      changed(focus, lasting) {
        if (lasting) {
          state.focus = focus;
          remember();
        }
        showLayer(focus);
      },
      resized: () => showLayer(state.focus),
    });

    /** Read the fields; show what they describe, or what is wrong with them, which is returned. */
    function update() {
      for (const [field, input] of Object.entries(inputs)) state.texts[field] = input.value;
      const { config, batchSize, errors } = read(state.texts);
      for (const [field, input] of Object.entries(inputs)) {
        $(`${id(field)}-error`).textContent = errors[field] ?? "";
        if (errors[field]) input.setAttribute("aria-invalid", "true");
        else input.removeAttribute("aria-invalid");
      }
      const broken = Object.keys(errors).length > 0;
      root.classList.toggle("stale", broken);
      $("stale").hidden = !broken;
      $("model").value = nameOf(state.texts);
      if (!broken) {
        network = describe(config, batchSize);
        $("growth-rate-slider").value = config.growthRate;
        show();
      }
      return broken ? Object.entries(errors).map(([field, error]) => `${LABELS[field][0]}: ${error}`).join(" ") : "";
    }

    const summary = () => `${plural(network.parameters, "parameter")}, ${plural(network.multiplyAdds, "multiply-add")}, ${
      network.trainable ? `${inUnits(network.memory[state.memory])} of activation memory` : "too few values to train on"}.`;

    function say(words) {
      clearTimeout(speaking);
      speaking = setTimeout(() => { $("announcement").textContent = words; }, 600);
    }

    /** Write the state into the address, not too often for the browser's patience. */
    function remember() {
      clearTimeout(writing);
      writing = setTimeout(() => history.replaceState(history.state, "", `#${fragmentOf(state)}`), 200);
    }

    function put(name, value) {
      const output = $(name);
      output.textContent = value === null ? "–" : grouped(value);
      output.dataset.value = value ?? "";
    }

    function show() {
      const { parameters, multiplyAdds, memory, batchSize, trainable } = network;
      put("parameters", parameters);
      put("multiply-adds", multiplyAdds);
      put("activation-memory", trainable ? memory[state.memory] : null);
      $("parameters-more").textContent = `${inUnits(4 * parameters)} in float32; ${network.depth} layers deep`;
      $("parameters-shares").innerHTML = shares((part) => part.parameters);
      $("multiply-adds-shares").innerHTML = shares((part) => part.multiplyAdds);
      root.querySelectorAll(".mode").forEach((label) => {
        const mode = label.querySelector("input").value;
        label.querySelector("input").checked = mode === state.memory;
        label.querySelector("i").style.width = trainable ? `${(100 * memory[mode]) / memory.plain}%` : "0";
        label.querySelector(".mode-size").textContent = trainable ? inUnits(memory[mode]) : "–";
      });
      $("memory-more").textContent = trainable
        ? "Held from the forward to the backward pass, in float32."
        : "Cannot be trained on one image: at the end of this network one value of each channel is left, and batch norm needs two. Try a batch of 2.";
      root.querySelectorAll("[name=wiring]").forEach((radio) => { radio.checked = radio.value === state.wiring; });
      $("wiring-words").textContent = WIRING_WORDS[state.wiring];
      showParts();
      state.focus = drawing.show(network, state.focus, state.wiring);
      showLayer(state.focus);
    }

    /** A column for each part, blocks in colour, and the largest part in words. */
    function shares(of) {
      const most = Math.max(...network.parts.map(of)), largest = network.parts.find((part) => of(part) === most);
      const column = (part) => {
        const block = part.name.match(/^denseblock(.+)/);
        return `<div class="${block ? "of-block" : ""}"><i style="height:${Math.max((100 * of(part)) / most, 1)}%"></i><span>${block ? block[1] : ""}</span></div>`;
      };
      const total = network.parts.reduce((sum, part) => sum + of(part), 0);
      return `<div class="shares" aria-hidden="true">${network.parts.map(column).join("")}</div><p class="soft">most in ${largest.name}: ${Math.round((100 * most) / total)} %</p>`;
    }

    function showParts() {
      const { parts, memory, trainable } = network;
      const bytes = (value) => `<td data-value="${trainable ? value : ""}">${trainable ? decimal(value / 2 ** 20, 2) : "–"}</td>`;
      const row = (name, shape, part) => `<tr data-part="${name}"><th scope="row">${name}</th><td>${shape}</td><td data-value="${part.parameters}">${grouped(part.parameters)}</td><td data-value="${part.multiplyAdds}">${grouped(part.multiplyAdds)}</td>${MODES.map((mode) => bytes(part.memory[mode])).join("")}</tr>`;
      $("parts").innerHTML = `<thead><tr><th rowspan="2" scope="col">Part</th><th rowspan="2" scope="col">Output</th><th rowspan="2" scope="col">Parameters</th><th rowspan="2" scope="col">Multiply-adds</th><th colspan="4" scope="colgroup">Activation memory, MiB</th></tr><tr>${MODES.map((mode) => `<th scope="col">${mode}</th>`).join("")}</tr></thead>
        <tbody>${parts.map((part) => row(part.name, part.shape.map(grouped).join(" × "), part)).join("")}</tbody>
        <tfoot>${row("total", "", { ...network, memory })}</tfoot>`;
      $("parts-words").textContent = `Names are those of the package. Multiply-adds are for one image of ${network.config.inputSize} × ${network.config.inputSize} pixels in colour, memory for ${plural(network.batchSize, "image")}.`;
    }

    function showLayer(focus) {
      const block = network.blocks[focus.block - 1];
      $("focus-sentence").textContent = sentence(block, focus.layer, state.wiring);
      const width = $("strip").clientWidth;
      if (width >= NARROWEST) {
        $("strip").innerHTML = explorer.drawLayer(block, focus.layer, state.wiring, width);
        $("pipeline").innerHTML = explorer.drawPipeline(block, focus.layer, state.wiring, width);
      }
      $("pipeline-words").textContent = `On the arrows: channels of ${block.size} × ${block.size} pixels. Under each step: its parameters.`;
      showWirings(block);
      showCrossing(block, width);
    }

    function showWirings(block) {
      const all = compareWirings(block);
      const names = ["plain", "residual", "dense"];
      const row = (title, cell) => `<tr><th scope="row">${title}</th>${names.map((name) => `<td>${cell(all[name])}</td>`).join("")}</tr>`;
      $("wirings").innerHTML = `<thead><tr><td></td>${names.map((name) => `<th scope="col">${name}</th>`).join("")}</tr></thead><tbody>
        ${row("connections", (w) => grouped(w.connections))}
        ${row("paths through the block", (w) => paths(w.exponent))}
        ${row("channels that the last layer reads", (w) => grouped(w.reads))}
        ${row("channels that a layer makes", (w) => grouped(w.makes))}
        ${row("weights in convolutions", (w) => grouped(w.weights))}</tbody>`;
      const L = block.numLayers;
      $("wirings-words").textContent = `Block ${block.number}: ${plural(L, "layer")}, so ${L} · ${L + 1} / 2 = ${grouped(all.dense.connections)} dense connections. For comparison, plain and residual layers are one 3 × 3 convolution each, of ${grouped(block.output)} channels, as many as the dense block ends with.`;
    }

    function showCrossing(block, width) {
      const k = block.growthRate, times = block.bnSize ?? 4;
      const meet = crossing(k, times);
      const from = meet === null ? undefined : block.layers.find(({ reads }) => reads > meet);
      $("crossing-title").textContent = from === undefined
        ? `In block ${block.number} a bottleneck saves no weights`
        : from.number === 1 ? `A bottleneck saves weights in every layer of block ${block.number}`
          : `A bottleneck saves weights from layer ${from.number} of block ${block.number} on`;
      if (width >= NARROWEST) $("crossing").innerHTML = explorer.drawCrossing(block, times, width);
      const many = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 1 });
      $("crossing-words").textContent = `Weights of a layer's convolutions. With C channels read, a 3 × 3 convolution to k = ${k} has 9kC of them; a bottleneck of ${times}k channels has ${times}kC + ${9 * times}k². `
        + (meet === null ? `With a bottleneck of 9k or more, the 1 × 1 convolution alone costs at least as much.` : `They are equal at C = ${9 * times}k / ${9 - times} = ${many(meet)}.`)
        + (block.bnSize === null ? " This network has no bottleneck; the curve is for the paper's, 4k." : "");
    }

    function load(fragment) {
      state = stateFrom(fragment);
      network = describe(NAMED[state.model]);
      for (const [field, input] of Object.entries(inputs)) input.value = state.texts[field];
      if (update()) show();
    }

    root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    function edited({ target }) {
      if (!target.closest(".field")) return;
      if (target.id === "growth-rate-slider") inputs.growthRate.value = target.value;
      if (target.id === "model") {
        state.model = target.value;
        for (const [field, value] of Object.entries(NAMED[target.value])) inputs[field].value = shown(value);
      }
      const wrong = update();
      if (!wrong) remember();
      say(wrong || summary());
    }
    root.addEventListener("input", edited);
    root.addEventListener("change", (event) => {
      if (event.target.name !== "memory" && event.target.name !== "wiring") return edited(event);
      state[event.target.name] = event.target.value;
      show();
      remember();
      say(event.target.name === "memory" ? summary() : WIRING_WORDS[state.wiring]);
    });
    for (const [name, by] of [["previous-layer", -1], ["next-layer", 1]]) {
      $(name).addEventListener("click", () => {
        drawing.step(by);
        say(sentence(network.blocks[state.focus.block - 1], state.focus.layer, state.wiring));
      });
    }
    $("copy-link").addEventListener("click", async () => {
      const link = `${location.href.split("#")[0]}#${fragmentOf(state)}`;
      try {
        await navigator.clipboard.writeText(link);
        $("copy-link").textContent = "Copied";
        say("Link copied.");
      } catch {
        // Not allowed, so the reader copies it by hand.
        $("link").hidden = false;
        $("link").value = link;
        $("link").select();
      }
      setTimeout(() => { $("copy-link").textContent = "Copy link"; }, 2000);
    });
    window.addEventListener("hashchange", () => {
      if (!location.hash.includes("=")) return;
      load(location.hash.slice(1));
      root.querySelector(".drawing").scrollIntoView();
    });
    load(location.hash.includes("=") ? location.hash.slice(1) : "");
  }

  // ---------------------------------------------------------------------------------------------- the small explorer

  function mountSmall(root) {
    explorer.addHatches();
    let state = stateFrom(root.dataset.state ?? "");
    if (Object.keys(read(state.texts).errors).length) state = stateFrom("");
    const { config } = read(state.texts);
    root.classList.add("explorer");
    root.innerHTML = `<div class="small-controls"><label>Growth rate <i>k</i> = <output></output><input type="range" min="1" max="${Math.max(48, config.growthRate)}" value="${config.growthRate}"></label>
      <a>All of it in the explorer</a></div><div class="small-drawing"></div><p class="small-words" aria-live="off"></p>`;
    const [slider, link, words, value] = ["input", "a", ".small-words", "output"].map((name) => root.querySelector(name));
    let network;
    const drawing = interactiveDrawing(root.querySelector(".small-drawing"), {
      compact: true,
      changed(focus, lasting) {
        if (lasting) state.focus = focus;
        showLayer(focus);
      },
    });
    function showLayer(focus) {
      words.textContent = sentence(network.blocks[focus.block - 1], focus.layer, state.wiring);
      link.href = `${FULL_PAGE}#${fragmentOf(state)}`;
    }
    function show() {
      network = describe({ ...config, growthRate: +slider.value });
      state.texts.growthRate = slider.value;
      value.textContent = `${slider.value}: ${plural(network.parameters, "parameter")}`;
      state.focus = drawing.show(network, state.focus, state.wiring);
      showLayer(state.focus);
    }
    slider.addEventListener("input", show);
    show();
  }

  Object.assign(explorer, { mountSmall, stateFrom, fragmentOf });
  document.querySelectorAll(".explorer-full").forEach(mount);
  document.querySelectorAll(".explorer-small").forEach(mountSmall);
})((globalThis.DenseNetExplorer ??= {}));
