// "Step through a block": one picture on its way through the small block, and the gradient on its way back.
(function (step) {
  "use strict";

  const PARTS = [
    ["read", "concatenate"], ["norm1", "norm"], ["relu1", "ReLU"], ["conv1", "1 × 1"],
    ["norm2", "norm"], ["relu2", "ReLU"], ["conv2", "3 × 3"], ["join", "put behind"],
  ];
  // What is marked in the code.
  const MARKS = {
    block: { start: ["features = [init_features]"], join: ["features + [layer(features)]"], end: ["torch.cat(features, 1)"] },
    layer: { start: ["inputs = input if isinstance(input, (list, tuple)) else [input]"], join: ["return new_features"] },
    both: {
      read: ["torch.cat(inputs, 1)"], norm1: ["self.norm1"], relu1: ["self.relu1"], conv1: ["self.conv1"],
      norm2: ["self.norm2"], relu2: ["self.relu2"], conv2: ["self.conv2"],
    },
    back: {
      start: ["torch.cat(features, 1)"], take: ["features + [layer(features)]"],
      pass: ["self.conv2(self.relu2(self.norm2(new_features)))", "self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))"],
      end: ["features = [init_features]"],
    },
  };

  const number = (value, digits = 2) => {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−");
  };
    const thousands = value => value.toLocaleString("en-US");
  const meanSize = values => values.reduce((sum, v) => sum + Math.abs(v), 0) / values.length;
  const positive = values => values.reduce((sum, v) => sum + (v > 0), 0) / values.length;
  const escape = text => text.replace(/[&<>]/g, sign => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);
  const sourceName = source => (source === 0 ? "input" : `layer ${source}`);
  const readerName = (network, reader) => (reader > network.layers.length ? "the classifier" : `layer ${reader}`);

  /** First channel and number of channels of a source. */
  const channelsOf = (network, source) =>
    (source === 0 ? [0, network.channels] : [network.channels + (source - 1) * network.k, network.k]);

  /** `8 + 4 = 12` */
  function sum(network, sources) {
    const counts = Array.from({ length: sources }, (_, s) => channelsOf(network, s)[1]);
    return counts.length === 1 ? `${counts[0]}` : `${counts.join(" + ")} = ${counts.reduce((a, b) => a + b)}`;
  }

  // Every step, and what is said of it.

  function forwardSteps(network, part) {
    const { side, k } = network, steps = [], block = part === "block";
    const add = (kind, layer, said) =>
      steps.push({ kind, layer, said, marks: MARKS.both[kind] ?? MARKS[part][kind] });
    add("start", 0, `a 3 × 3 convolution has made ${network.channels} maps of the picture, ${side} × ${side} pixels each; they are the ${part}'s input`);
    network.layers.slice(0, block ? undefined : 1).forEach((layer, i) => {
      const l = i + 1, { inputs, width } = layer, name = block ? `layer ${l}, ` : "";
      add("read", l, `${name}concatenation: it reads ${l === 1 ? "the input" : `${l} sources`}, ${sum(network, l)} channels`);
      add("norm1", l, `${name}norm: each of ${inputs} channels is scaled and shifted, ${2 * inputs} learned numbers`);
      add("relu1", l, `${name}ReLU: ${inputs} channels, what is below zero becomes zero`);
      add("conv1", l, `${name}1 × 1 convolution: ${inputs} to ${width} channels, ${thousands(inputs * width)} weights`);
      add("norm2", l, `${name}norm: each of ${width} channels is scaled and shifted, ${2 * width} learned numbers`);
      add("relu2", l, `${name}ReLU: ${width} channels, what is below zero becomes zero`);
      add("conv2", l, `${name}3 × 3 convolution: ${width} to ${k} channels, ${thousands(9 * width * k)} weights`);
      add("join", l, block
        ? `layer ${l}, ${k} new maps join on the right: ${inputs} + ${k} = ${inputs + k} channels`
        : `the layer gives out ${k} new maps; a block puts them behind the ${inputs} that came in: ${inputs} + ${k} = ${inputs + k} channels`);
    });
    if (block) add("end", network.layers.length + 1, `the block gives out all it has: ${sum(network, network.layers.length + 1)} channels`);
    return steps;
  }

  function backwardSteps(network, className) {
    const count = network.layers.length, steps = [];
    const add = (kind, layer, said) => steps.push({ kind, layer, said, marks: MARKS.back[kind] });
    add("start", count + 1, `the score of “${className}” goes back through the classifier, which has read all ${network.outputs} maps: each gets a gradient`);
    for (let l = count; l >= 1; l--) {
      const readers = count + 1 - l;
      add("take", l, `layer ${l}, its ${network.k} maps have heard from ${readers === 1 ? "their one reader" : `all their ${readers} readers`}: ${readers === 1 ? "that" : "the sum"} is their gradient`);
      add("pass", l, `layer ${l} passes its gradient back through its two convolutions to ${l === 1 ? "what" : `the ${l} sources that`} it has read, ${network.layers[l - 1].inputs} channels`);
    }
    add("end", 0, `the input has heard from ${count + 1} readers, each of them directly: the gradient is complete`);
    return steps;
  }

  // Drawing.

  function palette(root) {
    const style = getComputedStyle(root);
    return ["--map-minus", "--map-zero", "--map-plus"].map(name => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
    });
  }

  /** The value that gets the full colour: 98 of 100 `values` are below it. */
  function mostOf(values) {
    const sorted = Float32Array.from(values, Math.abs).sort();
    return sorted[Math.floor(0.98 * (sorted.length - 1))] || sorted[sorted.length - 1] || 1;
  }

  function paint(canvas, values, width, most, [minus, zero, plus]) {
    canvas.width = width;
    canvas.height = values.length / width;
    const context = canvas.getContext("2d"), image = context.createImageData(width, canvas.height);
    values.forEach((value, i) => {
      const share = Math.min(1, Math.abs(value) / most), end = value < 0 ? minus : plus;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = zero[c] + (end[c] - zero[c]) * share;
      image.data[4 * i + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  }

  const ICONS = {
    conv1: '<path d="M2 1H26Q18 8 26 15H2Q10 8 2 1Z"/>',
    conv2: '<path d="M6 1h15v15h-15zM11 1v15M16 1v15M6 6h15M6 11h15"/>',
    norm: '<rect x="3" y="4" width="22" height="8" rx="2"/>',
    strip: '<path d="M2 4h24v9H2zM10 4v9M18 4v9"/>',
  };
  const icon = kind => `<svg viewBox="0 0 28 17" aria-hidden="true">${
    ICONS[kind] ?? ICONS[/norm|relu/.test(kind) ? "norm" : "strip"]}</svg>`;

  class View {
    constructor(place) {
      this.part = place.dataset.part === "layer" ? "layer" : "block";
      const { data } = step, network = this.network = step.network.build(data);
      this.trace = step.network.run(network, step.network.pictureOf(data));
      this.target = this.trace.scores.indexOf(Math.max(...this.trace.scores));
      this.gradient = step.network.backward(network, this.trace, this.target);
      this.steps = { forward: forwardSteps(network, this.part), backward: backwardSteps(network, data.classes[this.target]) };
      this.at = { forward: 0, backward: 0 };
      this.way = "forward";
      this.build(place);
      this.show();
    }

    build(place) {
      const root = this.root = document.createElement("div"), block = this.part === "block";
      root.className = "step";
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", `Step through a ${this.part}`);
      root.tabIndex = -1;
      const tabs = block ? `<div class="step-tabs" role="tablist" aria-label="Direction">
          <button type="button" role="tab" id="step-forward" aria-controls="step-panel">Forward: the features</button>
          <button type="button" role="tab" id="step-backward" aria-controls="step-panel">Backward: the gradients</button>
        </div>` : "";
      root.innerHTML = `${tabs}<div class="step-panel"${block ? ' role="tabpanel" id="step-panel"' : ""}>
        <div class="step-head">
          <div class="step-buttons"><button type="button" class="step-back">Back</button><button type="button" class="step-next">Next</button></div>
          <p class="step-said" aria-live="polite"></p>
        </div>
        <div class="step-progress" aria-hidden="true"><i></i></div>
        <ol class="step-parts"></ol>
        <p class="step-title"></p><div class="step-strip"></div>
        <div class="step-stage"></div>
        <pre class="step-code" role="group" aria-label="The code of this step"><code></code></pre>
        <p class="step-note"></p></div>`;
      place.append(root);
      this.find = name => root.querySelector(`.step-${name}`);
      this.find("back").addEventListener("click", () => this.move(-1));
      this.find("next").addEventListener("click", () => this.move(1));
      root.addEventListener("keydown", event => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        if (event.target.getAttribute("role") !== "tab") this.move(by);
        else this.turn(this.way === "forward" ? "backward" : "forward", true);
      });
      for (const tab of root.querySelectorAll("[role=tab]"))
        tab.addEventListener("click", () => this.turn(tab.id.slice("step-".length)));
      new MutationObserver(() => this.show()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    }

    move(by) {
      const to = this.at[this.way] + by;
      if (to < 0 || to >= this.steps[this.way].length) return;
      this.at[this.way] = to;
      this.show();
    }

    turn(way, focus = false) {
      this.way = way;
      this.show();
      if (focus) this.root.querySelector(`#step-${way}`).focus();
    }

    /** Maps as a group: a head with the source's colour, hatch and name, then a canvas for each. */
    group(source, values, { name = sourceName(source), state = "", most = null, size = "" } = {}) {
      const pixels = this.network.side ** 2, count = values.length / pixels;
      this.paints.push([values, most ?? mostOf(values)]);
      return `<div class="step-group step-source-${source} ${state}" role="img" aria-label="${name}: ${count} maps${size ? `, ${size}` : ""}">
        <span class="step-name" aria-hidden="true">${name}${state.includes("step-new") ? " (new)" : ""}</span>
        <span class="step-maps">${"<canvas></canvas>".repeat(count)}</span>${
          size ? `<span class="step-size" aria-hidden="true">${size}</span>` : ""}</div>`;
    }

    /** All channels of `values` by source, as groups. */
    groups(values, sources, options = () => ({})) {
      const pixels = this.network.side ** 2;
      return Array.from({ length: sources }, (_, source) => {
        const [start, count] = channelsOf(this.network, source);
        return this.group(source, values.subarray(start * pixels, (start + count) * pixels), options(source));
      }).join("");
    }

    show() {
      const steps = this.steps[this.way], index = this.at[this.way], now = steps[index], { network } = this;
      this.paints = [];
      this.find("said").innerHTML = `<b>Step ${index + 1} of ${steps.length}</b>: ${now.said}.`
        + `<span class="step-hidden"> Marked in the code: ${now.marks.map(escape).join(" and ")}.</span>`;
      this.find("back").setAttribute("aria-disabled", index === 0);
      this.find("next").setAttribute("aria-disabled", index === steps.length - 1);
      this.find("progress").firstChild.style.width = `${100 * (index + 1) / steps.length}%`;
      for (const tab of this.root.querySelectorAll("[role=tab]")) {
        const chosen = tab.id === `step-${this.way}`;
        tab.setAttribute("aria-selected", chosen);
        tab.tabIndex = chosen ? 0 : -1;
        if (chosen) this.find("panel").setAttribute("aria-labelledby", tab.id);
      }
      this.find("parts").hidden = this.way === "backward";
      if (this.way === "forward") this.showForward(now);
      else this.showBackward(now);
      this.find("code").firstChild.innerHTML = this.code(now.marks);
      const colours = palette(this.root), maps = [...this.root.querySelectorAll(".step-maps")];
      this.paints.forEach(([values, most], i) => {
        const pixels = network.side ** 2;
        [...maps[i].children].forEach((canvas, c) =>
          paint(canvas, values.subarray(c * pixels, (c + 1) * pixels), network.side, most, colours));
      });
      const weights = this.root.querySelector(".step-weights canvas");
      if (weights) paint(weights, this.weights.values, this.weights.width, mostOf(this.weights.values), colours);
      this.now = now;
    }

    showForward({ kind, layer }) {
      const { network, trace } = this, { side, k } = network, pixels = side * side, shape = `× ${side} × ${side}`;
      const inLayer = layer >= 1 && layer <= network.layers.length, own = network.layers[layer - 1];
      const done = ["join", "end"].includes(kind);
      const sources = kind === "end" ? layer : kind === "start" ? 1 : layer + (done ? 1 : 0);
      const at = PARTS.findIndex(([name]) => name === kind);
      const after = own && { read: own.inputs, norm1: own.inputs, relu1: own.inputs, conv1: own.width, norm2: own.width,
        relu2: own.width, conv2: k, join: own.inputs + k };
      this.find("parts").className = `step-parts step-source-${inLayer ? layer : 0}`;
      this.find("parts").innerHTML = PARTS.map(([name, label], i) =>
        `<li${i === at ? ' aria-current="step"' : ""}${inLayer && i < at ? ' class="step-done"' : ""}>${icon(name)}<span>${label}</span><b>${
          after ? after[name] : "·"}</b></li>`).join("");
      this.find("title").innerHTML = `The block so far: <b>${sum(network, sources)} channels</b>, ${sum(network, sources).split(" ").pop()} ${shape}`;
      if (this.part === "layer") this.find("title").innerHTML = done
        ? `Old and new, side by side: <b>${sum(network, 2)} channels</b>` : `The layer's input: <b>${network.channels} channels</b>, ${network.channels} ${shape}`;
      const lit = kind === "read" ? "step-lit" : at > 0 && !done ? "step-read" : "";
      this.find("strip").innerHTML = this.groups(trace.features, sources, source => ({
        state: (source < layer ? lit : "") + (kind === "join" && source === layer ? "step-lit step-new" : ""),
      }));
      this.find("stage").innerHTML = this.stage(kind, layer, own, shape, pixels);
      this.find("note").innerHTML = `Colours: <i class="step-plus"></i> above zero, <i class="step-minus"></i> below, the
        stronger the farther; each group has a scale of its own. The network was trained for ${step.data.epochs} epochs on
        ${thousands(step.data.trainedOn)} pictures, and gets ${step.data.right} of ${thousands(step.data.tested)} others right; this is the first of those.`;
    }

    /** What one step does: maps before, the operation, maps after. */
    stage(kind, layer, own, shape, pixels) {
      const { network, trace } = this, maps = trace.layers[layer - 1], { k } = network;
      const row = (title, groups) => `<p>${title}</p><div class="step-row">${groups}</div>`;
      const range = values => `from ${number(Math.min(...values))} to ${number(Math.max(...values))}`;
      const plain = (values, name) => this.group(layer, values, { name, state: values.length > 4 * pixels ? "step-wide" : "step-few" });
      const shapeOf = values => `<b class="step-shape">${values.length / pixels} ${shape}</b>`;
      const out = { conv1: "bottleneck", norm2: "bottleneck", relu2: "bottleneck", conv2: `new maps of layer ${layer}` }[kind];
      if (kind === "start") {
        this.paints.push([trace.picture, mostOf(trace.picture)]);
        return row(`The picture, ${step.data.classes[step.data.label].toLowerCase()}, normalised: <b class="step-shape">1 ${shape}</b>`,
          '<div class="step-group step-few" role="img" aria-label="the picture"><span class="step-maps"><canvas></canvas></span></div>')
          + row(`A 3 × 3 convolution, ${9 * network.channels} weights, gives ${shapeOf(trace.features.subarray(0, network.channels * pixels))}, which are above.`, "");
      }
      if (kind === "read")
        return row(`Put end to end: ${shapeOf(maps.read)}, ${range(maps.read)}`, this.groups(maps.read, layer));
      if (kind === "join")
        return row(`What layer ${layer} has made: ${shapeOf(maps.conv2)}, ${range(maps.conv2)}`, plain(maps.conv2, `layer ${layer}`));
      if (kind === "end") {
        const best = this.target, share = number(100 * trace.probabilities[best], 1);
        return row(`What leaves the block is above. The classifier makes of it: <b>${step.data.classes[best]}</b>, ${share} %.`, "");
      }
      const before = { norm1: maps.read, relu1: maps.norm1, conv1: maps.relu1, norm2: maps.conv1, relu2: maps.norm2, conv2: maps.relu2 }[kind];
      const now = maps[kind], narrow = kind === "norm2" || kind === "relu2" || kind === "conv2";
      const first = row(`Before: ${before.length / pixels} ${shape}`, narrow ? plain(before, "bottleneck") : this.groups(before, layer));
      let what;
      if (kind.startsWith("norm")) {
        const { scale, shift } = own[kind];
        what = `<p>For each channel, what mean, variance, γ and β come to: a factor and a shift. Channel 1: ${number(scale[0], 3)} × x ${
          shift[0] < 0 ? "−" : "+"} ${number(Math.abs(shift[0]), 3)}</p>`;
      } else if (kind.startsWith("relu")) {
        what = `<p>${number(100 * positive(before), 1)} % of the numbers are above zero, and stay.</p>`;
      } else {
        const window = kind === "conv1" ? 1 : 3, [inputs, outputs] = kind === "conv1" ? [own.inputs, own.width] : [own.width, k];
        const weight = own[kind], width = window === 1 ? inputs : inputs * 4;
        // One row for each new map; windows of 3 × 3 stand apart.
        const values = window === 1 ? weight : new Float32Array(outputs * 4 * width);
        if (window === 3) weight.forEach((w, i) => {
          const pair = Math.floor(i / 9), [o, c] = [Math.floor(pair / inputs), pair % inputs];
          values[(o * 4 + Math.floor(i % 9 / 3)) * width + c * 4 + i % 3] = w;
        });
        this.weights = { values, width };
        what = `<div class="step-weights"><p>Weights: <b class="step-shape">${outputs} × ${inputs} × ${window} × ${window}</b> = ${
          thousands(weight.length)}, ${range(weight)}. A row makes one map, a ${window === 1 ? "column" : "window"} reads one.</p>
          <canvas class="step-weights-${window}" style="--columns:${width};--rows:${values.length / width}" role="img" aria-label="The weights: ${outputs} rows of ${inputs}"></canvas></div>`;
      }
      const last = `After: ${shapeOf(now)}, ${range(now)}`;
      return first + what + row(last, out ? plain(now, out) : this.groups(now, layer));
    }

    showBackward({ kind, layer }) {
      const { network, gradient } = this, count = network.layers.length, pixels = network.side ** 2;
      const { passed } = gradient;
      // What has arrived by now: from the classifier, and from every layer that has passed its gradient on.
      const givers = [];
      const lastGiver = { start: count + 1, take: layer + 1, pass: layer, end: 1 }[kind];
      for (let reader = count + 1; reader >= lastGiver; reader--) givers.push(reader);
      const arrived = new Float32Array(network.outputs * pixels);
      for (const reader of givers) passed[reader].forEach((g, i) => { arrived[i] += g; });
      const most = mostOf(arrived);
      const size = values => `${number(1000 * meanSize(values))} thousandths`;
      const of = (values, source) => {
        const [start, channels] = channelsOf(network, source);
        return values.subarray(start * pixels, (start + channels) * pixels);
      };
      this.find("title").innerHTML = `The gradient of the score of “${step.data.classes[this.target]}”, map by map, ${
        kind === "end" ? "complete" : `after ${givers.length === 1 ? "one reader" : `${givers.length} readers`}`}:`;
      const getting = { start: source => source <= count, take: source => source === layer, pass: source => source < layer, end: source => source === 0 }[kind];
      this.find("strip").innerHTML = this.groups(arrived, count + 1, source => ({
        most, state: getting(source) ? "step-lit" : kind === "pass" && source > layer ? "step-over" : "", size: size(of(arrived, source)),
      }));
      const taker = kind === "take" ? layer : kind === "end" ? 0 : null;
      let stage;
      if (taker !== null) {
        const row = (title, values) => `<div><p>${title}, ${size(values)}</p><div class="step-row">${
          this.group(taker, values, { most, state: taker ? "step-few" : "" })}</div></div>`;
        const from = givers.filter(reader => reader > taker).map(reader => row(`From ${readerName(network, reader)}`, of(passed[reader], taker)));
        stage = `<div class="step-givers">${from.join("")}${from.length > 1 ? row("<b>Added up, map by map</b>", of(arrived, taker)) : ""}</div>`;
      } else {
        const reader = kind === "start" ? count + 1 : layer;
        stage = `<p>What ${readerName(network, reader)} passes to each source:</p><div class="step-row">${
          this.groups(passed[reader], reader, source => ({ most, size: size(of(passed[reader], source)) }))}</div>`;
      }
      this.find("stage").innerHTML = stage;
      this.find("note").innerHTML = `A map's gradient says how the score would change if a pixel of it were larger: <i class="step-plus"></i> up,
        <i class="step-minus"></i> down. All maps of a step have one scale; numbers are means of absolute values, so those of several readers do not add up. PyTorch runs this by itself: the marked code, read backwards.`;
    }

    /** The listing, with what runs now marked. */
    code(marks) {
      const shown = step.data.code.filter(([name]) => this.part === "block" || name.startsWith("DenseLayer"));
      let last = "";
      return shown.map(([name, lines]) => {
        const [owner] = name.split("."), head = owner === last ? "" : `<span class="step-owner">class ${owner}: …</span>`;
        last = owner;
        return head + lines.map(line => {
          const mark = marks.find(text => line.includes(text));
          if (!mark) return `<span class="step-line">${escape(line) || " "}</span>`;
          const [before, ...after] = line.split(mark);
          return `<span class="step-line step-marked">${escape(before)}<mark>${escape(mark)}</mark>${escape(after.join(mark))}</span>`;
        }).join("");
      }).join("");
    }
  }

  step.open = place => {
    const view = new View(place);
    step.views = [...(step.views ?? []), view];
    view.find("next").focus({ preventScroll: true });
    return view;
  };
})(globalThis.DenseNetStep);
