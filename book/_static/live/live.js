// Starts the page and wires its parts: picture -> network -> maps, probabilities, explanation and count.
(function (live) {
  "use strict";
  const { network: net, panel, images, maps } = live;

  const PAGE = `
    <div class="live-top">
      <div class="live-picture">
        <canvas class="live-shown" role="img"></canvas>
        <p class="live-truth"></p>
      </div>
      <div class="live-choice">
        <label for="image-choice">Picture</label>
        <select id="image-choice"></select>
        <div class="live-thumbs" role="group" aria-label="Twenty test pictures"></div>
        <details class="live-draw"><summary>Draw one</summary>
          <div class="live-drawing">
            <canvas id="live-board" tabindex="0" role="application" aria-label="Drawing board, 28 by 28 pixels: arrow keys move, the space bar draws, Shift and arrow keys draw a line"></canvas>
            <div>
              <label>Pen <input id="live-pen" type="range" min="0.5" max="4" step="0.5" value="1.5"></label>
              <label><input id="live-erase" type="checkbox"> Erase</label>
              <button type="button" id="live-clear">Clear</button>
              <button type="button" id="live-copy">Take the picture shown</button>
              <p>Clothes are light on dark, and fill the board. Keys: arrows move, space draws, Shift with arrows draws a line.</p>
            </div>
          </div>
        </details>
        <details class="live-open"><summary>Open one</summary>
          <label for="live-file">A picture from your machine</label>
          <input id="live-file" type="file" accept="image/*">
          <label><input id="live-invert" type="checkbox"> Invert: dark becomes light</label>
          <p id="live-opened" role="status">It stays on your machine. The middle square is cut out, made grey and 28 × 28 pixels small.</p>
        </details>
      </div>
      <div class="live-answer">
        <p class="live-label">The network says</p>
        <p id="prediction"></p>
        <ol id="probabilities"></ol>
      </div>
      <div class="live-count">
        <p class="live-label">Right answers, 200 test pictures</p>
        <p class="live-number"><b id="live-right">…</b></p>
        <div class="live-bar" aria-hidden="true"><i id="live-right-bar"></i><i id="live-random-bar"></i></div>
        <p id="live-random"></p>
        <p id="live-cut-count"></p>
        <button type="button" id="live-restore">Restore all</button>
        <p id="live-time"></p>
      </div>
      <p id="live-said" class="live-hidden" aria-live="polite"></p>
    </div>
    <p class="live-mini" aria-hidden="true"></p>
    <div class="live-network" role="group" aria-label="The network: feature maps above, connections below"></div>
    <p class="live-key"><span><i class="live-swatch live-plus"></i>above zero</span><span><i class="live-swatch live-minus"></i>below zero</span>
      <span><i class="live-shade"></i>cell: mean weight, as a share of its column's largest</span><span><i class="live-crossed"></i>cut</span></p>`;

  const DETAIL = `
      <div class="live-where">
        <label>Look at <select id="live-layer"></select></label>
        <label>map <input id="live-map" type="number" min="1"></label>
        <span id="live-reads"></span>
        <button type="button" id="live-back">Back to the network ↑</button>
      </div>
      <div class="live-steps"></div>`;

  function start(root, detail) {
    const { weights, data } = live, { side, classes } = data;
    const network = net.build(weights);
    const bytes = net.decodeBytes(data.pixels), size = side * side;
    const testPixels = index => bytes.subarray(index * size, (index + 1) * size);
    const black = -data.mean / data.std;
    const state = { pixels: null, label: null, name: "", cuts: new Set(), trace: null, whole: null, count: null };

    root.className = "live";
    root.innerHTML = PAGE;
    detail.className = "live live-detail";
    detail.innerHTML = DETAIL;
    const find = selector => root.querySelector(selector) ?? detail.querySelector(selector);
    const strips = maps.listStrips(network, side);
    const elements = new Map();

    // The network: a column for each strip, and below it the connections that it reads.
    const cells = panel.createCells(network, name => {
      const cuts = new Set(state.cuts);
      if (!cuts.delete(name)) cuts.add(name);
      setCuts(cuts);
    });
    find(".live-network").innerHTML = '<svg id="live-arcs" aria-hidden="true"></svg>';
    let group = null;
    for (const strip of strips) {
      const block = network.blocks[strip.block - 1];
      if (!group || (strip.to === 1 && strip.block > 1)) {
        group = document.createElement("div");
        group.className = "live-block";
        find(".live-network").append(group);
      }
      const column = document.createElement("div");
      column.className = "live-column";
      column.dataset.strip = strip.id;
      const end = block && strip.to > block.layers.length;
      const short = strip.id === "stem" ? "stem" : !end ? `${strip.to}` : block.last ? "class" : `tr. ${strip.block}`;
      // The stem and a transition are the input of the block behind them.
      const colour = strip.id === "stem" || (end && !block.last) ? 0 : end ? null : strip.to % 8;
      const head = document.createElement("p");
      head.className = `live-head ${colour === null ? "" : `live-source-${colour}`} ${end && !block.last ? "live-transition" : ""}`;
      head.textContent = short;
      head.title = strip.name;
      column.append(head);
      if (strip.maps) {
        elements.set(strip.id, maps.createStrip(strip, (s, map) => {
          choose({ strip: s, map });
          detail.scrollIntoView();
        }));
        column.append(elements.get(strip.id));
      } else {
        const scores = document.createElement("div");
        scores.className = "live-scores";
        classes.forEach((name, c) => {
          const button = document.createElement("button");
          button.type = "button";
          button.dataset.class = c;
          button.textContent = name;
          button.addEventListener("click", () => choose({ strip, map: c }));
          scores.append(button);
        });
        column.append(scores);
      }
      const below = cells.get(strip.id);
      if (below) column.append(below);
      group.dataset.name ??= `Block ${strip.block || 1} · ${side >> Math.max(0, strip.block - 1)} × ${side >> Math.max(0, strip.block - 1)}`;
      group.append(column);
    }
    panel.roveCells(find(".live-network"));

    // Pictures.
    const choice = find("#image-choice"), thumbs = find(".live-thumbs");
    data.shown.forEach((index, i) => {
      choice.add(new Option(`${i + 1}: ${classes[data.labels[index]]}`, i));
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Picture ${i + 1}: ${classes[data.labels[index]]}`);
      const canvas = document.createElement("canvas");
      images.paint(canvas, testPixels(index), side);
      button.append(canvas);
      button.addEventListener("click", () => chooseTest(i));
      thumbs.append(button);
    });
    choice.add(new Option("the one you draw", "drawn"));
    choice.add(new Option("the one you open", "opened"));
    const board = images.createBoard(find("#live-board"), side,
      () => ({ radius: Number(find("#live-pen").value), erase: find("#live-erase").checked }),
      pixels => show(pixels, null, "drawn"));
    let opened = null;

    function chooseTest(i) {
      const index = data.shown[i];
      show(testPixels(index), data.labels[index], String(i));
    }
    choice.addEventListener("change", () => {
      if (choice.value === "drawn") {
        find(".live-draw").open = true;
        show(board.pixels, null, "drawn");
        find("#live-board").focus();
      } else if (choice.value === "opened") {
        find(".live-open").open = true;
        find("#live-file").focus();
        if (opened) showOpened();
      } else chooseTest(Number(choice.value));
    });
    find("#live-clear").addEventListener("click", () => board.fill(new Uint8Array(size)));
    find("#live-copy").addEventListener("click", () => board.fill(Uint8Array.from(state.pixels)));

    function showOpened() {
      const pixels = images.shrink(opened, side, find("#live-invert").checked);
      const { naturalWidth: width, naturalHeight: height } = opened, square = Math.min(width, height);
      const kept = width === side && height === side;
      const bright = images.edgeBrightness(pixels, side) > 127;
      find("#live-opened").textContent = `${width} × ${height} pixels${kept ? ", made grey" : `: the middle ${square} × ${square} made grey and ${side} × ${side}`}${
        find("#live-invert").checked ? ", inverted" : ""}. ${
        bright ? "Its edge is bright, but the network has only seen clothes on black: try Invert." : ""}`;
      show(pixels, null, "opened");
    }
    find("#live-file").addEventListener("change", async event => {
      const [file] = event.target.files;
      if (!file) return;
      try {
        opened = await images.read(file);
        showOpened();
      } catch {
        find("#live-opened").textContent = `Your browser cannot read ${file.name} as a picture.`;
      }
    });
    find("#live-invert").addEventListener("change", () => opened && showOpened());

    // Probabilities: a row for each class; the mark shows what the whole network says.
    const rows = classes.map((name, c) => {
      const row = document.createElement("li");
      row.dataset.class = name;
      row.innerHTML = `<button type="button"><span class="live-class">${name}</span><span class="live-track"><i></i><em></em></span><span class="live-percent"></span></button>`;
      row.firstChild.addEventListener("click", () => choose({ strip: strips.at(-1), map: c }));
      find("#probabilities").append(row);
      return row;
    });

    function show(pixels, label, name) {
      Object.assign(state, { pixels, label, name });
      choice.value = name;
      [...thumbs.children].forEach((button, i) => button.setAttribute("aria-pressed", String(String(i) === name)));
      images.paint(find(".live-shown"), pixels, side);
      const picture = images.normalize(pixels, data);
      state.whole = net.run(network, picture, side);
      compute();
    }

    function compute() {
      const first = net.firstCutBlock(network, state.cuts);
      state.trace = first > network.blocks.length ? state.whole
        : net.run(network, state.whole.picture, side, state.cuts, state.whole, first);
      state.trace.black = black;
      render();
    }

    function setCuts(cuts) {
      state.cuts = cuts;
      panel.markCells(root, cuts);
      compute();
      counter.ask(cuts);
    }
    find("#live-restore").addEventListener("click", () => setCuts(new Set()));

    function render() {
      const { trace, whole, label, cuts } = state, { probabilities } = trace;
      const best = net.largest(probabilities);
      find("#prediction").textContent = classes[best];
      find("#prediction").dataset.right = label === null ? "" : String(best === label);
      find(".live-truth").textContent = label === null ? `The one you ${state.name === "drawn" ? "draw" : "open"}`
        : `It is: ${classes[label]} ${best === label ? "✓" : "✗"}`;
      find(".live-shown").setAttribute("aria-label", label === null ? "Your picture" : `Test picture: ${classes[label]}`);
      rows.forEach((row, c) => {
        const p = probabilities[c];
        row.dataset.probability = p;
        row.classList.toggle("live-best", c === best);
        row.querySelector("i").style.width = `${100 * p}%`;
        const mark = row.querySelector("em");
        mark.hidden = cuts.size === 0;
        mark.style.left = `${100 * whole.probabilities[c]}%`;
        row.querySelector(".live-percent").textContent = `${(100 * p).toFixed(2)} %`;
      });
      root.querySelectorAll(".live-scores button").forEach((button, c) => {
        button.style.setProperty("--share", probabilities[c].toFixed(3));
      });
      const n = cuts.size, all = net.connections(network).length;
      find("#live-cut-count").textContent = n === 0 ? `All ${all} connections are there.` : `${n} of ${all} connections ${n === 1 ? "is" : "are"} cut.`;
      find("#live-restore").disabled = n === 0;
      const colours = maps.palette();
      for (const strip of strips) {
        if (strip.maps) maps.paintStrip(elements.get(strip.id), maps.valuesOf(network, trace, strip), strip, colours);
      }
      renderMini();
      renderDetail(colours);
    }

    // The count, and what is said aloud.
    function renderCount(count) {
      state.count = count;
      const { right, done, images: all, draws, wanted } = count, finished = done === all;
      find("#live-right").textContent = finished ? `${right} of ${all}` : `… ${done} of ${all} counted`;
      find("#live-right").dataset.finished = finished;
      if (finished) find("#live-right-bar").style.width = `${100 * right / all}%`;
      const mean = draws.reduce((a, b) => a + b, 0) / draws.length;
      const bar = find("#live-random-bar");
      bar.hidden = draws.length === 0;
      if (draws.length) {
        bar.style.left = `${100 * Math.min(...draws) / all}%`;
        bar.style.width = `max(3px, ${100 * (Math.max(...draws) - Math.min(...draws)) / all}%)`;
      }
      find("#live-random").dataset.draws = draws.join(",");
      find("#live-random").textContent = wanted === 0 ? ""
        : draws.length < wanted ? `As many random cuts in the same blocks: draw ${draws.length + 1} of ${wanted} …`
        : `As many random cuts in the same blocks: ${mean.toFixed(1)} on average, ${Math.min(...draws)} to ${Math.max(...draws)} in ${wanted} draws.`;
      renderMini();
      if (finished && draws.length === wanted) say();
    }

    /** On a narrow screen the answer stays in view while one cuts. */
    function renderMini() {
      const best = net.largest(state.trace.probabilities), { count } = state;
      const counted = !count ? "" : count.done === count.images ? ` · ${count.right} of ${count.images} right` : " · counting …";
      find(".live-mini").textContent = `${classes[best]}, ${(100 * state.trace.probabilities[best]).toFixed(0)} %${counted}`;
    }

    function say() {
      const best = net.largest(state.trace.probabilities), { count } = state;
      find("#live-said").textContent = `${classes[best]}, ${(100 * state.trace.probabilities[best]).toFixed(0)} %. ${
        find("#live-cut-count").textContent} ${count.right} of ${count.images} right. ${find("#live-random").textContent}`;
    }

    // What a map was computed from.
    let chosen = null;
    const layer = find("#live-layer");
    strips.forEach((strip, i) => layer.add(new Option(strip.name, i)));
    layer.addEventListener("change", () => choose({ strip: strips[Number(layer.value)], map: 0 }));
    find("#live-map").addEventListener("change", event => {
      const most = chosen.strip.maps || classes.length;
      choose({ strip: chosen.strip, map: Math.min(most, Math.max(1, Number(event.target.value) || 1)) - 1 });
    });

    /** Choose a map; without a pixel, the one that differs most from zero. */
    function choose({ strip, map, y = null, x = null, bottleneck = null, source = null }) {
      if (y === null && strip.maps) {
        const from = map * strip.side ** 2, values = maps.valuesOf(network, state.trace, strip).subarray(from, from + strip.side ** 2);
        const strongest = net.largest(Array.from(values, Math.abs));
        [y, x] = [Math.floor(strongest / strip.side), strongest % strip.side];
      }
      chosen = { strip, map, y: y ?? 0, x: x ?? 0, bottleneck, source };
      renderDetail(maps.palette());
    }

    /** Arcs from what the chosen layer reads; what is cut is dashed and ends in a cross. */
    let lastRead = [];
    function drawArcs(read) {
      lastRead = read;
      const place = find(".live-network"), box = place.getBoundingClientRect();
      const top = id => {
        const head = find(`.live-column[data-strip="${id}"] .live-head`).getBoundingClientRect();
        return { x: head.left + head.width / 2 - box.left, y: head.top - box.top };
      };
      const end = top(chosen.strip.id);
      const arcs = read.map((strip, from) => {
        const start = top(strip.id);
        if (Math.abs(start.y - end.y) > 2) return ""; // in another row, on a narrow screen
        const height = Math.min(38, 14 + 0.09 * (end.x - start.x)), middle = start.y - height;
        const cut = state.cuts.has(net.key(chosen.strip.block, from, chosen.strip.to));
        const cross = cut ? `<path d="M${(start.x + end.x) / 2 - 5} ${middle + 0.25 * height - 5}l10 10m0-10l-10 10" class="live-cross"/>` : "";
        return `<path class="live-source-${from % 8} ${cut ? "live-arc-cut" : ""}" d="M${start.x} ${start.y}C${start.x} ${middle} ${end.x} ${middle} ${end.x} ${end.y}"/>${cross}`;
      });
      find("#live-arcs").innerHTML = arcs.join("");
    }

    function renderDetail(colours) {
      const { strip, map } = chosen, { trace } = state;
      const block = network.blocks[strip.block - 1];
      layer.value = strips.indexOf(strip);
      find("#live-map").value = map + 1;
      find("#live-map").max = strip.maps || classes.length;
      // What it reads lights up above.
      const isRead = other => strip.block > 0 && (other.block === strip.block ? other.to < strip.to
        : strip.block === 1 ? other.id === "stem" : other.block === strip.block - 1 && other.to > network.blocks[other.block - 1].layers.length);
      for (const other of strips) {
        const column = find(`.live-column[data-strip="${other.id}"]`);
        column.classList.toggle("live-chosen", other === strip);
        column.classList.toggle("live-read", isRead(other));
      }
      drawArcs(strips.filter(isRead));
      for (const button of root.querySelectorAll('.live-map[aria-current], .live-scores [aria-current]')) button.removeAttribute("aria-current");
      (strip.maps ? elements.get(strip.id).children[map] : find(`.live-scores [data-class="${map}"]`)).setAttribute("aria-current", "true");
      const inputs = !block ? 1 : block.layers[strip.to - 1]?.inputs ?? block.end.inputs;
      find("#live-reads").textContent = !block ? "reads the picture"
        : `reads ${inputs} = ${[block.input, ...Array(strip.to - 1).fill(network.growthRate)].join(" + ")} maps`;

      const found = maps.explain(network, trace, chosen, classes);
      const steps = found.steps.map(({ title, html }, i) =>
        `<div class="live-step"><h3>${i + 2} · ${title}</h3>${html}</div>`);
      const picture = strip.maps ? `<canvas id="live-large" tabindex="0" role="application" aria-label="${strip.name}, map ${map + 1}: arrow keys move to another pixel"></canvas>
        <p>${strip.side} × ${strip.side} numbers. Click one, or move with the arrow keys: the frame is at row ${chosen.y + 1}, column ${chosen.x + 1}.</p>`
        : `<p class="live-score-name">${classes[map]}</p><p>${(100 * trace.probabilities[map]).toFixed(2)} %</p>`;
      const focused = document.activeElement?.id === "live-large" ? "#live-large"
        : document.activeElement?.dataset?.pick ? `[data-pick="${document.activeElement.dataset.pick}"][data-value="${document.activeElement.dataset.value}"]` : null;
      find(".live-steps").innerHTML = `<div class="live-step"><h3>1 · ${strip.maps ? `${strip.name}, map ${map + 1}` : "The score of a class"}</h3>${picture}</div>${steps.join("")}`;
      if (strip.maps) drawLarge(colours);
      const framed = find(".live-framed");
      if (framed) {
        const { side: wide } = strip, at = (found.bottleneck ?? 0) * wide ** 2;
        const read = block ? trace.blocks[strip.block - 1].layers[strip.to - 1].active : trace.picture;
        const most = maps.mostOf(read);
        frame(framed, read.subarray(at, at + wide ** 2), wide, most, colours, 140, chosen.x - 1, chosen.y - 1, 3);
      }
      const grid = find(".live-bottleneck");
      if (grid) drawBottleneck(grid, colours, found.bottleneck);
      if (focused) find(`.live-steps ${focused}`)?.focus({ preventScroll: true });
    }

    /** A map, enlarged, with a frame around `count` x `count` of its pixels. */
    function frame(canvas, values, wide, most, colours, size, x, y, count) {
      const small = document.createElement("canvas");
      maps.paintMap(small, values, wide, most, colours);
      const scale = Math.floor(2 * size / wide);
      canvas.width = canvas.height = scale * wide;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
      for (const [colour, width] of [["#fff", 6], ["#000", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.strokeRect(x * scale, y * scale, count * scale, count * scale);
      }
    }

    function drawLarge(colours) {
      const { strip, map, y, x } = chosen, canvas = find("#live-large"), pixels = strip.side ** 2;
      const values = maps.valuesOf(network, state.trace, strip);
      frame(canvas, values.subarray(map * pixels, (map + 1) * pixels), strip.side, maps.mostOf(values), colours, 196, x, y, 1);
      const move = (row, column) => choose({ ...chosen,
        y: Math.min(strip.side - 1, Math.max(0, row)), x: Math.min(strip.side - 1, Math.max(0, column)) });
      canvas.addEventListener("click", event => {
        const box = canvas.getBoundingClientRect();
        move(Math.floor((event.clientY - box.top) / box.height * strip.side), Math.floor((event.clientX - box.left) / box.width * strip.side));
      });
      canvas.addEventListener("keydown", event => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step) return;
        event.preventDefault();
        move(y + step[0], x + step[1]);
      });
    }

    function drawBottleneck(grid, colours, current) {
      const { strip } = chosen, pixels = strip.side ** 2;
      const { active } = state.trace.blocks[strip.block - 1].layers[strip.to - 1];
      const most = maps.mostOf(active);
      for (let c = 0; c * pixels < active.length; c++) {
        const button = document.createElement("button");
        button.type = "button";
        Object.assign(button.dataset, { pick: "bottleneck", value: c });
        button.setAttribute("aria-label", `Bottleneck map ${c + 1}`);
        button.setAttribute("aria-pressed", String(c === current));
        const canvas = document.createElement("canvas");
        maps.paintMap(canvas, active.subarray(c * pixels, (c + 1) * pixels), strip.side, most, colours);
        button.append(canvas);
        grid.append(button);
      }
    }

    find(".live-steps").addEventListener("click", event => {
      const button = event.target.closest("[data-pick], [data-go]");
      if (!button) return;
      const { pick, value, go, map } = button.dataset, { strip } = chosen;
      if (pick) return choose({ ...chosen, [pick]: Number(value) });
      // A transition has read two by two pixels, the classifier whole maps, a layer this very pixel.
      const from = go === "0" ? strips[strips.findIndex(s => s.block === strip.block && s.to === 1) - 1]
        : strips.find(s => s.id === `${strip.block}:${go}`);
      const step = from.side / strip.side, known = strip.maps > 0;
      choose({ strip: from, map: Number(map), y: known ? step * chosen.y : null, x: known ? step * chosen.x : null });
    });

    // Three things to try: the text stands on the page; its buttons make the cuts.
    for (const button of document.querySelectorAll("[data-cuts]")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        setCuts(new Set(button.dataset.cuts.split(" ")));
        root.scrollIntoView();
      });
    }
    find("#live-back").addEventListener("click", () => find(".live-network").scrollIntoView());

    const pictures = data.labels.map((_, i) => images.normalize(testPixels(i), data));
    const counter = panel.createCounter(weights, pictures, data.labels, side, network, renderCount);
    const first = { strip: strips.find(strip => strip.id === "2:3"), map: 0 };
    chosen = { ...first, y: 0, x: 0, bottleneck: null, source: null };
    chooseTest(0);
    choose(first);
    const times = [1, 2, 3].map(() => {
      const begin = performance.now();
      net.run(network, state.whole.picture, side);
      return performance.now() - begin;
    });
    find("#live-time").textContent = `One pass takes ${Math.round(Math.min(...times))} ms here.`;
    counter.ask(state.cuts);
    window.addEventListener("resize", () => renderDetail(maps.palette()));
    // On a phone a block scrolls sideways; its arcs go with it.
    find(".live-network").addEventListener("scroll", () => drawArcs(lastRead), { capture: true, passive: true });
    new MutationObserver(() => render()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    root.scrollIntoView();
    live.app = { network, state, setCuts, testPixels };
  }

  live.start = start;
})(globalThis.DenseNetLive);
