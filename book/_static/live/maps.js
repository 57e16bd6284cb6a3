// Every feature map, as a strip of small pictures for each layer; and what one pixel of a chosen map is the sum of.
(function (live) {
  "use strict";
  const net = live.network;
  const DIGITS = 3;

  const number = (value, digits = DIGITS) => {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−");
  };
  const signed = (value, digits = DIGITS) => (value < 0 || Number(value.toFixed(digits)) === 0 ? "" : "+") + number(value, digits);

  // Colours of numbers: one for what is above zero, one for what is below, the page's own for zero.

  function palette() {
    const style = getComputedStyle(document.querySelector(".live"));
    return ["--map-minus", "--map-zero", "--map-plus"].map(name => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
    });
  }

  /** Paint one map, (side, side), so that `most` has the full colour. */
  function paintMap(canvas, values, side, most, [minus, zero, plus]) {
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      const share = Math.min(1, Math.abs(values[i]) / most), end = values[i] < 0 ? minus : plus;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = zero[c] + (end[c] - zero[c]) * share;
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  /** The value that gets the full colour: 98 of 100 `values` are below it. */
  function mostOf(values) {
    const sorted = Float32Array.from(values, Math.abs).sort();
    return sorted[Math.floor(0.98 * (sorted.length - 1))] || 1;
  }

  /** Every strip of the network: where it stands, how many maps it has, how large they are. */
  function listStrips(network, side) {
    const strips = [{ id: "stem", block: 0, to: 0, maps: network.stemChannels, side, name: "Stem" }];
    for (const block of network.blocks) {
      const size = side >> (block.number - 1);
      block.layers.forEach((_, i) => strips.push({
        id: `${block.number}:${i + 1}`, block: block.number, to: i + 1, maps: network.growthRate, side: size,
        name: `Block ${block.number}, layer ${i + 1}`,
      }));
      const to = block.layers.length + 1;
      strips.push(block.last
        ? { id: `${block.number}:${to}`, block: block.number, to, maps: 0, side: 1, name: "Classifier" }
        : { id: `${block.number}:${to}`, block: block.number, to, maps: block.end.outputs, side: size / 2,
            name: `Transition ${block.number}` });
    }
    return strips;
  }

  /** The values of a strip's maps in a trace. */
  function valuesOf(network, trace, strip) {
    if (strip.id === "stem") return trace.stem;
    const block = network.blocks[strip.block - 1], done = trace.blocks[strip.block - 1];
    if (strip.to > block.layers.length) return done.output;
    const from = block.layers[strip.to - 1].inputs * strip.side ** 2;
    return done.features.subarray(from, from + strip.maps * strip.side ** 2);
  }

  /** The strips' elements, each with a button for every map. */
  function createStrip(strip, choose) {
    const element = document.createElement("div");
    element.className = "live-strip";
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", `${strip.name}: ${strip.maps} feature maps of ${strip.side} × ${strip.side}`);
    const columns = strip.maps > 60 ? 6 : strip.maps > 40 ? 4 : strip.maps > 30 ? 3 : 2;
    element.style.setProperty("--columns", columns);
    for (let map = 0; map < strip.maps; map++) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "live-map";
      Object.assign(button.dataset, { strip: strip.id, map });
      button.setAttribute("aria-label", `${strip.name}, map ${map + 1}`);
      button.tabIndex = map === 0 ? 0 : -1;
      button.append(document.createElement("canvas"));
      button.addEventListener("click", () => choose(strip, map));
      element.append(button);
    }
    element.addEventListener("keydown", event => {
      const maps = [...element.children], at = maps.indexOf(event.target);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns,
        Home: 0, End: maps.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      if (!maps[to]) return;
      maps[at].tabIndex = -1;
      maps[to].tabIndex = 0;
      maps[to].focus();
    });
    return element;
  }

  function paintStrip(element, values, strip, colours) {
    const most = mostOf(values), pixels = strip.side ** 2;
    [...element.children].forEach((button, map) => {
      paintMap(button.firstChild, values.subarray(map * pixels, (map + 1) * pixels), strip.side, most, colours);
    });
  }

  // What a number is the sum of.

  const TOP = 5;

  /** Terms of a sum as lines that add up: the largest ones, and the others together. `line(term, text)` writes one. */
  function sumLines(terms, value, line, { bias = null, top = TOP, others = count => `${count} others together` } = {}) {
    const order = [...terms].sort((a, b) => Math.abs(b.product) - Math.abs(a.product));
    const shown = order.length > top + 1 ? order.slice(0, top) : order, rest = order.slice(shown.length);
    const parts = [...shown.map(t => t.product)];
    if (rest.length) parts.push(rest.reduce((sum, t) => sum + t.product, 0));
    if (bias !== null) parts.push(bias);
    const rounded = net.roundTogether(parts, value, DIGITS);
    const lines = shown.map((term, i) => line(term, rounded[i]));
    if (rest.length) lines.push(`<li><span>${others(rest.length)}</span>${term(rounded[shown.length])}</li>`);
    if (bias !== null) lines.push(`<li><span>the class's own constant (bias)</span>${term(rounded.at(-1))}</li>`);
    lines.push(`<li class="live-total"><span>together</span><b data-total>${number(value)}</b></li>`);
    return `<ul class="live-sum">${lines.join("")}</ul>`;
  }

  const term = value => `<b data-term>${signed(value)}</b>`;
  const pick = (name, value, chosen, text) =>
    `<button type="button" class="live-pick" data-pick="${name}" data-value="${value}" aria-pressed="${chosen}">${text}</button>`;

  /** A button that goes on to a map that was read. */
  const go = (from, map) => `<button type="button" class="live-pick" data-go="${from}" data-map="${map}">map ${map + 1}</button>`;

  /** Nine products as a table of three by three. */
  function windowTable(nine, value) {
    const rounded = net.roundTogether(nine.map(t => t.product), value, DIGITS);
    const cell = (t, i) => `<td class="${t.inside ? "" : "live-outside"}">${number(t.input)}<br>× ${number(t.weight)}<br>${term(rounded[i])}</td>`;
    const rows = [0, 1, 2].map(r => `<tr>${[0, 1, 2].map(c => cell(nine[3 * r + c], 3 * r + c)).join("")}</tr>`);
    return `<table class="live-window"><tbody>${rows.join("")}</tbody></table>
      <ul class="live-sum"><li class="live-total"><span>together</span><b data-total>${number(value)}</b></li></ul>`;
  }

  const source = from => (from === 0 ? "input" : `layer ${from}`);

  /** What the sources give, and the channels of one of them. */
  function readerLines(found, chosen, whole) {
    const open = found.sources.find(s => s.from === chosen.source && !s.cut)
      ?? [...found.sources].filter(s => !s.cut).sort((a, b) => Math.abs(b.product) - Math.abs(a.product))[0];
    const parts = found.sources.map(s => s.product), bias = whole.bias ? [found.bias] : [];
    const rounded = net.roundTogether([...parts, ...bias], found.value, DIGITS);
    const lines = found.sources.map((s, i) => `<li class="${s.cut ? "live-gone" : ""}">${
      pick("source", s.from, s === open, `<i class="live-swatch live-source-${s.from % 8}"></i>${source(s.from)}${
        s.cut ? ": cut" : `, ${s.channels.length} maps`}`)}${term(rounded[i])}</li>`);
    if (whole.bias) lines.push(`<li><span>the class's own constant (bias)</span>${term(rounded.at(-1))}</li>`);
    lines.push(`<li class="live-total"><span>together</span><b data-total>${number(found.value)}</b></li>`);
    const sums = `<ul class="live-sum">${lines.join("")}</ul>`;
    if (!open) return `${sums}<p>Everything that it reads is cut.</p>`;
    const best = [...open.channels].sort((a, b) => Math.abs(b.product) - Math.abs(a.product))[0];
    const means = best.values.length > 1;
    const step = means
      ? `Norm and ReLU are applied to each of its ${best.values.length} pixels ${
          whole.bias ? "in the whole map" : "here, two by two"}; their mean is ${number(best.read)}.`
      : `It is ${number(best.values[0])} here. Norm: ${number(best.values[0])} × ${number(best.scale)} ${
          best.shift < 0 ? "−" : "+"} ${number(Math.abs(best.shift))} = ${
          number(best.scale * best.values[0] + best.shift)}. ReLU${best.read > 0 ? " leaves it" : " makes it 0"}: ${number(best.read)}.`;
    return `${sums}
      <h4>Which of its maps?</h4>
      ${sumLines(open.channels, open.product, (t, value) =>
        `<li><span>${go(open.from, t.channel)}: ${number(t.read)} × ${number(t.weight)}</span>${term(value)}</li>`,
        { top: 4 })}
      <p class="live-by-hand">Take map ${best.channel + 1}. ${step} Times the weight ${number(best.weight)}: ${number(best.product)}.</p>`;
  }

  /** The three steps back from one pixel, as HTML. `chosen` is { strip, map, y, x, bottleneck, source }. */
  function explain(network, trace, chosen, classes) {
    const { strip, map, y, x } = chosen;
    const here = `row ${y + 1}, column ${x + 1}`;
    if (strip.id === "stem") {
      const found = net.explainStem(network, trace, map, y, x);
      return { value: found.value, window: found.terms, steps: [{
        title: "Nine pixels of the picture",
        html: `<p>At ${here} this map has <b data-value>${number(found.value)}</b>. It is a 3 × 3 window of the picture (normalised:
          black is ${number(trace.black, 2)}), each pixel times its weight, added up.</p><canvas class="live-framed"></canvas>${windowTable(found.terms, found.value)}`,
      }] };
    }
    const block = network.blocks[strip.block - 1];
    if (strip.to > block.layers.length) {
      const found = net.explainReader(network, trace, strip.block, strip.to, map, y, x);
      const text = block.last
        ? `<p>The score (logit) of <b>${classes[map]}</b> is <b data-value>${number(found.value)}</b>: norm and ReLU, the mean of each of
          the ${block.end.inputs} maps of block ${strip.block}, times its weight, and a constant. The ten scores
          become probabilities when e is raised to each of them and divided by the sum of all ten.</p>`
        : `<p>At ${here} this map has <b data-value>${number(found.value)}</b>: for each of the ${block.end.inputs} maps of block ${strip.block},
          norm and ReLU, the mean of 2 × 2 pixels, times its weight, added up.</p>`;
      return { value: found.value, steps: [{
        title: "What each source gives", html: text + readerLines(found, chosen, { bias: block.last }) }] };
    }
    const found = net.explainLayer(network, trace, strip.block, strip.to, map, y, x);
    const order = [...found.terms].sort((a, b) => Math.abs(b.product) - Math.abs(a.product));
    const bottleneck = chosen.bottleneck ?? order[0].channel, part = found.terms[bottleneck];
    const read = net.explainReader(network, trace, strip.block, strip.to, bottleneck, y, x);
    const { norm2 } = block.layers[strip.to - 1];
    const scale = norm2.scale[bottleneck], shift = norm2.shift[bottleneck];
    const active = part.window[4].input;
    return { value: found.value, bottleneck, window: part.window, steps: [
      {
        title: "48 bottleneck maps".replace("48", found.terms.length),
        html: `<p>At ${here} this map has <b data-value>${number(found.value)}</b>. A 3 × 3 convolution adds up what a window of each of the
          ${found.terms.length} bottleneck maps gives:</p>
          ${sumLines(found.terms, found.value, (t, value) =>
            `<li>${pick("bottleneck", t.channel, t.channel === bottleneck, `bottleneck map ${t.channel + 1}`)}${term(value)}</li>`)}
          <div class="live-bottleneck" role="group" aria-label="The bottleneck maps, after norm and ReLU"></div>`,
      },
      {
        title: `The window of bottleneck map ${bottleneck + 1}`,
        html: `<p>Nine numbers around ${here}, after norm and ReLU, each times its weight:</p><canvas class="live-framed"></canvas>${windowTable(part.window, part.product)}
          <p>The one in the middle, ${number(active)}, was ${number(read.value)} before. Norm: ${number(read.value)} × ${number(scale)}
          ${shift < 0 ? "−" : "+"} ${number(Math.abs(shift))} = ${number(scale * read.value + shift)}. ReLU ${
            active > 0 ? "leaves it" : "makes it 0"}.</p>`,
      },
      {
        title: `What bottleneck map ${bottleneck + 1} has read`,
        html: `<p>Its ${number(read.value)} is what a 1 × 1 convolution adds up at this very pixel, over all
          ${block.layers[strip.to - 1].inputs} maps before this layer:</p>${readerLines(read, chosen, { bias: false })}`,
      },
    ] };
  }

  live.maps = { createStrip, explain, listStrips, mostOf, number, paintMap, paintStrip, palette, valuesOf };
})(globalThis.DenseNetLive);
